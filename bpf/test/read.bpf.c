// SPDX-License-Identifier: MIT OR Apache-2.0
// `probed(address)`: reads eight bytes from the address and counts what probe_read answered.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 16);
	__type(key, s64);
	__type(value, u64);
} answers SEC(".maps");

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	u64 word, one = 1, *n;
	s64 answer = probe_read_user(&word, sizeof(word), (void *)ARG1(ctx));

	n = map_lookup(&answers, &answer);
	if (n)
		__sync_fetch_and_add(n, 1);
	else if (map_update(&answers, &answer, &one, NOEXIST)) {
		n = map_lookup(&answers, &answer);
		if (n)
			__sync_fetch_and_add(n, 1);
	}
	return 0;
}
