// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static long (*const not_yet)(void) = (void *)9999;

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	return not_yet();
}
