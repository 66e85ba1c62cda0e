// SPDX-License-Identifier: MIT OR Apache-2.0
// One event of every kind per call of `probed(n)`.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct record {
	u32 pid;
	u32 tid;
	u64 n;
};
const struct record *unused_ring __attribute__((unused));

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 64 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, MAP_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf TAG("event:record") SEC(".maps");

struct {
	__uint(type, MAP_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} raw SEC(".maps");

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	u64 id = pid_tgid(), n = ARG1(ctx);
	struct record p = { .pid = id >> 32, .tid = (u32)id, .n = n };
	struct record *r = ringbuf_reserve(&ring, sizeof(*r), 0);

	if (r) {
		*r = p;
		ringbuf_submit(r, 0);
	}
	perf_event_output(ctx, &perf, CURRENT_CPU, &p, sizeof(p));
	perf_event_output(ctx, &raw, CURRENT_CPU, &n, sizeof(n));
	printk("probed %d", n);
	return 1;
}
