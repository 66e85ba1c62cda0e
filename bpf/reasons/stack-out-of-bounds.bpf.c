// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	volatile u8 name[16] = {};

	return name[skb->mark & 31];
}

/* Fixed. */
SEC("socket")
int accepted(struct __sk_buff *skb)
{
	volatile u8 name[16] = {};

	return name[skb->mark & 15];
}
