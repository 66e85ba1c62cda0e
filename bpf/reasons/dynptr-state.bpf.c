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
	struct bpf_dynptr record;

	ringbuf_reserve_dynptr(&events, 8, 0, &record);
	*(volatile u64 *)&record = pid_tgid();
	ringbuf_submit_dynptr(&record, 0);
	return 0;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	u64 id = pid_tgid();
	struct bpf_dynptr record;

	ringbuf_reserve_dynptr(&events, 8, 0, &record);
	dynptr_write(&record, 0, &id, sizeof(id), 0);
	ringbuf_submit_dynptr(&record, 0);
	return 0;
}
