// SPDX-License-Identifier: MIT OR Apache-2.0
// How long calls of a function take, as a log2 histogram of nanoseconds.
//
//	skep trace --func malloc bpf/latency.bpf.o -- ls -l
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* A call is known by its thread and by where its return address stood, so recursion is no problem. */
struct call {
	u64 thread;
	u64 frame;
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 16384);
	__type(key, struct call);
	__type(value, u64);
} started SEC(".maps");

struct latency {
	u64 calls;
	u64 total_ns;
	u64 slots[40];
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct latency);
} latency SEC(".maps");

SEC("kprobe")
int on_entry(struct pt_regs *ctx)
{
	struct call c = { .thread = pid_tgid(), .frame = ctx->rsp + 8 };
	u64 now = ktime_ns();

	map_update(&started, &c, &now, ANY);
	return 0;
}

SEC("kretprobe")
int on_return(struct pt_regs *ctx)
{
	struct call c = { .thread = pid_tgid(), .frame = ctx->rsp };
	u64 now = ktime_ns(), *start = map_lookup(&started, &c), ns;
	struct latency *l;
	u32 zero = 0, slot;

	if (!start)
		return 0;
	ns = now - *start;
	map_delete(&started, &c);
	l = map_lookup(&latency, &zero);
	if (!l)
		return 0;
	slot = log2_slot(ns);
	if (slot >= 40)
		slot = 39;
	__sync_fetch_and_add(&l->calls, 1);
	__sync_fetch_and_add(&l->total_ns, ns);
	__sync_fetch_and_add(&l->slots[slot], 1);
	return 0;
}
