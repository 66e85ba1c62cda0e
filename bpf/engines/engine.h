/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the programs that both engines and the kernel run need besides skep.h. Each returns a number that says all of what it
 * saw; those whose names begin with alone_ are not given to the kernel. */
#ifndef ENGINE_H
#define ENGINE_H
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define KSYM extern __attribute__((section(".ksyms")))
#define NOINLINE static __attribute__((noinline))
#define HIDE(x) ({ asm volatile("" : "+r"(x)); })

struct __sk_buff {
	u32 len, pkt_type, mark, queue_mapping, protocol;
	u32 vlan_present, vlan_tci, vlan_proto, priority, ingress_ifindex, ifindex, tc_index;
	u32 cb[5];
	u32 hash, tc_classid, data, data_end;
};

struct xdp_md {
	u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

struct bpf_dynptr {
	u64 opaque[2];
} __attribute__((aligned(8)));

struct bpf_spin_lock {
	u32 val;
};

struct bpf_iter_num {
	u64 opaque[1];
} __attribute__((aligned(8)));

struct bpf_iter_bits {
	u64 opaque[2];
} __attribute__((aligned(8)));

static void *(*const map_lookup_percpu)(void *map, const void *key, u32 cpu) = (void *)195;
static long (*const for_each)(void *map, void *callback, void *ctx, u64 flags) = (void *)164;
static long (*const loop)(u32 n, void *callback, void *ctx, u64 flags) = (void *)181;

/* Leaves the loop that it is in once it has gone on for long enough. */
#define cond_break                                                      \
	({                                                              \
		__label__ l_break, l_continue;                          \
		asm volatile goto("may_goto %l[l_break]" :::: l_break); \
		goto l_continue;                                        \
	l_break:                                                        \
		break;                                                  \
	l_continue:;                                                    \
	})

#endif
