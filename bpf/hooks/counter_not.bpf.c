// SPDX-License-Identifier: MIT OR Apache-2.0
// Lacks the one that is not.
#include "skep.h"

struct sum {
	u64 total;
	u32 version;
	u32 key;
} __attribute__((preserve_access_index));

SEC("hook/counter/clear")
int clear(struct sum *s)
{
	return 0;
}
