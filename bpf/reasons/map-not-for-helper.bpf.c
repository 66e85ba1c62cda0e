// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	u64 id = pid_tgid();

	return perf_event_output(ctx, &events, CURRENT_CPU, &id, sizeof(id));
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	u64 id = pid_tgid();

	return ringbuf_output(&events, &id, sizeof(id), 0);
}
