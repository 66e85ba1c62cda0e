// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct task {
	u64 flags;
};

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	struct task *task = (void *)ARG1(ctx);

	return task->flags != 0;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	struct task *task = (void *)ARG1(ctx);
	u64 flags = 0;

	probe_read_kernel(&flags, sizeof(flags), &task->flags);
	return flags != 0;
}
