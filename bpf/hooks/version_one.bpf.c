// SPDX-License-Identifier: MIT OR Apache-2.0
#define VERSION 1
#include "version.h"

// Runs longer than a hook's budget.
SEC("hook/sum")
int endless(struct sum *s)
{
	u64 n = 0;

	for (u32 i = 0; i < 100000; i++)
		n += prandom() & 1;
	s->total = n;
	return 0;
}
