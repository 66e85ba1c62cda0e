// SPDX-License-Identifier: MIT OR Apache-2.0
// Maps in maps: one filled by the object, one by the loader.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define MAP_ARRAY_OF_MAPS 12
#define MAP_HASH_OF_MAPS 13

struct inner {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} inner_a SEC(".maps"), inner_b SEC(".maps");

struct {
	__uint(type, MAP_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, u32);
	struct inner *values[];
} outer SEC(".maps") = { .values = { [0] = &inner_a, [1] = &inner_b } };

struct {
	__uint(type, MAP_HASH_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, u32);
	struct inner *values[];
} by_name SEC(".maps");

u32 which;

SEC("classifier")
int add(void *ctx)
{
	u32 at = which, zero = 0;
	void *in_array = map_lookup(&outer, &at);
	void *in_hash = map_lookup(&by_name, &at);
	int found = 0;
	u64 *value;

	if (in_array && (value = map_lookup(in_array, &zero))) {
		*value += 1;
		found |= 1;
	}
	if (in_hash && (value = map_lookup(in_hash, &zero))) {
		*value += 100;
		found |= 2;
	}
	return found;
}
