// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_STACK_TRACE);
	__uint(max_entries, 64);
	__uint(key_size, 4);
	__uint(value_size, 1016);
} stacks SEC(".maps");

SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	get_stackid(ctx, &stacks, 0);
	return XDP_PASS;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	get_stackid(ctx, &stacks, 0);
	return 0;
}
