// SPDX-License-Identifier: MIT OR Apache-2.0
// First arguments of a function that `--func` names, counted.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 16384);
	__type(key, u64);
	__type(value, u64);
} arguments SEC(".maps");

SEC("kprobe")
int first_argument(struct pt_regs *ctx)
{
	u64 arg = ARG1(ctx), one = 1, *n = map_lookup(&arguments, &arg);

	if (n)
		__sync_fetch_and_add(n, 1);
	else
		map_update(&arguments, &arg, &one, ANY);
	return 0;
}
