// SPDX-License-Identifier: MIT OR Apache-2.0
// What benches/hooks measures: nothing at all, and a small policy with one look-up.
#include "skep.h"

struct packet_info {
	u32 address;
	u16 port;
	u16 length;
} __attribute__((preserve_access_index));

struct {
	__uint(type, MAP_HASH);
	__type(key, u32);
	__type(value, u64);
	__uint(max_entries, 16384);
} budgets SEC(".maps");

SEC("hook/packet")
int nothing(struct packet_info *p)
{
	return 0;
}

SEC("hook/packet")
int policy(struct packet_info *p)
{
	u32 address = p->address;
	u64 *left;

	if (p->port == 22 || p->length > 1500)
		return 1;
	left = map_lookup(&budgets, &address);
	if (!left)
		return 1;
	if (*left < p->length)
		return 2;
	*left -= p->length;
	return 0;
}
