// SPDX-License-Identifier: MIT OR Apache-2.0
// Each call of `probed(a, b)` works with a map of every kind: some keys come again and again, some are new, some go.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

enum {
	MAP_LRU_HASH = 9,
	MAP_LRU_PERCPU_HASH = 10,
	MAP_LPM_TRIE = 11,
	MAP_QUEUE = 22,
	MAP_STACK = 23,
	MAP_BLOOM_FILTER = 30,
	NO_PREALLOC = 1,
};

static long (*const map_push)(void *map, const void *value, u64 flags) = (void *)87;
static long (*const map_pop)(void *map, void *value) = (void *)88;
static long (*const map_peek)(void *map, void *value) = (void *)89;
static long (*const for_each_elem)(void *map, void *callback, void *ctx, u64 flags) = (void *)164;

struct longer {
	u64 word[16];
};

struct prefix {
	u32 length;
	u8 bytes[4];
};

#define KEYED(name, kind, entries, key_type, value_type) \
	struct {                                         \
		__uint(type, kind);                      \
		__uint(max_entries, entries);            \
		__type(key, key_type);                   \
		__type(value, value_type);               \
	} name SEC(".maps")

KEYED(calls, MAP_PERCPU_ARRAY, 1, u32, u64);
KEYED(words, MAP_HASH, 8192, u64, u64);
KEYED(values, MAP_HASH, 4096, u64, struct longer);
KEYED(slots, MAP_PERCPU_HASH, 512, u32, u64);
KEYED(recent, MAP_LRU_HASH, 4096, u64, u64);
KEYED(recent_slots, MAP_LRU_PERCPU_HASH, 256, struct longer, u64);
KEYED(few, MAP_HASH, 128, u32, u64);

struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(map_flags, NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix);
	__type(value, u64);
} prefixes SEC(".maps");

struct {
	__uint(type, MAP_QUEUE);
	__uint(max_entries, 256);
	__type(value, u64);
} queue SEC(".maps");

struct {
	__uint(type, MAP_STACK);
	__uint(max_entries, 256);
	__type(value, u64);
} stack SEC(".maps");

struct {
	__uint(type, MAP_BLOOM_FILTER);
	__uint(max_entries, 1024);
	__type(value, u64);
} seen SEC(".maps");

struct {
	__uint(type, MAP_STACK_TRACE);
	__uint(max_entries, 512);
	__uint(key_size, 4);
	__uint(value_size, 16 * 8);
} stacks SEC(".maps");

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 64 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, MAP_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} perf SEC(".maps");

static long sum(void *map, u32 *key, u64 *value, u64 *to)
{
	*to += *value;
	return 0;
}

static __attribute__((noinline)) int keyed(u64 n)
{
	struct longer longer = { .word = { n % 512, n } };
	struct prefix prefix = { .length = 8 + n % 25, .bytes = { n, n >> 8, n >> 16, 1 } };
	u64 key = n % 16384, *value = map_lookup(&words, &key);
	u32 small = n % 256;

	if (value)
		*value += 1;
	if (map_update(&words, &key, &n, ANY) || n % 3 == 0)
		map_delete(&words, &key);
	if (map_update(&values, &key, &longer, ANY) || n % 3 == 1)
		map_delete(&values, &key);
	if (map_update(&slots, &small, &n, ANY) || n % 3 == 2)
		map_delete(&slots, &small);
	if (map_update(&few, &small, &n, ANY) || n % 5 == 0)
		map_delete(&few, &small);
	map_update(&recent, &n, &key, ANY);
	map_lookup(&recent, &key);
	map_update(&recent_slots, &longer, &n, ANY);
	if (map_update(&prefixes, &prefix, &n, ANY) || n % 3 == 0)
		map_delete(&prefixes, &prefix);
	prefix.length = 32;
	map_lookup(&prefixes, &prefix);
	return 0;
}

static __attribute__((noinline)) int listed(struct pt_regs *ctx, u64 n)
{
	u64 value = n, total = 0, *record;

	if (map_push(&queue, &value, n % 2 ? EXIST : ANY) || n % 2)
		map_pop(&queue, &value);
	if (map_push(&stack, &value, n % 2 ? EXIST : ANY) || n % 2)
		map_pop(&stack, &value);
	map_peek(&queue, &value);
	map_push(&seen, &n, ANY);
	map_peek(&seen, &value);
	get_stackid(ctx, &stacks, USER_STACK | (n % 2) << 10);
	if (n % 64 == 0)
		for_each_elem(&few, sum, &total, 0);
	record = ringbuf_reserve(&ring, 136, 0);
	if (record) {
		record[0] = n;
		record[1] = total;
		if (n % 3)
			ringbuf_submit(record, 0);
		else
			ringbuf_discard(record, 0);
	}
	perf_event_output(ctx, &perf, CURRENT_CPU, &value, sizeof(value));
	return 0;
}

static __attribute__((noinline)) int work(struct pt_regs *ctx, u64 n)
{
	u32 zero = 0;
	u64 *count = map_lookup(&calls, &zero);

	if (count)
		*count += 1;
	keyed(n);
	listed(ctx, n);
	if (n % 1024 == 0)
		printk("call %d", n);
	return n % 256 == 0;
}

SEC("kprobe/probed")
int on_entry(struct pt_regs *ctx)
{
	return work(ctx, ARG1(ctx) >> 3 ^ ARG2(ctx));
}

SEC("kretprobe/probed")
int on_return(struct pt_regs *ctx)
{
	return work(ctx, RETVAL(ctx) >> 3);
}
