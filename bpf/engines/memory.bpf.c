// SPDX-License-Identifier: MIT OR Apache-2.0
// Dynptrs, strings and numbers in them.
#include "engine.h"

KSYM int bpf_dynptr_adjust(const struct bpf_dynptr *p, u32 start, u32 end);
KSYM _Bool bpf_dynptr_is_null(const struct bpf_dynptr *p);
KSYM _Bool bpf_dynptr_is_rdonly(const struct bpf_dynptr *p);
KSYM u32 bpf_dynptr_size(const struct bpf_dynptr *p);
KSYM int bpf_dynptr_clone(const struct bpf_dynptr *p, struct bpf_dynptr *clone__uninit);
KSYM void *bpf_dynptr_slice(const struct bpf_dynptr *p, u32 offset, void *buffer, u32 buffer__szk);
KSYM void *bpf_dynptr_slice_rdwr(const struct bpf_dynptr *p, u32 offset, void *buffer, u32 buffer__szk);
KSYM int bpf_dynptr_from_skb(struct __sk_buff *s, u64 flags, struct bpf_dynptr *ptr);
KSYM int bpf_dynptr_from_xdp(struct xdp_md *x, u64 flags, struct bpf_dynptr *ptr);
KSYM int bpf_dynptr_copy(struct bpf_dynptr *dst, u32 dst_off, struct bpf_dynptr *src, u32 src_off, u32 size);

static long (*const dynptr_from_mem)(void *data, u32 size, u64 flags, struct bpf_dynptr *out) = (void *)197;
static long (*const reserve_dynptr)(void *ring, u32 size, u64 flags, struct bpf_dynptr *out) = (void *)198;
static void (*const submit_dynptr)(struct bpf_dynptr *record, u64 flags) = (void *)199;
static void (*const discard_dynptr)(struct bpf_dynptr *record, u64 flags) = (void *)200;
static long (*const dynptr_read)(void *dst, u32 len, const struct bpf_dynptr *src, u32 offset, u64 flags) = (void *)201;
static long (*const dynptr_write)(const struct bpf_dynptr *dst, u32 offset, void *src, u32 len, u64 flags) = (void *)202;
static void *(*const dynptr_data)(const struct bpf_dynptr *from, u32 offset, u32 len) = (void *)203;
static long (*const ringbuf_query)(void *ring, u64 flags) = (void *)134;
static long (*const strtol)(const char *text, u64 len, u64 flags, s64 *out) = (void *)105;
static long (*const strtoul)(const char *text, u64 len, u64 flags, u64 *out) = (void *)106;
static long (*const snprintf)(char *out, u32 size, const char *fmt, u64 *data, u32 len) = (void *)165;
static long (*const str_n_cmp)(const char *s1, u32 size, const char *s2) = (void *)182;

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

struct value {
	u8 bytes[64];
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct value);
} values SEC(".maps");

u32 n = 5;

#define MIX(h, x) ((h) = (h) * 31 + (u64)(x))

