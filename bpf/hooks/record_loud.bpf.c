// SPDX-License-Identifier: MIT OR Apache-2.0
// Filter of examples/records: what is loud is kept, and counted by its level.
#include "record.h"

struct {
	__uint(type, MAP_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 8);
} levels SEC(".maps");

SEC("hook/record")
int loud(struct record *r)
{
	__u32 level = r->level;
	__u64 *count = map_lookup(&levels, &level);

	if (count)
		__sync_fetch_and_add(count, 1);
	return level <= 3 ? KEEP : DROP;
}
