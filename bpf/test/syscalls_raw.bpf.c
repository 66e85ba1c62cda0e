// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts system calls by their numbers, and returns of them: what raw tracepoints are told is looked at in the registers, too.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static long (*const probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u64);
} calls SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, u64);
} returns SEC(".maps");

static inline __attribute__((always_inline)) int count(void *map, const struct pt_regs *regs)
{
	u64 one = 1, number = 0, *n;

	probe_read_kernel(&number, sizeof(number), &regs->orig_rax);
	n = map_lookup(map, &number);
	if (n)
		__sync_fetch_and_add(n, 1);
	else if (map_update(map, &number, &one, NOEXIST) && (n = map_lookup(map, &number)))
		__sync_fetch_and_add(n, 1);
	return 0;
}

SEC("raw_tp/sys_enter")
int on_enter(u64 *ctx)
{
	const struct pt_regs *regs = (const struct pt_regs *)ctx[0];
	u64 number = 0;

	probe_read_kernel(&number, sizeof(number), &regs->orig_rax);
	return number == ctx[1] ? count(&calls, regs) : 0;
}

SEC("raw_tp/sys_exit")
int on_exit(u64 *ctx)
{
	const struct pt_regs *regs = (const struct pt_regs *)ctx[0];
	u64 result = 0;

	probe_read_kernel(&result, sizeof(result), &regs->rax);
	return result == ctx[1] ? count(&returns, regs) : 0;
}
