// SPDX-License-Identifier: MIT OR Apache-2.0
// not-a-pointer
// A pointer into a packet that has moved
// A helper that may move the packet takes all checked pointers away, as the documentation of
// [`bpf_skb_pull_data`](https://docs.ebpf.io/linux/helper-function/bpf_skb_pull_data) warns. The kernel: `R7 invalid mem access 'scalar'`, which does
// not name the call that did it.
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static long (*const skb_pull_data)(struct __sk_buff *skb, u32 len) = (void *)39;

SEC("tc")
int rejected(struct __sk_buff *skb)
{
	u8 *data = (void *)(u64)skb->data, *end = (void *)(u64)skb->data_end;

	if (data + 34 > end)
		return 0;
	if (data[23] == 6)
		skb_pull_data(skb, 54);
	return data[22];
}

/* Fixed. */
SEC("tc")
int accepted(struct __sk_buff *skb)
{
	u8 *data = (void *)(u64)skb->data, *end = (void *)(u64)skb->data_end;

	if (data + 34 > end)
		return 0;
	if (data[23] == 6)
		skb_pull_data(skb, 54);
	data = (void *)(u64)skb->data;
	end = (void *)(u64)skb->data_end;
	if (data + 34 > end)
		return 0;
	return data[22];
}
