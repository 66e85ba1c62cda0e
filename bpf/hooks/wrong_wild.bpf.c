// SPDX-License-Identifier: MIT OR Apache-2.0
// Reads behind its context.
#include "skep.h"

SEC("hook/sum")
int add(const u64 *s)
{
	return s[9] != 0;
}
