// SPDX-License-Identifier: MIT OR Apache-2.0
// Probes that a loader attaches with cookies; they tell by a ring buffer and by a perf buffer.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static u64 (*const attach_cookie)(void *ctx) = (void *)174;

struct event {
	u64 cookie;
	u64 value;
	u32 pid;
	u32 kind;
};

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 64 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, MAP_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf SEC(".maps");

static inline __attribute__((always_inline)) int tell(struct pt_regs *ctx, u64 value, u32 kind)
{
	struct event e = { .cookie = attach_cookie(ctx), .value = value, .pid = pid_tgid() >> 32, .kind = kind };
	struct event *r = ringbuf_reserve(&ring, sizeof(*r), 0);

	if (r) {
		*r = e;
		ringbuf_submit(r, 0);
	}
	perf_event_output(ctx, &perf, CURRENT_CPU, &e, sizeof(e));
	return 0;
}

SEC("uprobe")
int on_entry(struct pt_regs *ctx)
{
	return tell(ctx, ARG1(ctx), 1);
}

SEC("uretprobe")
int on_return(struct pt_regs *ctx)
{
	return tell(ctx, RETVAL(ctx), 2);
}

SEC("kprobe")
int on_kprobe(struct pt_regs *ctx)
{
	return tell(ctx, ARG1(ctx), 3);
}
