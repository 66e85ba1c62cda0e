// SPDX-License-Identifier: MIT OR Apache-2.0
// packet-out-of-bounds
// A header whose place depends on the packet
// The length of the IP header is a number in the packet. The program has compared the IP header with `data_end`, but not what
// comes behind it. The kernel: `invalid access to packet, off=… size=2` and `offset is outside of the packet`; asked, among many, in
// [xdp-tools #267](https://github.com/xdp-project/xdp-tools/issues/267) and
// [bpf-developer-tutorial #158](https://github.com/eunomia-bpf/bpf-developer-tutorial/issues/158).
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct iphdr {
	u8 version_length, tos;
	u16 length, id, fragment;
	u8 ttl, protocol;
	u16 check;
	u32 from, to;
};

struct udphdr {
	u16 from, to, length, check;
};

SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	void *data = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	struct iphdr *ip = data + 14;

	if ((void *)(ip + 1) > end)
		return XDP_PASS;

	struct udphdr *udp = (void *)ip + (ip->version_length & 15) * 4;

	return udp->to == 0x3500 ? XDP_DROP : XDP_PASS;
}

/* Fixed. */
SEC("xdp")
int accepted(struct xdp_md *ctx)
{
	void *data = (void *)(u64)ctx->data, *end = (void *)(u64)ctx->data_end;
	struct iphdr *ip = data + 14;

	if ((void *)(ip + 1) > end)
		return XDP_PASS;

	struct udphdr *udp = (void *)ip + (ip->version_length & 15) * 4;

	if ((void *)(udp + 1) > end)
		return XDP_PASS;
	return udp->to == 0x3500 ? XDP_DROP : XDP_PASS;
}
