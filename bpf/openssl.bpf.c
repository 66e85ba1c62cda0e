// SPDX-License-Identifier: MIT OR Apache-2.0
// What a program sends and receives through OpenSSL, in clear: payloads at the entry of SSL_write and the return of SSL_read.
//
//	skep trace bpf/openssl.bpf.o --pid 4711
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define CAPTURE 1024

enum direction {
	SENT,
	RECEIVED,
};

struct tls {
	u64 time_ns;
	u32 pid;
	u32 tid;
	enum direction direction;
	u32 length;		/* bytes of the call */
	u32 captured;		/* bytes in data */
	char comm[16];
	char data[CAPTURE];
};
const struct tls *unused_events __attribute__((unused));

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

struct read {
	u64 buffer;
	u64 done;	/* where SSL_read_ex stores the length; 0 for SSL_read */
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct read);
} reads SEC(".maps");

static inline __attribute__((always_inline)) void emit(enum direction direction, u64 buffer, u64 length)
{
	struct tls *e;
	u64 id = pid_tgid();
	u32 n = length < CAPTURE - 1 ? (u32)length : CAPTURE - 1;

	e = ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return;
	e->time_ns = ktime_ns();
	e->pid = id >> 32;
	e->tid = (u32)id;
	e->direction = direction;
	e->length = (u32)length;
	current_comm(e->comm, sizeof(e->comm));
	n &= CAPTURE - 1;
	if (probe_read_user(e->data, n, (void *)buffer))
		n = 0;
	e->captured = n;
	e->data[n & (CAPTURE - 1)] = 0;
	ringbuf_submit(e, 0);
}

SEC("kprobe/SSL_write")
int on_write(struct pt_regs *ctx)
{
	s32 length = (s32)ARG3(ctx);

	if (length > 0)
		emit(SENT, ARG2(ctx), (u32)length);
	return 0;
}

SEC("kprobe/SSL_write_ex")
int on_write_ex(struct pt_regs *ctx)
{
	if (ARG3(ctx))
		emit(SENT, ARG2(ctx), ARG3(ctx));
	return 0;
}

SEC("kprobe/SSL_read")
int on_read(struct pt_regs *ctx)
{
	u64 id = pid_tgid();
	struct read r = { .buffer = ARG2(ctx) };

	map_update(&reads, &id, &r, ANY);
	return 0;
}

SEC("kprobe/SSL_read_ex")
int on_read_ex(struct pt_regs *ctx)
{
	u64 id = pid_tgid();
	struct read r = { .buffer = ARG2(ctx), .done = ARG4(ctx) };

	map_update(&reads, &id, &r, ANY);
	return 0;
}

SEC("kretprobe/SSL_read")
int on_read_done(struct pt_regs *ctx)
{
	u64 id = pid_tgid();
	struct read *r = map_lookup(&reads, &id);
	s32 length = (s32)RETVAL(ctx);

	if (!r)
		return 0;
	if (length > 0)
		emit(RECEIVED, r->buffer, (u32)length);
	map_delete(&reads, &id);
	return 0;
}

SEC("kretprobe/SSL_read_ex")
int on_read_ex_done(struct pt_regs *ctx)
{
	u64 id = pid_tgid(), length = 0;
	struct read *r = map_lookup(&reads, &id);

	if (!r)
		return 0;
	if ((s32)RETVAL(ctx) == 1 && !probe_read_user(&length, sizeof(length), (void *)r->done) && length)
		emit(RECEIVED, r->buffer, length);
	map_delete(&reads, &id);
	return 0;
}
