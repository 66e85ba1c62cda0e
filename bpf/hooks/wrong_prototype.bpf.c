// SPDX-License-Identifier: MIT OR Apache-2.0
// Takes the application's function for another one.
#include "skep.h"

struct sum {
	u64 total;
	u32 version;
	u32 key;
} __attribute__((preserve_access_index));

extern u64 weigh(u32 key) __attribute__((section(".ksyms")));

SEC("hook/sum")
int add(struct sum *s)
{
	s->total = weigh(s->key);
	return 0;
}