SEC("tc") int dynptr_of_memory(struct __sk_buff *skb)
{
	struct bpf_dynptr p, q;
	u64 h = 0, word = 0x1122334455667788, *at;
	struct value *v;
	u8 buffer[16] = {};
	u32 key = 0;

	v = map_lookup(&values, &key);
	if (!v)
		return -1;
	MIX(h, dynptr_from_mem(v->bytes, sizeof(v->bytes), 0, &p));
	MIX(h, dynptr_write(&p, n, &word, 8, 0));
	MIX(h, dynptr_write(&p, 57, &word, 8, 0));
	MIX(h, dynptr_write(&p, n, &word, 8, 1));
	MIX(h, dynptr_read(buffer, 16, &p, 2, 0));
	for (int i = 0; i < 16; i++)
		MIX(h, buffer[i]);
	MIX(h, dynptr_read(buffer, 16, &p, 60, 0));
	MIX(h, dynptr_read(buffer, 16, &p, 0, 1));
	MIX(h, bpf_dynptr_size(&p));
	MIX(h, bpf_dynptr_is_null(&p));
	MIX(h, bpf_dynptr_is_rdonly(&p));
	MIX(h, bpf_dynptr_clone(&p, &q));
	MIX(h, bpf_dynptr_adjust(&q, n, 40));
	MIX(h, bpf_dynptr_adjust(&q, 9, 8));
	MIX(h, bpf_dynptr_adjust(&q, 9, 36));
	MIX(h, bpf_dynptr_size(&q));
	at = dynptr_data(&q, 0, 8);
	MIX(h, at ? *at : 1);
	at = dynptr_data(&q, 28, 8);
	MIX(h, at ? *at : 1);
	at = bpf_dynptr_slice(&q, 1, NULL, 8);
	MIX(h, at ? *at : 1);
	at = bpf_dynptr_slice_rdwr(&q, 1, buffer, 8);
	if (at)
		*at = h;
	MIX(h, dynptr_read(buffer, 16, &p, n, 0));
	for (int i = 0; i < 16; i++)
		MIX(h, buffer[i]);
	MIX(h, bpf_dynptr_copy(&p, 20, &q, 0, 10));
	MIX(h, bpf_dynptr_copy(&p, 20, &p, 22, 10));
	MIX(h, bpf_dynptr_copy(&p, 60, &q, 0, 10));
	MIX(h, dynptr_read(buffer, 16, &p, 18, 0));
	for (int i = 0; i < 16; i++)
		MIX(h, buffer[i]);
	for (int i = 0; i < 64; i++)
		v->bytes[i] = 0;
	return h ^ h >> 32;
}

SEC("tc") int dynptr_wrong(struct __sk_buff *skb)
{
	struct bpf_dynptr p, q;
	u64 h = 0;
	struct value *v;
	u8 buffer[16] = {};
	u32 key = 0;

	v = map_lookup(&values, &key);
	if (!v)
		return -1;
	MIX(h, dynptr_from_mem(v->bytes, sizeof(v->bytes), n, &p));
	MIX(h, bpf_dynptr_is_null(&p));
	MIX(h, bpf_dynptr_is_rdonly(&p));
	MIX(h, bpf_dynptr_size(&p));
	MIX(h, bpf_dynptr_adjust(&p, 0, 1));
	MIX(h, bpf_dynptr_clone(&p, &q));
	MIX(h, bpf_dynptr_is_null(&q));
	MIX(h, dynptr_read(buffer, 4, &p, 0, 0));
	MIX(h, dynptr_write(&p, 0, buffer, 4, 0));
	MIX(h, dynptr_data(&p, 0, 4) != NULL);
	MIX(h, bpf_dynptr_slice(&p, 0, buffer, 4) != NULL);
	return h ^ h >> 32;
}

SEC("tc") int dynptr_of_record(struct __sk_buff *skb)
{
	struct bpf_dynptr p;
	u64 h = 0, *at;

	MIX(h, ringbuf_query(&ring, 0));
	MIX(h, reserve_dynptr(&ring, 64 + n, 0, &p));
	at = dynptr_data(&p, 8, 8);
	if (at)
		*at = 77;
	MIX(h, dynptr_write(&p, 60, &h, 8, 0));
	MIX(h, bpf_dynptr_size(&p));
	discard_dynptr(&p, 0);
	MIX(h, ringbuf_query(&ring, 3));
	MIX(h, reserve_dynptr(&ring, 8192 + n, 0, &p));
	MIX(h, bpf_dynptr_is_null(&p));
	submit_dynptr(&p, 0);
	MIX(h, reserve_dynptr(&ring, 8, n, &p));
	submit_dynptr(&p, 0);
	MIX(h, reserve_dynptr(&ring, 1 << 24, 0, &p));
	submit_dynptr(&p, 0);
	MIX(h, reserve_dynptr(&ring, 16, 0, &p));
	submit_dynptr(&p, 1);
	return h ^ h >> 32;
}

