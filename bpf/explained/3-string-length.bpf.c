// SPDX-License-Identifier: MIT OR Apache-2.0
// argument-size
// A length that may be negative
// The length is compared with the size of the buffer, and still the kernel says `R2 min value is negative, either use unsigned or
// 'var &= const'` ([bcc #2391](https://github.com/iovisor/bcc/issues/2391), [#5251](https://github.com/iovisor/bcc/issues/5251)): the comparison is of
// signed numbers, and −1 passes it.
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct event {
	u32 size;
	char text[256];
};

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	struct event *event = ringbuf_reserve(&events, sizeof(*event), 0);
	s32 size = ARG2(ctx);

	if (!event)
		return 0;
	if (size > (s32)sizeof(event->text))
		size = sizeof(event->text);
	event->size = size;
	probe_read_user(event->text, size, (void *)ARG1(ctx));
	ringbuf_submit(event, 0);
	return 0;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	struct event *event = ringbuf_reserve(&events, sizeof(*event), 0);
	u64 size = ARG2(ctx);

	if (!event)
		return 0;
	if (size > sizeof(event->text))
		size = sizeof(event->text);
	event->size = size;
	probe_read_user(event->text, size, (void *)ARG1(ctx));
	ringbuf_submit(event, 0);
	return 0;
}
