// SPDX-License-Identifier: MIT OR Apache-2.0
// A value with a spin lock.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct bpf_spin_lock {
	u32 val;
};

static long (*const spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;

struct both {
	struct bpf_spin_lock lock;
	u32 one;
	u64 two;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct both);
} values SEC(".maps");

SEC("classifier")
int add(void *ctx)
{
	u32 key = 0;
	struct both *v = map_lookup(&values, &key);

	if (!v)
		return 1;
	spin_lock(&v->lock);
	v->one += 1;
	v->two += 2;
	spin_unlock(&v->lock);
	return 0;
}
