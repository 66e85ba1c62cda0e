// SPDX-License-Identifier: MIT OR Apache-2.0
// Has both operations.
#define STEP 1
#include "counter.h"

SEC("hook/counter/clear")
int clear(struct sum *s)
{
	s->total = 0;
	return STEP;
}
