// SPDX-License-Identifier: MIT OR Apache-2.0
// All kinds of probes on functions of tests/targets/soak.c; every 4096th call of one makes an event.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

struct record {
	u64 number;
};
const struct record *unused __attribute__((unused));

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} ring SEC(".maps");

static inline __attribute__((always_inline)) int count(u32 key)
{
	u64 *n = map_lookup(&counts, &key);

	if (n)
		*n += 1;
	return 0;
}

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	return count(0);
}

SEC("kretprobe/probed")
int on_return(struct pt_regs *ctx)
{
	return count(1);
}

SEC("kprobe/stepped+4")
int inside(struct pt_regs *ctx)
{
	return count(2);
}

SEC("kprobe/evented")
int on_event(struct pt_regs *ctx)
{
	u64 number = ARG1(ctx);
	struct record *r;

	count(3);
	if (number & 4095)
		return 0;
	r = ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r)
		return 0;
	r->number = number;
	ringbuf_submit(r, 0);
	return 0;
}
