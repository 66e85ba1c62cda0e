// SPDX-License-Identifier: MIT OR Apache-2.0
// Entries and returns of functions that take no jump, and an instruction within; counted in per-CPU arrays.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 5);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

static inline __attribute__((always_inline)) int count(u32 key, u64 by)
{
	u64 *n = map_lookup(&counts, &key);

	if (n)
		*n += by;
	return 0;
}

SEC("kprobe/just_ret")
int ret_entry(struct pt_regs *ctx)
{
	return count(0, 1);
}

SEC("kretprobe/just_ret")
int ret_return(struct pt_regs *ctx)
{
	return count(1, 1);
}

SEC("kprobe/loops")
int loops_entry(struct pt_regs *ctx)
{
	return count(2, ctx->rdi);
}

SEC("kretprobe/loops")
int loops_return(struct pt_regs *ctx)
{
	return count(3, ctx->rax);
}

SEC("kprobe/loops+0x9")
int loops_branch(struct pt_regs *ctx)
{
	return count(4, 1);
}
