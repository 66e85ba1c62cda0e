// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	u32 sum = 0;

	for (u32 i = 0; i < 1000000; i++) {
		asm volatile("" : "+r"(sum));
		sum += i;
	}
	return sum;
}

/* Fixed. */
static long round(u32 i, u32 *sum)
{
	*sum += i;
	return 0;
}

SEC("socket")
int accepted(struct __sk_buff *skb)
{
	u32 sum = 0;

	loop(1000000, round, &sum, 0);
	return sum;
}
