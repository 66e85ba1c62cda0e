// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	char text[64] = {};

	probe_read_user(text, ARG2(ctx), (void *)ARG1(ctx));
	return text[0];
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	char text[64] = {};
	u64 size = ARG2(ctx);

	if (size > sizeof(text))
		size = sizeof(text);
	probe_read_user(text, size, (void *)ARG1(ctx));
	return text[0];
}
