// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	while (*(volatile u32 *)&skb->mark)
		;
	return 0;
}

/* Fixed. */
SEC("socket")
int accepted(struct __sk_buff *skb)
{
	for (u32 i = 0; i < 100 && *(volatile u32 *)&skb->mark; i++)
		;
	return 0;
}
