// SPDX-License-Identifier: MIT OR Apache-2.0
// Asks for what only the kernel has: accepted by the verifier, refused where it is to be run.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static u64 (*const current_task)(void) = (void *)35;

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	return current_task() != 0;
}
