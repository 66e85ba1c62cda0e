// SPDX-License-Identifier: MIT OR Apache-2.0
// What a program has allocated and not freed: an entry per live block, with its size, age and caller.
//
//	skep trace --duration 10 bpf/age.bpf.o --pid 4711
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct request {
	u64 size;
	u64 caller;
};

struct block {
	u64 size;
	u64 allocated_ns;	/* monotonic clock */
	void *caller;
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 4096);
	__type(key, u64);
	__type(value, struct request);
} requests SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 65536);
	__type(key, void *);
	__type(value, struct block);
} blocks SEC(".maps");

static inline __attribute__((always_inline)) int request(struct pt_regs *ctx, u64 size)
{
	struct request r = { .size = size };
	u64 id = pid_tgid();

	probe_read_user(&r.caller, sizeof(r.caller), (void *)ctx->rsp);
	map_update(&requests, &id, &r, ANY);
	return 0;
}

static inline __attribute__((always_inline)) int allocated(struct pt_regs *ctx)
{
	u64 id = pid_tgid(), address = RETVAL(ctx);
	struct request *r = map_lookup(&requests, &id);
	struct block b = {};

	if (!r)
		return 0;
	b.size = r->size;
	b.caller = (void *)r->caller;
	map_delete(&requests, &id);
	if (!address)
		return 0;
	b.allocated_ns = ktime_ns();
	map_update(&blocks, &address, &b, ANY);
	return 0;
}

SEC("kprobe/malloc")
int on_malloc(struct pt_regs *ctx)
{
	return request(ctx, ARG1(ctx));
}

SEC("kretprobe/malloc")
int on_malloc_done(struct pt_regs *ctx)
{
	return allocated(ctx);
}

SEC("kprobe/calloc")
int on_calloc(struct pt_regs *ctx)
{
	return request(ctx, ARG1(ctx) * ARG2(ctx));
}

SEC("kretprobe/calloc")
int on_calloc_done(struct pt_regs *ctx)
{
	return allocated(ctx);
}

SEC("kprobe/realloc")
int on_realloc(struct pt_regs *ctx)
{
	u64 old = ARG1(ctx);

	map_delete(&blocks, &old);
	return request(ctx, ARG2(ctx));
}

SEC("kretprobe/realloc")
int on_realloc_done(struct pt_regs *ctx)
{
	return allocated(ctx);
}

SEC("kprobe/free")
int on_free(struct pt_regs *ctx)
{
	u64 address = ARG1(ctx);

	map_delete(&blocks, &address);
	return 0;
}
