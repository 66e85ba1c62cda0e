// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	return map_lookup(&counts, (void *)ARG1(ctx)) != NULL;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	u32 key = ARG1(ctx);

	return map_lookup(&counts, &key) != NULL;
}
