// SPDX-License-Identifier: MIT OR Apache-2.0
// Counts returns of getppid.
#include "syscalls.h"
#include "test/cost.h"

SEC("tp/syscalls/sys_exit_getppid")
int on_exit(struct sys_exit *ctx)
{
	return count();
}
