// SPDX-License-Identifier: MIT OR Apache-2.0
// Two functions that each fit, and together take more stack than there is.
#include "functions.h"

static __attribute__((noinline)) u64 below(u32 key)
{
	u8 buf[300] = {};

	fill(buf, sizeof(buf));
	return weigh(buf, sizeof(buf)) + key;
}

SEC("hook/sum")
int add(struct sum *s)
{
	u8 buf[300] = {};

	fill(buf, sizeof(buf));
	s->total = below(s->key) + weigh(buf, sizeof(buf));
	return 0;
}
