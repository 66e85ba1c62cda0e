/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the benchmark of probes attaches: an event of 64 bytes. The ring has room for a round of calls. */
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct record {
	u64 words[8];
};
const struct record *unused __attribute__((unused));

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 16 * 1024 * 1024);
} ring SEC(".maps");

static inline __attribute__((always_inline)) int event(struct pt_regs *ctx, u64 flags)
{
	struct record *r = ringbuf_reserve(&ring, sizeof(*r), 0);

	if (!r)
		return 0;
	for (int i = 0; i < 8; i++)
		r->words[i] = ARG1(ctx);
	ringbuf_submit(r, flags);
	return 0;
}
