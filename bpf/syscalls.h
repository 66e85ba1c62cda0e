/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What programs on tracepoints of system calls are given. */
#ifndef SYSCALLS_H
#define SYSCALLS_H

#include "skep.h"

struct sys_enter {
	u64 common;
	s64 number;
	u64 args[6];
};

struct sys_exit {
	u64 common;
	s64 number;
	s64 ret;
};

#endif
