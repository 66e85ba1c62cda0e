// SPDX-License-Identifier: MIT OR Apache-2.0
// What programs around functions of a process are given: typed arguments, results, and what pointers lead to.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static u64 (*const get_func_ip)(void *ctx) = (void *)173;
static long (*const get_func_arg)(void *ctx, u32 n, u64 *value) = (void *)183;
static long (*const get_func_ret)(void *ctx, u64 *value) = (void *)184;
static long (*const get_func_arg_cnt)(void *ctx) = (void *)185;

/* The target has more members, and others in front: places are found by its types. */
struct conn {
	long id;
	char name[16];
	struct conn *next;
} __attribute__((preserve_access_index));

struct seen {
	u32 when;
	u32 count;
	s64 args[10];
	s64 by_helper;
	s64 beyond;
	s64 ret;
	s64 ret_error;
	s64 id, next_id, null_id;
	u64 ip;
	char name[16];
};
const struct seen *unused_ring __attribute__((unused));

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 256 * 1024);
} ring SEC(".maps");

static inline __attribute__((always_inline)) struct seen *look(u64 *ctx, u32 when)
{
	struct seen *s = ringbuf_reserve(&ring, sizeof(*s), 0);
	struct conn *conn = (void *)ctx[5];
	u64 value = 0;

	if (!s)
		return NULL;
	__builtin_memset(s, 0, sizeof(*s));
	s->when = when;
	s->count = get_func_arg_cnt(ctx);
	s->args[0] = ctx[0];
	s->args[1] = ctx[1];
	s->args[2] = ctx[2];
	s->args[3] = ctx[3];
	s->args[4] = ctx[4];
	s->args[6] = ctx[6];
	s->args[7] = ctx[7];
	s->args[8] = ctx[8];
	s->id = conn->id;
	s->next_id = conn->next->id;
	/* Nothing is behind the last one: what is loaded through null is 0. */
	s->null_id = conn->next->next->id;
	probe_read_user_str(s->name, sizeof(s->name), &conn->name);
	get_func_arg(ctx, 6, &value);
	s->by_helper = value;
	s->beyond = get_func_arg(ctx, 9, &value);
	s->ip = get_func_ip(ctx);
	return s;
}

SEC("fentry/mix")
int on_entry(u64 *ctx)
{
	struct seen *s = look(ctx, 1);

	if (s)
		ringbuf_submit(s, 0);
	return 0;
}

SEC("fexit/mix")
int on_exit(u64 *ctx)
{
	struct seen *s = look(ctx, 2);
	u64 value = 99;

	if (s) {
		s->args[9] = ctx[9];
		s->ret_error = get_func_ret(ctx, &value);
		s->ret = value;
		ringbuf_submit(s, 0);
	}
	return 0;
}
