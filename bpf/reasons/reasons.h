/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Contexts and helpers that the programs here share. */
#include "skep.h"

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct __sk_buff {
	u32 len, pkt_type, mark, queue_mapping, protocol, vlan_present, vlan_tci, vlan_proto, priority;
	u32 ingress_ifindex, ifindex, tc_index, cb[5], hash, tc_classid, data, data_end;
};

enum { XDP_DROP = 1, XDP_PASS = 2 };

struct bpf_spin_lock {
	u32 val;
};

struct bpf_dynptr {
	u64 opaque[2];
} __attribute__((aligned(8)));

static long (*const skb_load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)26;
static long (*const probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;
static long (*const spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;
static long (*const loop)(u32 rounds, void *callback, void *ctx, u64 flags) = (void *)181;
static long (*const ringbuf_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static long (*const ringbuf_reserve_dynptr)(void *ring, u32 size, u64 flags, struct bpf_dynptr *to) = (void *)198;
static void (*const ringbuf_submit_dynptr)(struct bpf_dynptr *record, u64 flags) = (void *)199;
static void (*const ringbuf_discard_dynptr)(struct bpf_dynptr *record, u64 flags) = (void *)200;
static long (*const dynptr_write)(struct bpf_dynptr *to, u32 offset, void *from, u32 len, u64 flags) = (void *)202;
