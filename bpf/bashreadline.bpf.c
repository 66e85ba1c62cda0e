// SPDX-License-Identifier: MIT OR Apache-2.0
// Lines typed into a shell that uses readline.
//
//	skep trace bpf/bashreadline.bpf.o --pid $$
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct line {
	u32 pid;
	char comm[16];
	char text[256];
};
const struct line *unused_events __attribute__((unused));

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

SEC("kretprobe/readline")
int on_line(struct pt_regs *ctx)
{
	void *text = (void *)RETVAL(ctx);
	struct line *e;

	if (!text)
		return 0;
	e = ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 0;
	e->pid = pid_tgid() >> 32;
	current_comm(e->comm, sizeof(e->comm));
	if (probe_read_user_str(e->text, sizeof(e->text), text) < 0) {
		ringbuf_discard(e, 0);
		return 0;
	}
	ringbuf_submit(e, 0);
	return 0;
}
