// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts returns of the function that `--func` names.
#include "test/cost.h"

SEC("kretprobe")
int on_return(struct pt_regs *ctx)
{
	return count();
}
