// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static __attribute__((noinline)) int inner(struct __sk_buff *skb)
{
	char buffer[304];

	skb_load_bytes(skb, 0, buffer, sizeof(buffer));
	return buffer[0];
}

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	char buffer[304];

	skb_load_bytes(skb, 0, buffer, sizeof(buffer));
	return inner(skb) + buffer[0];
}

/* Fixed. */
struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, char[304]);
} buffers SEC(".maps");

SEC("socket")
int accepted(struct __sk_buff *skb)
{
	u32 key = 0;
	char *buffer = map_lookup(&buffers, &key);

	if (!buffer)
		return 0;
	skb_load_bytes(skb, 0, buffer, 304);
	return inner(skb) + buffer[0];
}
