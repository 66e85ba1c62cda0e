// SPDX-License-Identifier: MIT OR Apache-2.0
// Functions that helpers call back.
#include "engine.h"

struct sum {
	u64 total;
	u32 last, stop;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} array SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} percpu_array SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u64);
} hash SEC(".maps");

struct {
	__uint(type, MAP_PERCPU_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u64);
} percpu_hash SEC(".maps");

struct {
	__uint(type, 9);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, u64);
} lru_hash SEC(".maps");

u32 rounds = 100;
u32 which = 1;

static long add(u32 index, struct sum *sum)
{
	sum->total += index;
	sum->last = index;
	return sum->stop && index == sum->stop;
}

static long twice(u32 index, struct sum *sum)
{
	u64 here[4] = { index, index, index + 1, 0 };

	HIDE(index);
	sum->total += here[index & 1] * 2;
	return 0;
}

SEC("tc") int loop_sum(struct __sk_buff *skb)
{
	struct sum sum = {};
	long done = loop(rounds, add, &sum, 0);

	return sum.total * 1000 + done;
}

SEC("tc") int loop_stops(struct __sk_buff *skb)
{
	struct sum sum = { .stop = 10 };
	long done = loop(rounds, add, &sum, 0);

	return sum.total * 1000 + done;
}

SEC("tc") int loop_none(struct __sk_buff *skb)
{
	struct sum sum = { .last = 77 };
	long done = loop(rounds - 100, add, &sum, 0);

	return sum.last * 1000 + done;
}

SEC("tc") int loop_too_many(struct __sk_buff *skb)
{
	struct sum sum = {};

	return loop((1 << 23) + rounds, add, &sum, 0);
}

SEC("tc") int loop_flags(struct __sk_buff *skb)
{
	struct sum sum = {};

	return loop(rounds, add, &sum, rounds);
}

SEC("tc") int loop_either(struct __sk_buff *skb)
{
	struct sum sum = {};
	long done = loop(rounds, which ? twice : add, &sum, 0);

	return sum.total * 1000 + done;
}

/* What is in registers before a loop is there behind it. */
SEC("tc") int loop_keeps_registers(struct __sk_buff *skb)
{
	struct sum sum = {};
	u64 a = skb->len, b = a * 3, c = b ^ 0x55, d = c + 7, e = d * a;
	long done;

	HIDE(a), HIDE(b), HIDE(c), HIDE(d), HIDE(e);
	done = loop(rounds, twice, &sum, 0);
	return (a + 2 * b + 3 * c + 5 * d + 7 * e) ^ (sum.total + done);
}

static __attribute__((noinline)) u64 inner(struct sum *sum, u32 n)
{
	u64 before = sum->total;
	u64 big[16] = {};

	HIDE(n);
	big[n & 15] = before;
	sum->total += loop(n, add, sum, 0) + big[n & 15];
	return sum->total - before;
}

SEC("tc") int loop_in_function(struct __sk_buff *skb)
{
	struct sum sum = { .total = 1 };
	u64 first = inner(&sum, rounds), second = inner(&sum, 10);

	return first * 31 + second;
}

static long nested_inner(u32 index, u64 *total)
{
	u64 now = *total + index + 1;

	HIDE(now);
	*total = now;
	return 0;
}

static long nested(u32 index, u64 *total)
{
	u64 own = 0;

	HIDE(index);
	loop(index, nested_inner, &own, 0);
	HIDE(own);
	*total += own;
	return 0;
}

SEC("tc") int alone_nested(struct __sk_buff *skb)
{
	u64 total = 0;
	long done = loop(20, nested, &total, 0);

	return total * 100 + done;
}

static long forever(u32 index, u64 *total)
{
	return 0;
}

static long forever_in_forever(u32 index, u64 *total)
{
	loop(1 << 23, forever, total, 0);
	return 0;
}

/* Ended by the budget. */
SEC("tc") int endless_nested(struct __sk_buff *skb)
{
	u64 total = 0;

	loop(1 << 23, forever_in_forever, &total, 0);
	return 1;
}

