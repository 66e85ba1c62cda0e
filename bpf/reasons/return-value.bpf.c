// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("cgroup_skb/egress")
int rejected(struct __sk_buff *skb)
{
	return skb->len;
}

/* Fixed. */
SEC("cgroup_skb/egress")
int accepted(struct __sk_buff *skb)
{
	return skb->len > 1500 ? 0 : 1;
}
