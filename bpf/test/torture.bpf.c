// SPDX-License-Identifier: MIT OR Apache-2.0
// Entries and returns of much used library functions, and of `leaf`: each hit works with all kinds of maps and helpers.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 512);
	__type(key, u64);
	__type(value, u64);
} seen SEC(".maps");

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 64 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, MAP_STACK_TRACE);
	__uint(max_entries, 1024);
	__uint(key_size, 4);
	__uint(value_size, 16 * 8);
} stacks SEC(".maps");

static __attribute__((noinline)) int work(struct pt_regs *ctx, u32 kind)
{
	u64 *n = map_lookup(&counts, &kind);
	u64 key = ctx->rip % 1024, buffer[8] = {};
	u64 *record;

	if (n)
		*n += 1;
	if (map_update(&seen, &key, &key, ANY))
		map_delete(&seen, &key);
	probe_read_user(buffer, sizeof(buffer), (void *)ctx->rsp);
	probe_read_user(buffer, sizeof(buffer), (void *)ctx->rdi);
	probe_read_user_str(buffer, sizeof(buffer), (void *)ctx->rsi);
	if (key % 8 == 0)
		get_stackid(ctx, &stacks, USER_STACK);
	record = ringbuf_reserve(&ring, 64, 0);
	if (record) {
		record[0] = buffer[0] ^ pid_tgid() ^ ktime_ns();
		if (key & 1)
			ringbuf_submit(record, 0);
		else
			ringbuf_discard(record, 0);
	}
	return 0;
}

#define BOTH(name)                                   \
	SEC("kprobe/" #name)                         \
	int e_##name(struct pt_regs *ctx)            \
	{                                            \
		return work(ctx, 0);                 \
	}                                            \
	SEC("kretprobe/" #name)                      \
	int r_##name(struct pt_regs *ctx)            \
	{                                            \
		return work(ctx, 1);                 \
	}

BOTH(leaf)
BOTH(malloc)
BOTH(free)
BOTH(calloc)
BOTH(strlen)
BOTH(pthread_mutex_lock)
BOTH(pthread_mutex_unlock)
BOTH(pthread_create)
BOTH(pthread_exit)
BOTH(write)
BOTH(read)
BOTH(sigaction)
BOTH(siglongjmp)
BOTH(clock_gettime)
BOTH(sigaltstack)
BOTH(fork)
BOTH(waitpid)
BOTH(__cxa_throw)
BOTH(__cxa_begin_catch)
BOTH(_Unwind_RaiseException)
BOTH(_Unwind_Resume)
BOTH(_Unwind_GetIP)
