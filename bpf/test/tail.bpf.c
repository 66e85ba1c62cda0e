// SPDX-License-Identifier: MIT OR Apache-2.0
// A tail call through a prog array that the object fills itself, and a global that counts.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

u64 reached;
const volatile u64 step = 1;

int counted(struct pt_regs *ctx);

struct {
	__uint(type, MAP_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	int (*values[])(struct pt_regs *ctx);
} table SEC(".maps") = { .values = { [2] = &counted } };

SEC("kprobe")
int counted(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&reached, step);
	return 0;
}

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	tail_call(ctx, &table, 2);
	return 7;
}
