// SPDX-License-Identifier: MIT OR Apache-2.0
// Calls functions of the application: with numbers, with bytes, with objects that it holds for a while.
#include "functions.h"

static long (*const loop)(u32 times, void *function, void *ctx, u64 flags) = (void *)181;

SEC("hook/sum")
int numbers(struct sum *s)
{
	s->total = signed_sum(-3, -4);
	s->version = level(s->key);
	return s->version > 2;
}

SEC("hook/sum")
int bytes(struct sum *s)
{
	u8 buf[8] = {};

	fill(buf, sizeof(buf));
	s->total = weigh(buf, sizeof(buf));
	return buf[7];
}

SEC("hook/sum")
int objects(struct sum *s)
{
	struct session *session = session_get(s->key), *other;

	if (!session)
		return session_known(0);
	s->total = session_key(session) + 100 * session_known(session);
	session_put(session);
	other = session_new();
	s->version = session_key(other);
	session_put(other);
	return 2;
}

// Holds an object when its budget ends.
SEC("hook/sum")
int spends(struct sum *s)
{
	struct session *session = session_new();
	u64 n = 0;

	for (u32 i = 0; i < 100000; i++)
		n += prandom() & 1;
	s->total = n;
	session_put(session);
	return 0;
}

static long inner(u32 n, void *ctx)
{
	return 0;
}

static long outer(u32 n, void *ctx)
{
	loop(8000000, inner, 0, 0);
	return 0;
}

// Ends, but not in this year.
SEC("hook/sum")
int lasts(struct sum *s)
{
	struct session *session = session_new();

	loop(8000000, outer, 0, 0);
	session_put(session);
	return 0;
}

// A helper that calls back, without a number of rounds that is known: machine code calls it.
SEC("hook/sum")
int lasts_too(struct sum *s)
{
	loop(8000000 + (s->key & 1), (s->key & 2) ? outer : inner, 0, 0);
	return 0;
}
