// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts calls of getppid.
#include "syscalls.h"
#include "test/cost.h"

SEC("tp/syscalls/sys_enter_getppid")
int on_enter(struct sys_enter *ctx)
{
	return count();
}
