// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	u64 words[8] = {};
	u64 place = (u64)&words;

	/* Round up to 64 bytes. */
	asm volatile("" : "+r"(place));
	place = (place + 63) & ~63ULL;
	return *(volatile u64 *)place;
}

/* Fixed. */
SEC("socket")
int accepted(struct __sk_buff *skb)
{
	u64 words[8] __attribute__((aligned(8))) = {};
	u64 index = (skb->mark + 63) & 7;

	return *(volatile u64 *)&words[index];
}
