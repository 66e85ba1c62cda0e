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
	void *record = ringbuf_reserve(&events, ARG2(ctx), 0);

	if (record)
		ringbuf_submit(record, 0);
	return 0;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	void *record = ringbuf_reserve(&events, 256, 0);

	if (record)
		ringbuf_submit(record, 0);
	return 0;
}
