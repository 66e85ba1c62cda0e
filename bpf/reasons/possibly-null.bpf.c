// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

SEC("xdp")
int rejected(struct xdp_md *ctx)
{
	u32 key = 1;
	u64 *count = map_lookup(&counts, &key);

	*count += 1;
	return XDP_PASS;
}

/* Fixed. */
SEC("xdp")
int accepted(struct xdp_md *ctx)
{
	u32 key = 1;
	u64 *count = map_lookup(&counts, &key);

	if (!count)
		return XDP_PASS;
	*count += 1;
	return XDP_PASS;
}
