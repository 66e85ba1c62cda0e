// SPDX-License-Identifier: MIT OR Apache-2.0
// The smallest programs there are, two instructions, for the price of a hit.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("kprobe")
int on_entry(struct pt_regs *ctx)
{
	return 0;
}

SEC("kretprobe")
int on_return(struct pt_regs *ctx)
{
	return 0;
}
