// SPDX-License-Identifier: MIT OR Apache-2.0
// Global data of every kind, shared with the loader by mapping, and a ring buffer; driven by test runs.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

const volatile u64 step = 1; /* .rodata: the loader sets it */
u64 sum = 100;               /* .data */
u64 runs;                    /* .bss */

struct event {
	u64 run;
	u64 sum;
};

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u64);
} by_run SEC(".maps");

SEC("classifier")
int counted(void *ctx)
{
	u32 key = ++runs;
	struct event *e = ringbuf_reserve(&ring, sizeof(*e), 0);

	sum += step;
	map_update(&by_run, &key, &sum, ANY);
	if (!e)
		return -1;
	e->run = runs;
	e->sum = sum;
	ringbuf_submit(e, 0);
	return 7;
}
