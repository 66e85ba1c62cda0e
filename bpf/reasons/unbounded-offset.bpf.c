// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct table {
	u32 slots[16];
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct table);
} tables SEC(".maps");

SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	u32 key = 0;
	struct table *table = map_lookup(&tables, &key);

	if (!table)
		return XDP_PASS;
	table->slots[ctx->rx_queue_index] += 1;
	return XDP_PASS;
}

/* Fixed. */
SEC("xdp")
int accepted(struct xdp_md *ctx)
{
	u32 key = 0, queue = ctx->rx_queue_index;
	struct table *table = map_lookup(&tables, &key);

	if (!table || queue >= 16)
		return XDP_PASS;
	table->slots[queue] += 1;
	return XDP_PASS;
}
