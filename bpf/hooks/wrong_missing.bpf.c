// SPDX-License-Identifier: MIT OR Apache-2.0
// Calls a function that no application has.
#include "functions.h"

extern u32 nowhere(u32 key) __ksym;

SEC("hook/sum")
int add(struct sum *s)
{
	return nowhere(s->key);
}
