// SPDX-License-Identifier: MIT OR Apache-2.0
// Exceptions.
#include "engine.h"

KSYM void bpf_throw(u64 cookie);


u32 rounds = 3;

/* What exceptions end in. */
__attribute__((noinline)) int plus_ten(u64 cookie)
{
	u32 key[4] = { cookie, 10 };

	HIDE(cookie);
	return key[0] + key[1];
}

NOINLINE u64 deep(u64 a, u64 b)
{
	u64 here[8] = {};

	HIDE(a), HIDE(b);
	here[a & 7] = b;
	if (here[1] == 5)
		bpf_throw(32);
	return here[a & 7] + 1;
}

NOINLINE u64 middle(u64 a, u64 b)
{
	u64 c = a * 3, d = b * 5, e = a + b;

	HIDE(c), HIDE(d), HIDE(e);
	return deep(a, b) + c + d + e;
}

SEC("tc") int throw_at_once(struct __sk_buff *skb)
{
	u64 n = rounds;

	if (n == 3)
		bpf_throw(16);
	return 1;
}

SEC("tc") int throw_deep(struct __sk_buff *skb)
{
	u64 x = skb->len;

	HIDE(x);
	return middle(1, 5) + x;
}

SEC("tc") int throw_not(struct __sk_buff *skb)
{
	u64 x = skb->len;

	HIDE(x);
	return middle(1, 6) + x;
}

SEC("tc") TAG("exception_callback:plus_ten") int throw_caught(struct __sk_buff *skb)
{
	u64 x = skb->len;

	HIDE(x);
	return middle(1, 5) + x;
}

SEC("tc") TAG("exception_callback:plus_ten") int throw_caught_not(struct __sk_buff *skb)
{
	u64 x = skb->len;

	HIDE(x);
	return middle(1, 6) + x;
}
