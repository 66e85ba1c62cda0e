// SPDX-License-Identifier: MIT OR Apache-2.0
// Functions that helpers call back.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static long (*const for_each)(void *map, void *callback, void *ctx, u64 flags) = (void *)164;
static long (*const loop)(u32 n, void *callback, void *ctx, u64 flags) = (void *)181;

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} values SEC(".maps");

u32 rounds = 10;
u64 total;
u64 each;

static long count(u32 index, u64 *sum)
{
	*sum += index;
	return 0;
}

static long add(void *map, u32 *key, u64 *value, u64 *sum)
{
	*sum += *value;
	return 0;
}

SEC("classifier")
int looped(void *ctx)
{
	u64 sum = 0, all = 0;
	long n = loop(rounds, count, &sum, 0);

	for_each(&values, add, &all, 0);
	total = sum;
	each = all;
	return n;
}
