// SPDX-License-Identifier: MIT OR Apache-2.0
// An instruction of the C library that takes no jump: the system call of `getppid`, in glibc.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("kprobe/getppid+0x5")
int on_call(struct pt_regs *ctx)
{
	return 0;
}
