// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile u32 limit = 10;

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	*(volatile u32 *)&limit = skb->mark;
	return limit;
}

/* Fixed. */
u32 current;

SEC("socket")
int accepted(struct __sk_buff *skb)
{
	current = skb->mark;
	return limit;
}
