/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A plug-in of which there are two versions: VERSION is what a call of it leaves behind. */
#include "skep.h"

struct sum {
	u64 total;
	u32 version;
	u32 key;
} __attribute__((preserve_access_index));

struct {
	__uint(type, MAP_ARRAY);
	__type(key, u32);
	__type(value, u64);
	__uint(max_entries, 4);
} calls SEC(".maps");

SEC("hook/sum")
int add(struct sum *s)
{
	u32 key = VERSION;
	u64 *count = map_lookup(&calls, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	s->total += 1;
	s->version = VERSION;
	return 0;
}
