// SPDX-License-Identifier: MIT OR Apache-2.0
// Spin locks in values.
#include "engine.h"

static long (*const spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;

enum { LOCKED = 4 };

struct value {
	u32 before;
	struct bpf_spin_lock lock;
	u64 count;
	u32 behind;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, struct value);
} array SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 16);
	__type(key, u32);
	__type(value, struct value);
} hash SEC(".maps");

#define MIX(h, x) ((h) = (h) * 31 + (u64)(x))
#define FOLD(h) ((h) ^ (h) >> 32)

static struct bpf_spin_lock global SEC(".data.locked");
static u64 counter SEC(".data.locked");

NOINLINE u64 add(struct value *v, u64 n)
{
	u64 now;

	spin_lock(&v->lock);
	v->count += n;
	v->before++;
	now = v->count * 3 + v->before;
	spin_unlock(&v->lock);
	return now;
}

SEC("tc") int locked_array(struct __sk_buff *skb)
{
	struct value *v, new = { .before = 5, .count = 100, .behind = 9 };
	u32 key = 2;
	u64 h = 0;

	v = map_lookup(&array, &key);
	if (!v)
		return -1;
	MIX(h, add(v, 3));
	MIX(h, add(v, 4));
	MIX(h, map_update(&array, &key, &new, LOCKED));
	MIX(h, add(v, 4));
	MIX(h, map_update(&array, &key, &new, ANY));
	MIX(h, v->behind);
	MIX(h, map_update(&array, &key, &new, LOCKED | NOEXIST));
	MIX(h, map_update(&array, &key, &new, LOCKED | EXIST));
	key = 7;
	MIX(h, map_update(&array, &key, &new, LOCKED));
	MIX(h, add(v, 4));
	v->count = 0;
	v->before = 0;
	v->behind = 0;
	return FOLD(h);
}

SEC("tc") int locked_hash(struct __sk_buff *skb)
{
	struct value *v, *w, new = { .before = 5, .count = 100, .behind = 9 };
	u32 key = 2;
	u64 h = 0;

	MIX(h, map_delete(&hash, &key));
	MIX(h, map_update(&hash, &key, &new, LOCKED | EXIST));
	MIX(h, map_update(&hash, &key, &new, LOCKED | NOEXIST));
	MIX(h, map_update(&hash, &key, &new, LOCKED | NOEXIST));
	v = map_lookup(&hash, &key);
	if (!v)
		return -1;
	MIX(h, add(v, 3));
	new.count = 7;
	MIX(h, map_update(&hash, &key, &new, LOCKED));
	MIX(h, add(v, 4));
	MIX(h, map_update(&hash, &key, &new, ANY));
	w = map_lookup(&hash, &key);
	if (!w)
		return -1;
	MIX(h, add(w, 5));
	MIX(h, map_delete(&hash, &key));
	return FOLD(h);
}

SEC("tc") int locked_global(struct __sk_buff *skb)
{
	u64 now;

	spin_lock(&global);
	counter += 5;
	now = counter;
	counter -= 5;
	spin_unlock(&global);
	return now;
}

/* Several threads add to a number that only the lock protects. */
SEC("tc") int alone_count(struct __sk_buff *skb)
{
	u64 now;

	spin_lock(&global);
	now = counter;
	HIDE(now);
	counter = now + 1;
	spin_unlock(&global);
	return 0;
}

SEC("tc") int alone_total(struct __sk_buff *skb)
{
	return counter;
}
