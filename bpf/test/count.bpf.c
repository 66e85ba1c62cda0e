// SPDX-License-Identifier: MIT OR Apache-2.0
// Entries and returns of `probed`, counted in per-CPU arrays.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} entries SEC(".maps"), returns SEC(".maps");

static inline __attribute__((always_inline)) int count(void *map)
{
	u32 zero = 0;
	u64 *n = map_lookup(map, &zero);

	if (n)
		*n += 1;
	return 0;
}

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	return count(&entries);
}

SEC("kretprobe/probed")
int on_return(struct pt_regs *ctx)
{
	return count(&returns);
}
