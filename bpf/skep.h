/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the programs in this folder need of the BPF interface: types, section and map macros, helpers by number. */
#ifndef SKEP_H
#define SKEP_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed int s32;
typedef signed long long s64;

#define SEC(name) __attribute__((section(name), used))
#define TAG(text) __attribute__((btf_decl_tag(text)))
#define NULL ((void *)0)

/* A map is a variable whose type says what to create. */
#define __uint(name, value) int (*name)[value]
#define __type(name, type) __typeof__(type) *name

enum map_type {
	MAP_HASH = 1,
	MAP_ARRAY = 2,
	MAP_PROG_ARRAY = 3,
	MAP_PERF_EVENT_ARRAY = 4,
	MAP_PERCPU_HASH = 5,
	MAP_PERCPU_ARRAY = 6,
	MAP_STACK_TRACE = 7,
	MAP_RINGBUF = 27,
};

enum {
	ANY = 0,
	NOEXIST = 1,
	EXIST = 2,
};

#define CURRENT_CPU 0xffffffffULL
#define USER_STACK (1ULL << 8)

/* Registers of x86-64 as a probe finds them. */
struct pt_regs {
	u64 r15, r14, r13, r12, rbp, rbx;
	u64 r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
	u64 orig_rax, rip, cs, rflags, rsp, ss;
};

#define ARG1(ctx) ((ctx)->rdi)
#define ARG2(ctx) ((ctx)->rsi)
#define ARG3(ctx) ((ctx)->rdx)
#define ARG4(ctx) ((ctx)->rcx)
#define ARG5(ctx) ((ctx)->r8)
#define ARG6(ctx) ((ctx)->r9)
#define RETVAL(ctx) ((ctx)->rax)

static void *(*const map_lookup)(void *map, const void *key) = (void *)1;
static long (*const map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*const map_delete)(void *map, const void *key) = (void *)3;
static u64 (*const ktime_ns)(void) = (void *)5;
static long (*const trace_printk)(const char *fmt, u32 fmt_size, ...) = (void *)6;
static u32 (*const prandom)(void) = (void *)7;
static u32 (*const cpu_id)(void) = (void *)8;
static long (*const tail_call)(void *ctx, void *prog_array, u32 index) = (void *)12;
static u64 (*const pid_tgid)(void) = (void *)14;
static long (*const current_comm)(void *buf, u32 size) = (void *)16;
static long (*const perf_event_output)(void *ctx, void *map, u64 flags, void *data, u64 size) = (void *)25;
static long (*const get_stackid)(void *ctx, void *map, u64 flags) = (void *)27;
static long (*const probe_read_user)(void *dst, u32 size, const void *src) = (void *)112;
static long (*const probe_read_user_str)(void *dst, u32 size, const void *src) = (void *)114;
static void *(*const ringbuf_reserve)(void *map, u64 size, u64 flags) = (void *)131;
static void (*const ringbuf_submit)(void *record, u64 flags) = (void *)132;
static void (*const ringbuf_discard)(void *record, u64 flags) = (void *)133;

#define printk(fmt, args...)                                   \
	({                                                     \
		static const char text[] = fmt;                \
		trace_printk(text, sizeof(text), ##args);      \
	})

/* Position of the highest bit: the slot of a value in a log2 histogram. */
static inline __attribute__((always_inline)) u32 log2_slot(u64 v)
{
	u32 r = 0, shift;

	shift = (v > 0xffffffffULL) << 5;
	v >>= shift;
	r |= shift;
	shift = (v > 0xffff) << 4;
	v >>= shift;
	r |= shift;
	shift = (v > 0xff) << 3;
	v >>= shift;
	r |= shift;
	shift = (v > 0xf) << 2;
	v >>= shift;
	r |= shift;
	shift = (v > 0x3) << 1;
	v >>= shift;
	r |= shift;
	return r | (u32)(v >> 1);
}

#endif
