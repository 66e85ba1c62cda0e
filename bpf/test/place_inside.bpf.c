// SPDX-License-Identifier: MIT OR Apache-2.0
// The same behind the `endbr64` that `probed` begins with, and further inside, for kernel and user probes.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static u64 (*const get_func_ip)(void *ctx) = (void *)173;

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} places SEC(".maps");

static inline __attribute__((always_inline)) int put(u32 key, u64 value)
{
	map_update(&places, &key, &value, ANY);
	return 0;
}

SEC("kprobe/probed+4")
int on_first(struct pt_regs *ctx)
{
	put(0, ctx->rip);
	return put(1, get_func_ip(ctx));
}

SEC("uprobe/place:probed+4")
int on_first_user(struct pt_regs *ctx)
{
	return put(2, get_func_ip(ctx));
}

SEC("kprobe/probed+12")
int inside(struct pt_regs *ctx)
{
	put(3, ctx->rip);
	return put(4, get_func_ip(ctx));
}

SEC("uprobe/place:probed+12")
int inside_user(struct pt_regs *ctx)
{
	return put(5, get_func_ip(ctx));
}
