// SPDX-License-Identifier: MIT OR Apache-2.0
// Where processor time goes: counts call chains, at the ticks of a clock.
//
//	skep trace --folded bpf/profile.bpf.o -- ls -lR /usr/lib
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* What a sample is given to a program as. */
struct bpf_perf_event_data {
	struct pt_regs regs;
	u64 sample_period;
	u64 addr;
};

struct key {
	u32 pid;
	s32 stack_id;
	char comm[16];
};

struct {
	__uint(type, MAP_STACK_TRACE);
	__uint(max_entries, 16384);
	__uint(key_size, sizeof(u32));
	__uint(value_size, 127 * sizeof(u64));
} stacks SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 16384);
	__type(key, struct key);
	__type(value, u64);
} counts SEC(".maps");

SEC("perf_event")
int on_tick(struct bpf_perf_event_data *ctx)
{
	struct key key = { .pid = pid_tgid() >> 32 };
	u64 one = 1, *count;

	key.stack_id = get_stackid(ctx, &stacks, USER_STACK);
	current_comm(key.comm, sizeof(key.comm));
	count = map_lookup(&counts, &key);
	if (count)
		__sync_fetch_and_add(count, one);
	else
		map_update(&counts, &key, &one, ANY);
	return 0;
}
