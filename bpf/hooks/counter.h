/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The operations `counter` of crates/skep/tests/host.rs; STEP tells implementations apart. */
#include "skep.h"

struct sum {
	u64 total;
	u32 version;
	u32 key;
} __attribute__((preserve_access_index));

SEC("hook/counter/add")
int add(struct sum *s)
{
	s->total += STEP;
	s->version = STEP;
	return STEP;
}
