// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct ethhdr {
	u8 to[6], from[6];
	u16 proto;
};

SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(u64)ctx->data;

	return eth->proto == 0xdd86 ? XDP_DROP : XDP_PASS;
}

/* Fixed. */
SEC("xdp")
int accepted(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(u64)ctx->data;
	void *end = (void *)(u64)ctx->data_end;

	if ((void *)(eth + 1) > end)
		return XDP_PASS;
	return eth->proto == 0xdd86 ? XDP_DROP : XDP_PASS;
}
