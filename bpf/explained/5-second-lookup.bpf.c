// SPDX-License-Identifier: MIT OR Apache-2.0
// possibly-null
// A lookup that cannot fail, or so it seems
// The entry was put into the map a line before, so the second lookup must find it; but another CPU may have removed it. The kernel:
// `invalid mem access 'map_value_or_null'`
// ([ebpf-verifier-errors #7](https://github.com/parttimenerd/ebpf-verifier-errors/issues/7)).
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct call {
	u64 started, count;
};

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 1024);
	__type(key, u64);
	__type(value, struct call);
} calls SEC(".maps");

SEC("kprobe")
int rejected(struct pt_regs *ctx)
{
	u64 id = pid_tgid();
	struct call *call = map_lookup(&calls, &id);

	if (!call) {
		struct call first = { .started = ktime_ns() };

		map_update(&calls, &id, &first, ANY);
		call = map_lookup(&calls, &id);
	}
	call->count += 1;
	return 0;
}

/* Fixed. */
SEC("kprobe")
int accepted(struct pt_regs *ctx)
{
	u64 id = pid_tgid();
	struct call *call = map_lookup(&calls, &id);

	if (!call) {
		struct call first = { .started = ktime_ns() };

		map_update(&calls, &id, &first, ANY);
		call = map_lookup(&calls, &id);
		if (!call)
			return 0;
	}
	call->count += 1;
	return 0;
}
