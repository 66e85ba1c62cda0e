// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "MIT";

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	u64 word = 0;

	probe_read_kernel(&word, sizeof(word), (void *)ARG1(ctx));
	return word != 0;
}
