// SPDX-License-Identifier: MIT OR Apache-2.0
// The shortest entry probe: two instructions on the function that `--func` names.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("kprobe")
int on_entry(struct pt_regs *ctx)
{
	return 0;
}
