// SPDX-License-Identifier: MIT OR Apache-2.0
// Files that a program opens: the path that it gave, and the descriptor or error that it got.
//
//	skep trace bpf/opensnoop.bpf.o -- cat /etc/hostname
#include "syscalls.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct opened {
	u32 pid;
	u32 tid;
	s32 result;	/* a descriptor, or an error below 0 */
	u32 flags;
	char comm[16];
	char path[128];
};
const struct opened *unused_events __attribute__((unused));

struct request {
	const char *path;
	u64 flags;
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct request);
} requests SEC(".maps");

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

SEC("tp/syscalls/sys_enter_openat")
int on_openat(struct sys_enter *ctx)
{
	struct request r = { .path = (const char *)ctx->args[1], .flags = ctx->args[2] };
	u64 id = pid_tgid();

	map_update(&requests, &id, &r, ANY);
	return 0;
}

SEC("tp/syscalls/sys_exit_openat")
int on_opened(struct sys_exit *ctx)
{
	u64 id = pid_tgid();
	struct request *r = map_lookup(&requests, &id);
	struct opened *o;

	if (!r)
		return 0;
	o = ringbuf_reserve(&events, sizeof(*o), 0);
	if (o) {
		o->pid = id >> 32;
		o->tid = (u32)id;
		o->result = ctx->ret;
		o->flags = r->flags;
		current_comm(o->comm, sizeof(o->comm));
		probe_read_user_str(o->path, sizeof(o->path), r->path);
		ringbuf_submit(o, 0);
	}
	map_delete(&requests, &id);
	return 0;
}
