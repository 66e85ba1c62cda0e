// SPDX-License-Identifier: MIT OR Apache-2.0
// too-complex
// A small program that is too large
// A handful of lines, and the kernel answers `BPF program is too large. Processed 1000001 insn`, or, through a loader,
// `Program too large (113 insns), at most 4096 insns` ([bcc #3725](https://github.com/iovisor/bcc/issues/3725)): not the program is too large but
// the number of its paths: here each round leaves one more possible value of `n`, and the next round is followed for each of them.
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct text {
	u32 length;
	char from[1024], to[1024];
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct text);
} texts SEC(".maps");

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	u32 key = 0, n = 0;
	struct text *text = map_lookup(&texts, &key);

	if (!text)
		return 0;
	/* Keeps what can be printed. */
	for (u32 i = 0; i < sizeof(text->from); i++) {
		if (text->from[i] >= ' ')
			text->to[n++] = text->from[i];
	}
	text->length = n;
	return 0;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	u32 key = 0;
	struct text *text = map_lookup(&texts, &key);

	if (!text)
		return 0;
	text->length = 0;
	for (u32 i = 0; i < sizeof(text->from); i++) {
		/* Read from the map each time, the counter is any number: all paths of a round end alike. */
		u32 n = *(volatile u32 *)&text->length;

		if (text->from[i] >= ' ' && n < sizeof(text->to)) {
			text->to[n] = text->from[i];
			text->length = n + 1;
		}
	}
	return 0;
}
