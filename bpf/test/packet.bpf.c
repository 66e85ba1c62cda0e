// SPDX-License-Identifier: MIT OR Apache-2.0
// Test runs: packets and raw tracepoints.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct __sk_buff {
	u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
	u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
};

SEC("xdp")
int swap(struct xdp_md *ctx)
{
	u8 *data = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	u8 first;

	if (data + 12 > end)
		return 1;
	first = data[0];
	data[0] = data[6];
	data[6] = first;
	return 3;
}

SEC("tc")
int length(struct __sk_buff *skb)
{
	skb->mark += 1;
	return skb->len;
}

SEC("socket")
int accept(struct __sk_buff *skb)
{
	return skb->len;
}

struct raw_args {
	u64 args[2];
};

SEC("raw_tp")
int sum(struct raw_args *ctx)
{
	return ctx->args[0] + ctx->args[1];
}

SEC("kprobe")
int first(struct pt_regs *ctx)
{
	return ARG1(ctx);
}

/* Out of bounds on purpose. */
SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	u8 *data = (void *)(u64)ctx->data;

	return data[0];
}
