// SPDX-License-Identifier: MIT OR Apache-2.0
// Samples: the entry program returns the low bit of the first argument, so every second call is one.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	return ARG1(ctx) & 1;
}

SEC("kretprobe/probed")
int on_return(struct pt_regs *ctx)
{
	return 1;
}
