// SPDX-License-Identifier: MIT OR Apache-2.0
// An event for each call of a function, with its arguments. The program returns 1, so each call is a sample as well.
//
//	skep trace --func open64 bpf/calls.bpf.o -- cat /etc/hostname
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct call {
	u64 time_ns;
	u32 pid;
	u32 tid;
	void *address;
	u64 args[6];
	char comm[16];
	char text[64];	/* the first argument, if it points to text */
};
const struct call *unused_events __attribute__((unused));

struct {
	__uint(type, MAP_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} events SEC(".maps");

SEC("kprobe")
int on_call(struct pt_regs *ctx)
{
	struct call c = {};
	u64 id = pid_tgid();

	c.time_ns = ktime_ns();
	c.pid = id >> 32;
	c.tid = (u32)id;
	c.address = (void *)ctx->rip;
	c.args[0] = ARG1(ctx);
	c.args[1] = ARG2(ctx);
	c.args[2] = ARG3(ctx);
	c.args[3] = ARG4(ctx);
	c.args[4] = ARG5(ctx);
	c.args[5] = ARG6(ctx);
	current_comm(c.comm, sizeof(c.comm));
	probe_read_user_str(c.text, sizeof(c.text), (void *)c.args[0]);
	perf_event_output(ctx, &events, CURRENT_CPU, &c, sizeof(c));
	return 1;
}
