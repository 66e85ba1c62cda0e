// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static long (*const snprintf)(char *to, u32 size, const char *fmt, u64 *data, u32 data_size) = (void *)165;

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	static const char fmt[] = "%f seconds";
	u64 data = ARG1(ctx);
	char text[32];

	return snprintf(text, sizeof(text), fmt, &data, sizeof(data));
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	static const char fmt[] = "%llu seconds";
	u64 data = ARG1(ctx);
	char text[32];

	return snprintf(text, sizeof(text), fmt, &data, sizeof(data));
}
