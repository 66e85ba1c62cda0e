// SPDX-License-Identifier: MIT OR Apache-2.0
// Who calls a function, and how often: a count per return address.
//
//	skep trace --func malloc bpf/callers.bpf.o -- ls -l
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 8192);
	__type(key, void *);
	__type(value, u64);
} callers SEC(".maps");

SEC("kprobe")
int on_call(struct pt_regs *ctx)
{
	u64 caller = 0, one = 1, *count;

	/* At the entry of a function the stack pointer points to the return address. */
	if (probe_read_user(&caller, sizeof(caller), (void *)ctx->rsp))
		return 0;
	count = map_lookup(&callers, &caller);
	if (!count) {
		u64 zero = 0;

		map_update(&callers, &caller, &zero, NOEXIST);
		count = map_lookup(&callers, &caller);
		if (!count)
			return 0;
	}
	__sync_fetch_and_add(count, one);
	return 0;
}
