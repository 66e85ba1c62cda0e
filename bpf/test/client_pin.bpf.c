// SPDX-License-Identifier: MIT OR Apache-2.0
// A map that outlives its loader: it is pinned by its name, and the next loader finds it there.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define PIN_BY_NAME 1

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__uint(pinning, PIN_BY_NAME);
	__type(key, u32);
	__type(value, u64);
} client_total SEC(".maps");

SEC("classifier")
int add(void *ctx)
{
	u32 key = 0;
	u64 *total = map_lookup(&client_total, &key);

	if (total)
		*total += 1;
	return 0;
}
