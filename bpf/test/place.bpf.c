// SPDX-License-Identifier: MIT OR Apache-2.0
// What the instruction pointer and `get_func_ip` are at the entry and the return of `probed`.
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

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	put(0, ctx->rip);
	return put(1, get_func_ip(ctx));
}

SEC("kretprobe/probed")
int on_return(struct pt_regs *ctx)
{
	return put(2, get_func_ip(ctx));
}