SEC("tc") int dynptr_of_packet(struct __sk_buff *skb)
{
	struct bpf_dynptr p;
	u64 h = 0, word;
	u8 buffer[8] = {}, *at;

	MIX(h, bpf_dynptr_from_skb(skb, 0, &p));
	MIX(h, bpf_dynptr_size(&p));
	MIX(h, bpf_dynptr_is_rdonly(&p));
	MIX(h, dynptr_read(&word, 8, &p, 14, 0));
	MIX(h, word);
	at = bpf_dynptr_slice(&p, 20, buffer, 8);
	MIX(h, at ? at[3] : 256);
	at = bpf_dynptr_slice(&p, 60, buffer, 8);
	MIX(h, at ? at[3] : 256);
	at = bpf_dynptr_slice_rdwr(&p, 30, buffer, 8);
	if (at)
		at[0] = 99;
	word = 0x0102030405060708;
	MIX(h, dynptr_write(&p, 31, &word, 8, 0));
	MIX(h, dynptr_read(&word, 8, &p, 28, 0));
	MIX(h, word);
	MIX(h, bpf_dynptr_from_skb(skb, n, &p));
	MIX(h, bpf_dynptr_is_null(&p));
	return h ^ h >> 32;
}

SEC("xdp") int dynptr_of_frame(struct xdp_md *xdp)
{
	struct bpf_dynptr p;
	u64 h = 0, word;
	u8 buffer[8] = {}, *at;

	MIX(h, bpf_dynptr_from_xdp(xdp, 0, &p));
	MIX(h, bpf_dynptr_size(&p));
	MIX(h, bpf_dynptr_is_rdonly(&p));
	MIX(h, bpf_dynptr_adjust(&p, 14, 50));
	MIX(h, dynptr_read(&word, 8, &p, 2, 0));
	MIX(h, word);
	at = bpf_dynptr_slice_rdwr(&p, 20, buffer, 8);
	if (at)
		at[1] = 99;
	word = 0x0102030405060708;
	MIX(h, dynptr_write(&p, 22, &word, 8, 0));
	MIX(h, dynptr_write(&p, 22, &word, 8, 1));
	MIX(h, dynptr_write(&p, 30, &word, 8, 0));
	MIX(h, dynptr_read(&word, 8, &p, 18, 0));
	MIX(h, word);
	return h ^ h >> 32;
}

static const char texts[][24] = {
	"123", "-123", "  +5", " 0x1fz", "0x", "0xg", "017", "08", "9223372036854775807", "9223372036854775808",
	"-9223372036854775808", "-9223372036854775809", "18446744073709551615", "18446744073709551616", "", " ", "-",
	"abc", "\t\n 42 x", "- 5", "99999999999999999999999", "0", "-0", "ff",
};
static const u64 bases[] = { 0, 8, 10, 16, 2, 32 };
u64 results[64];

NOINLINE u64 parse(const char *text, u64 base)
{
	u64 h = 0, value = 1;
	s64 number = 1;

	MIX(h, strtol(text, 24, base, &number));
	MIX(h, number);
	MIX(h, strtoul(text, 24, base, &value));
	MIX(h, value);
	MIX(h, strtol(text, 2, base, &number));
	MIX(h, number);
	return h;
}

SEC("tc") int numbers_in_text(struct __sk_buff *skb)
{
	u64 h = 0;

	for (u32 i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		for (u32 b = 0; b < sizeof(bases) / sizeof(bases[0]); b++)
			MIX(h, parse(texts[i], bases[b]));
	return h ^ h >> 32;
}

static const char fmt[] = "%d %s|%5u|%-6x|%08llx|%c %%";
static const char word[] = "words";

SEC("tc") int formats(struct __sk_buff *skb)
{
	u64 args[] = { -5, (u64)word, n, 0xabc, 0x123456789, 'z' };
	char out[48] = {};
	u64 h = 0;

	MIX(h, snprintf(out, sizeof(out), fmt, args, sizeof(args)));
	for (u32 i = 0; i < sizeof(out); i++)
		MIX(h, out[i]);
	MIX(h, snprintf(out, 7, fmt, args, sizeof(args)));
	for (u32 i = 0; i < 12; i++)
		MIX(h, out[i]);
	MIX(h, snprintf(NULL, 0, fmt, args, sizeof(args)));
	MIX(h, str_n_cmp(out, 8, "-5 wor"));
	return h ^ h >> 32;
}
