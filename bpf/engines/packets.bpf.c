// SPDX-License-Identifier: MIT OR Apache-2.0
// Bytes of packets, and checksums.
#include "engine.h"

static long (*const skb_store_bytes)(struct __sk_buff *skb, u32 offset, const void *from, u32 len, u64 flags) = (void *)9;
static long (*const skb_load_bytes)(const void *skb, u32 offset, void *to, u32 len) = (void *)26;
static s64 (*const csum_diff)(u32 *from, u32 from_size, u32 *to, u32 to_size, u32 seed) = (void *)28;
static long (*const skb_pull_data)(struct __sk_buff *skb, u32 len) = (void *)39;
static s64 (*const csum_update)(struct __sk_buff *skb, u32 csum) = (void *)40;
static long (*const load_relative)(const void *skb, u32 offset, void *to, u32 len, u32 header) = (void *)68;
static long (*const xdp_load_bytes)(struct xdp_md *xdp, u32 offset, void *buf, u32 len) = (void *)189;
static long (*const xdp_store_bytes)(struct xdp_md *xdp, u32 offset, void *buf, u32 len) = (void *)190;

u32 far = 60;

#define MIX(h, x) ((h) = (h) * 31 + (u64)(x))
#define FOLD(h) ((h) ^ (h) >> 32)

SEC("tc") int loads(struct __sk_buff *skb)
{
	u64 h = 0, x = 1;

	for (u32 at = 0; at < 72; at += 5) {
		MIX(h, skb_load_bytes(skb, at, &x, 8));
		MIX(h, x);
		for (u32 header = 0; header < 3; header++) {
			MIX(h, load_relative(skb, at, &x, 8, header));
			MIX(h, x);
		}
	}
	MIX(h, skb_load_bytes(skb, -far, &x, 8));
	MIX(h, x);
	MIX(h, load_relative(skb, 0x10000, &x, 8, 0));
	return FOLD(h);
}

SEC("socket") int loads_of_sockets(struct __sk_buff *skb)
{
	u64 h = 0, x = 1;

	for (u32 at = 0; at < 72; at += 5) {
		MIX(h, skb_load_bytes(skb, at, &x, 8));
		MIX(h, x);
		for (u32 header = 0; header < 3; header++) {
			MIX(h, load_relative(skb, at, &x, 8, header));
			MIX(h, x);
		}
	}
	return FOLD(h);
}

SEC("tc") int stores(struct __sk_buff *skb)
{
	u64 h = 0, x = 0x1122334455667788, y;

	MIX(h, skb_store_bytes(skb, 20, &x, 8, 0));
	MIX(h, skb_store_bytes(skb, far, &x, 8, 0));
	MIX(h, skb_store_bytes(skb, 30, &x, 8, far));
	MIX(h, skb_pull_data(skb, far));
	MIX(h, skb_pull_data(skb, far + 5));
	MIX(h, csum_update(skb, 5));
	for (u32 at = 0; at < 56; at += 3) {
		skb_load_bytes(skb, at, &y, 8);
		MIX(h, y);
	}
	return FOLD(h);
}

SEC("xdp") int frames(struct xdp_md *xdp)
{
	u64 h = 0, x = 0x1122334455667788, y = 3;

	MIX(h, xdp_store_bytes(xdp, 20, &x, 8));
	MIX(h, xdp_store_bytes(xdp, far, &x, 8));
	for (u32 at = 0; at < 70; at += 3) {
		MIX(h, xdp_load_bytes(xdp, at, &y, 8));
		MIX(h, y);
	}
	return FOLD(h);
}

static u32 data[16] = { 1, 0xffffffff, 0xfffffffe, 0x12345678, 0x9abcdef0, 0, 0, 0, 0x80000000, 0x8000, 0x7fff, 0xffff };

SEC("tc") int checksums(struct __sk_buff *skb)
{
	u32 here[16], there[16];
	u64 h = 0;

	for (u32 i = 0; i < 16; i++) {
		here[i] = data[i];
		there[i] = data[(i * 7 + 3) & 15] + far;
	}
	MIX(h, csum_diff(here, 64, there, 64, 0));
	MIX(h, csum_diff(here, 64, there, 64, far));
	MIX(h, csum_diff(here, 16, there, 48, 0xffff1234));
	MIX(h, csum_diff(here, 0, there, 48, 0xffff1234));
	MIX(h, csum_diff(NULL, 0, there, 12, 0));
	MIX(h, csum_diff(here, 20, NULL, 0, 0));
	MIX(h, csum_diff(here, 20, NULL, 0, 0xfedc4321));
	MIX(h, csum_diff(here, 4, here, 4, 0));
	MIX(h, csum_diff(here + 5, 12, here + 5, 12, 0));
	MIX(h, csum_diff(NULL, 0, here + 5, 12, 0));
	MIX(h, csum_diff(here + 5, 12, NULL, 0, 0));
	MIX(h, csum_diff(here + 3, 7, NULL, 0, 0));
	MIX(h, csum_diff(here + 3, 5, here + 8, 15, 1));
	MIX(h, csum_diff(NULL, 0, NULL, 0, 0xffffffff));
	return FOLD(h);
}
