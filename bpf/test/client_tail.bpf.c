// SPDX-License-Identifier: MIT OR Apache-2.0
// A prog array that the loader fills, and changes while it is in use.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

int second(void *ctx);

struct {
	__uint(type, MAP_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
#ifdef FILLED
	int (*values[])(void *ctx);
} table SEC(".maps") = { .values = { [1] = &second } };
#else
	__uint(value_size, 4);
} table SEC(".maps");
#endif

SEC("classifier")
int second(void *ctx)
{
	return 22;
}

SEC("classifier")
int third(void *ctx)
{
	return 33;
}

SEC("classifier")
int first(void *ctx)
{
	tail_call(ctx, &table, 1);
	return 11;
}
