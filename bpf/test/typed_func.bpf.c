// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts and sums up what functions that `--func` names are called with and return: `int f(int, ...)`.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct sums {
	u64 calls;
	s64 first;
	u64 returns;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct sums);
} sums SEC(".maps");

SEC("fentry")
int on_entry(u64 *ctx)
{
	u32 zero = 0;
	struct sums *s = map_lookup(&sums, &zero);

	if (s) {
		s->calls++;
		s->first += ctx[0];
	}
	return 0;
}

SEC("fexit")
int on_exit(u64 *ctx)
{
	u32 zero = 0;
	struct sums *s = map_lookup(&sums, &zero);

	if (s)
		s->returns++;
	return 0;
}
