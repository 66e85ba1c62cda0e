// SPDX-License-Identifier: MIT OR Apache-2.0
// An event for each system call, and one for each return of one.
#include "syscalls.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct event {
	u32 pid;
	u32 tid;
	u32 exit;
	u32 padding;
	u64 number;
	u64 args[6];	/* the result in the first one, if it is a return */
	char path[64];	/* of an openat */
};
const struct event *unused_events __attribute__((unused));

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 1 << 22);
} events SEC(".maps");

static inline __attribute__((always_inline)) struct event *event(u64 number, u32 exit)
{
	struct event *e = ringbuf_reserve(&events, sizeof(*e), 0);
	u64 id = pid_tgid();

	if (!e)
		return e;
	__builtin_memset(e, 0, sizeof(*e));
	e->pid = id >> 32;
	e->tid = (u32)id;
	e->exit = exit;
	e->number = number;
	return e;
}

SEC("tracepoint/raw_syscalls/sys_enter")
int on_enter(struct sys_enter *ctx)
{
	struct event *e = event(ctx->number, 0);

	if (!e)
		return 0;
	e->args[0] = ctx->args[0];
	e->args[1] = ctx->args[1];
	e->args[2] = ctx->args[2];
	e->args[3] = ctx->args[3];
	e->args[4] = ctx->args[4];
	e->args[5] = ctx->args[5];
	if (e->number == 257)
		probe_read_user_str(e->path, sizeof(e->path), (void *)e->args[1]);
	ringbuf_submit(e, 0);
	return 0;
}

SEC("tracepoint/raw_syscalls/sys_exit")
int on_exit(struct sys_exit *ctx)
{
	struct event *e = event(ctx->number, 1);

	if (!e)
		return 0;
	e->args[0] = ctx->ret;
	ringbuf_submit(e, 0);
	return 0;
}
