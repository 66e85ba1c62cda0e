// SPDX-License-Identifier: MIT OR Apache-2.0
// A statically defined probe with two arguments. The two maps are those that libbpf fills for such programs.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

static u64 (*const attach_cookie)(void *ctx) = (void *)174;
static long (*const probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;

/* Where an argument is: a constant, a register, or memory that a register points to. */
struct argument {
	u64 value;
	u32 kind : 8;
	u16 index : 12, scale : 4;
	u8 unused : 8;
	short reg;
	_Bool is_signed;
	signed char shift;
};

struct site {
	struct argument args[12];
	u64 cookie;
	short count;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 256);
	__type(key, int);
	__type(value, struct site);
} __bpf_usdt_specs SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 1024);
	__type(key, long);
	__type(value, u32);
} __bpf_usdt_ip_to_spec_id SEC(".maps");

u64 hits, cookie;
long first, second;

static inline __attribute__((always_inline)) long argument(struct pt_regs *ctx, struct site *site, u32 n)
{
	struct argument *a = &site->args[n];
	u64 value = a->value;

	if (a->kind == 1 || a->kind == 2) {
		u64 reg = 0;

		probe_read_kernel(&reg, sizeof(reg), (void *)ctx + a->reg);
		value = reg;
		if (a->kind == 2)
			probe_read_user(&value, sizeof(value), (void *)(reg + a->value));
	}
	value <<= a->shift & 63;
	if (a->is_signed)
		return (long)value >> (a->shift & 63);
	return value >> (a->shift & 63);
}

SEC("usdt")
int on_usdt(struct pt_regs *ctx)
{
	int id = attach_cookie(ctx);
	struct site *site = map_lookup(&__bpf_usdt_specs, &id);

	if (!site)
		return 0;
	cookie = site->cookie;
	first = argument(ctx, site, 0);
	second = argument(ctx, site, 1);
	__sync_fetch_and_add(&hits, 1);
	return 0;
}
