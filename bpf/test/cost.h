/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the benchmark of probes attaches: a count in a per-CPU array. */
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

static inline __attribute__((always_inline)) int count(void)
{
	u32 zero = 0;
	u64 *n = map_lookup(&counts, &zero);

	if (n)
		*n += 1;
	return 0;
}
