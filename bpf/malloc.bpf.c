// SPDX-License-Identifier: MIT OR Apache-2.0
// Sizes that a program asks its allocator for, as one log2 histogram per function.
//
//	skep trace bpf/malloc.bpf.o -- ls -l
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum allocator {
	MALLOC,
	CALLOC,
	REALLOC,
	ALLOCATORS,
};

struct sizes {
	u64 calls;
	u64 bytes;
	u64 slots[40];
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, ALLOCATORS);
	__type(key, enum allocator);
	__type(value, struct sizes);
} sizes SEC(".maps");

static inline __attribute__((always_inline)) int count(enum allocator who, u64 size)
{
	struct sizes *s = map_lookup(&sizes, &who);
	u32 slot = log2_slot(size);

	if (!s)
		return 0;
	if (slot >= 40)
		slot = 39;
	__sync_fetch_and_add(&s->calls, 1);
	__sync_fetch_and_add(&s->bytes, size);
	__sync_fetch_and_add(&s->slots[slot], 1);
	return 0;
}

SEC("kprobe/malloc")
int on_malloc(struct pt_regs *ctx)
{
	return count(MALLOC, ARG1(ctx));
}

SEC("kprobe/calloc")
int on_calloc(struct pt_regs *ctx)
{
	return count(CALLOC, ARG1(ctx) * ARG2(ctx));
}

SEC("kprobe/realloc")
int on_realloc(struct pt_regs *ctx)
{
	return count(REALLOC, ARG2(ctx));
}
