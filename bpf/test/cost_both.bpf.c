// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts entries and returns of the function that `--func` names.
#include "test/cost.h"

SEC("kprobe")
int on_entry(struct pt_regs *ctx)
{
	return count();
}

SEC("kretprobe")
int on_return(struct pt_regs *ctx)
{
	return count();
}
