// SPDX-License-Identifier: MIT OR Apache-2.0
// A plug-in that keeps two numbers of a map's value together with a lock, and calls a function of its own back.
#include "skep.h"

struct bpf_spin_lock {
	u32 word;
};

struct pair {
	struct bpf_spin_lock lock;
	u32 pad;
	u64 calls;
	u64 twice;
};

struct sum {
	u64 total;
	u32 version;
	u32 key;
} __attribute__((preserve_access_index));

struct {
	__uint(type, MAP_ARRAY);
	__type(key, u32);
	__type(value, struct pair);
	__uint(max_entries, 1);
} pairs SEC(".maps");

static long (*const spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;
static long (*const loop)(u32 times, void *function, void *ctx, u64 flags) = (void *)181;

static long count(u32 index, u64 *total)
{
	*total += index;
	return 0;
}

SEC("hook/sum")
int add(struct sum *s)
{
	u32 key = 0;
	u64 total = 0;
	struct pair *p = map_lookup(&pairs, &key);

	if (!p)
		return 0;
	spin_lock(&p->lock);
	p->calls += 1;
	p->twice = 2 * p->calls;
	spin_unlock(&p->lock);
	loop(10, count, &total, 0);
	s->total += total;
	return 0;
}