static long endless_each(void *map, u32 *key, u64 *value, u64 *total)
{
	loop(1 << 23, forever_in_forever, total, 0);
	return 0;
}

SEC("tc") int endless_in_map(struct __sk_buff *skb)
{
	u64 total = 0;

	for_each(&array, endless_each, &total, 0);
	return 1;
}

struct seen {
	u64 total;
	u32 count, stop;
	struct __sk_buff *skb;
};

static long each(void *map, u32 *key, u64 *value, struct seen *seen)
{
	u32 count = seen->count + 1, stop = seen->stop;

	HIDE(count);
	HIDE(stop);
	seen->total += (u64)*key * 100 + *value;
	*value += 1;
	seen->count = count;
	return count == stop;
}

static __attribute__((always_inline)) int fill(void *map, u32 n)
{
	for (u32 i = 0; i < n; i++) {
		u64 value = i * 7;
		u32 key = i;

		map_update(map, &key, &value, ANY);
	}
	return 0;
}

SEC("tc") int each_of_array(struct __sk_buff *skb)
{
	struct seen seen = {};
	long n;

	fill(&array, 8);
	n = for_each(&array, each, &seen, 0);
	n += for_each(&array, each, &seen, 0);
	return seen.total * 10000 + seen.count * 100 + n;
}

SEC("tc") int each_of_array_stops(struct __sk_buff *skb)
{
	struct seen seen = { .stop = 3 };
	long n;

	fill(&array, 8);
	n = for_each(&array, each, &seen, 0);
	return seen.total * 10000 + seen.count * 100 + n;
}

SEC("tc") int each_flags(struct __sk_buff *skb)
{
	struct seen seen = {};

	return for_each(&array, each, &seen, rounds);
}

SEC("tc") int each_of_percpu_array(struct __sk_buff *skb)
{
	struct seen seen = {};
	long n;

	fill(&percpu_array, 8);
	n = for_each(&percpu_array, each, &seen, 0);
	return seen.total * 10000 + seen.count * 100 + n;
}

SEC("tc") int each_of_hash(struct __sk_buff *skb)
{
	struct seen seen = {};
	long n;

	fill(&hash, 20);
	n = for_each(&hash, each, &seen, 0);
	n += for_each(&hash, each, &seen, 0);
	return seen.total * 10000 + seen.count * 100 + n;
}

SEC("tc") int each_of_empty_hash(struct __sk_buff *skb)
{
	struct seen seen = {};
	long n;

	for (u32 i = 0; i < 20; i++) {
		u32 key = i;

		map_delete(&hash, &key);
	}
	n = for_each(&hash, each, &seen, 0);
	return seen.count * 100 + n;
}

SEC("tc") int each_of_percpu_hash(struct __sk_buff *skb)
{
	struct seen seen = {};
	long n;

	fill(&percpu_hash, 20);
	n = for_each(&percpu_hash, each, &seen, 0);
	return seen.total * 10000 + seen.count * 100 + n;
}

SEC("tc") int each_of_lru_hash(struct __sk_buff *skb)
{
	struct seen seen = {};
	long n;

	fill(&lru_hash, 20);
	n = for_each(&lru_hash, each, &seen, 0);
	return seen.total * 10000 + seen.count * 100 + n;
}

static long delete_odd(void *map, u32 *key, u64 *value, struct seen *seen)
{
	u32 k = *key;

	if (k & 1)
		seen->total += map_delete(map, &k) == 0;
	return 0;
}

SEC("tc") int each_deleted(struct __sk_buff *skb)
{
	struct seen seen = {}, left = {};

	fill(&hash, 20);
	for_each(&hash, delete_odd, &seen, 0);
	for_each(&hash, each, &left, 0);
	return seen.total * 10000 + left.count;
}

static long with_context(void *map, u32 *key, u64 *value, struct seen *seen)
{
	seen->total += seen->skb->len;
	return 0;
}

SEC("tc") int each_with_context(struct __sk_buff *skb)
{
	struct seen seen = { .skb = skb };

	for_each(&array, with_context, &seen, 0);
	return seen.total;
}
