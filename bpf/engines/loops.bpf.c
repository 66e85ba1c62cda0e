// SPDX-License-Identifier: MIT OR Apache-2.0
// Loops that the verifier does not count: may_goto and open-coded iterators.
#include "engine.h"

KSYM int bpf_iter_num_new(struct bpf_iter_num *it, int start, int end);
KSYM int *bpf_iter_num_next(struct bpf_iter_num *it);
KSYM void bpf_iter_num_destroy(struct bpf_iter_num *it);
KSYM int bpf_iter_bits_new(struct bpf_iter_bits *it, const u64 *unsafe_ptr__ign, u32 nr_words);
KSYM int *bpf_iter_bits_next(struct bpf_iter_bits *it);
KSYM void bpf_iter_bits_destroy(struct bpf_iter_bits *it);

u32 rounds = 1000;
u64 words[4] = { 0x8000000000000001ull, 0, 0xf0, 1ull << 63 };
u64 no_words[2];

SEC("tc") int cond_break_counts(struct __sk_buff *skb)
{
	u64 sum = 0;

	for (u32 i = 0; i < rounds; i++) {
		cond_break;
		sum += i;
	}
	return sum;
}

SEC("tc") int cond_break_ends(struct __sk_buff *skb)
{
	u64 n = 0;

	for (;;) {
		cond_break;
		n++;
	}
	return n > rounds;
}

/* How many rounds there are is not what the kernel has, which looks at the clock. */
SEC("tc") int alone_cond_break_rounds(struct __sk_buff *skb)
{
	u64 n = 0;

	for (;;) {
		cond_break;
		n++;
	}
	return n;
}

static long spins(u32 index, u64 *total)
{
	u64 n = 0;

	for (;;) {
		cond_break;
		n++;
	}
	*total += n;
	return 0;
}

SEC("tc") int alone_cond_break_called_back(struct __sk_buff *skb)
{
	u64 total = 0;

	loop(3, spins, &total, 0);
	loop(1, spins, &total, 0);
	return total;
}

SEC("tc") int numbers(struct __sk_buff *skb)
{
	struct bpf_iter_num it;
	u64 sum = 0;
	int *n;

	bpf_iter_num_new(&it, -5, rounds);
	while ((n = bpf_iter_num_next(&it)))
		sum = sum * 3 + *n;
	bpf_iter_num_destroy(&it);
	return sum;
}

SEC("tc") int numbers_nested(struct __sk_buff *skb)
{
	struct bpf_iter_num a, b;
	u64 sum = 0;
	int *x, *y;

	bpf_iter_num_new(&a, 0, 30);
	while ((x = bpf_iter_num_next(&a))) {
		bpf_iter_num_new(&b, *x, 30);
		while ((y = bpf_iter_num_next(&b)))
			sum = sum * 5 + *x * *y;
		bpf_iter_num_destroy(&b);
	}
	bpf_iter_num_destroy(&a);
	return sum;
}

SEC("tc") int numbers_wrong(struct __sk_buff *skb)
{
	struct bpf_iter_num it;
	u64 sum = 0;

	sum = bpf_iter_num_new(&it, 5, 4);
	sum = sum * 7 + (bpf_iter_num_next(&it) != NULL);
	bpf_iter_num_destroy(&it);
	sum = sum * 7 + bpf_iter_num_new(&it, 0, (1 << 23) + 1);
	sum = sum * 7 + (bpf_iter_num_next(&it) != NULL);
	bpf_iter_num_destroy(&it);
	sum = sum * 7 + bpf_iter_num_new(&it, 0x7ffffffe, 0x7fffffff);
	sum = sum * 7 + (bpf_iter_num_next(&it) != NULL);
	sum = sum * 7 + (bpf_iter_num_next(&it) != NULL);
	bpf_iter_num_destroy(&it);
	return sum;
}

SEC("tc") int bits(struct __sk_buff *skb)
{
	struct bpf_iter_bits it;
	u64 sum = 0, one = 0x8000000000000401;
	int *n;

	bpf_iter_bits_new(&it, words, 4);
	while ((n = bpf_iter_bits_next(&it)))
		sum = sum * 11 + *n + 1;
	bpf_iter_bits_destroy(&it);
	bpf_iter_bits_new(&it, &one, 1);
	while ((n = bpf_iter_bits_next(&it)))
		sum = sum * 11 + *n + 1;
	bpf_iter_bits_destroy(&it);
	bpf_iter_bits_new(&it, no_words, 2);
	while ((n = bpf_iter_bits_next(&it)))
		sum = sum * 11 + *n + 1;
	bpf_iter_bits_destroy(&it);
	return sum;
}

SEC("tc") int bits_wrong(struct __sk_buff *skb)
{
	struct bpf_iter_bits it;
	u64 sum = 0;

	sum = bpf_iter_bits_new(&it, words, 0);
	sum = sum * 7 + (bpf_iter_bits_next(&it) != NULL);
	bpf_iter_bits_destroy(&it);
	sum = sum * 7 + bpf_iter_bits_new(&it, NULL, 1);
	sum = sum * 7 + (bpf_iter_bits_next(&it) != NULL);
	bpf_iter_bits_destroy(&it);
	sum = sum * 7 + bpf_iter_bits_new(&it, words, 512);
	sum = sum * 7 + (bpf_iter_bits_next(&it) != NULL);
	bpf_iter_bits_destroy(&it);
	return sum;
}
