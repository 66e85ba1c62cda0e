// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define CALLS(name, next) \
	static __attribute__((noinline)) int name(struct __sk_buff *skb) \
	{                                                          \
		return next + skb->len;                            \
	}

CALLS(h, skb->mark)
CALLS(g, h(skb))
CALLS(f, g(skb))
CALLS(e, f(skb))
CALLS(d, e(skb))
CALLS(c, d(skb))
CALLS(b, c(skb))
CALLS(a, b(skb))

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	return a(skb);
}

/* Fixed. */
SEC("socket")
int accepted(struct __sk_buff *skb)
{
	return b(skb);
}
