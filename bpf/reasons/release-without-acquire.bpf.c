// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

SEC("tracepoint")
int rejected(void *ctx)
{
	u64 *record = ringbuf_reserve(&events, 2 * sizeof(*record), 0);

	if (!record)
		return 0;
	record[0] = pid_tgid();
	ringbuf_submit(record + 1, 0);
	return 0;
}

/* Fixed. */
SEC("tracepoint")
int accepted(void *ctx)
{
	u64 *record = ringbuf_reserve(&events, 2 * sizeof(*record), 0);

	if (!record)
		return 0;
	record[0] = pid_tgid();
	ringbuf_submit(record, 0);
	return 0;
}
