// SPDX-License-Identifier: MIT OR Apache-2.0
// Probes that a skeleton attaches by their sections: at a function's entry and return, and at all that match a pattern.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static u64 (*const attach_cookie)(void *ctx) = (void *)174;
static u64 (*const func_ip)(void *ctx) = (void *)173;

u64 entries, returns, many, many_returns, cookies, last, ips;

SEC("kprobe/work")
int on_entry(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&entries, 1);
	__sync_fetch_and_add(&cookies, attach_cookie(ctx));
	last = ARG1(ctx);
	return 0;
}

SEC("kretprobe/work")
int on_return(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&returns, 1);
	__sync_fetch_and_add(&cookies, attach_cookie(ctx));
	return 0;
}

SEC("kprobe.multi/wor?")
int on_many(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&many, 1);
	__sync_fetch_and_add(&cookies, attach_cookie(ctx));
	ips = func_ip(ctx);
	return 0;
}

SEC("kretprobe.multi/work")
int on_many_returns(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&many_returns, 1);
	__sync_fetch_and_add(&cookies, attach_cookie(ctx));
	return 0;
}

SEC("uprobe.multi")
int on_place(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&entries, 1);
	__sync_fetch_and_add(&cookies, attach_cookie(ctx));
	return 0;
}

SEC("uretprobe.multi")
int on_place_return(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&returns, 1);
	__sync_fetch_and_add(&cookies, attach_cookie(ctx));
	return 0;
}
