// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("tc")
int rejected(struct __sk_buff *skb)
{
	return *(u32 *)((void *)skb->cb + (skb->mark & 3) * 4);
}

/* Fixed. */
SEC("tc")
int accepted(struct __sk_buff *skb)
{
	u32 cb[4];

	for (u32 i = 0; i < 4; i++)
		cb[i] = *(volatile u32 *)&skb->cb[i];
	return *(volatile u32 *)&cb[skb->mark & 3];
}
