// SPDX-License-Identifier: MIT OR Apache-2.0
// Kernel functions on strings (Linux 6.17 and later).
#include "engine.h"

KSYM int bpf_strcmp(const char *a, const char *b);
KSYM int bpf_strcasecmp(const char *a, const char *b);
KSYM int bpf_strchr(const char *s, char c);
KSYM int bpf_strnchr(const char *s, u64 count, char c);
KSYM int bpf_strchrnul(const char *s, char c);
KSYM int bpf_strrchr(const char *s, int c);
KSYM int bpf_strlen(const char *s);
KSYM int bpf_strnlen(const char *s, u64 count);
KSYM int bpf_strspn(const char *s, const char *accept);
KSYM int bpf_strcspn(const char *s, const char *reject);
KSYM int bpf_strstr(const char *s, const char *needle);
KSYM int bpf_strnstr(const char *s, const char *needle, u64 len);

#define MIX(h, x) ((h) = (h) * 31 + (u64)(x))

static char texts[][32] = {
	"", "a", "hello world", "Hello World", "hello", "world", "lo w", "aaaaaaaaab", "aab", "zzz", "o", "orld",
	"exactly thirty-one characters...",
};

/* Some of these are not terminated before the next one begins, or at all. */
SEC("tc") int strings(struct __sk_buff *skb)
{
	u64 h = 0;

	for (u32 i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		const char *s = texts[i];

		MIX(h, bpf_strlen(s));
		for (u32 n = 0; n < 14; n += 3) {
			MIX(h, bpf_strnlen(s, n));
			MIX(h, bpf_strnchr(s, n, 'o'));
			MIX(h, bpf_strnchr(s, n, 0));
		}
		MIX(h, bpf_strchr(s, 'o'));
		MIX(h, bpf_strchr(s, 0));
		MIX(h, bpf_strchr(s, 'q'));
		MIX(h, bpf_strchrnul(s, 'o'));
		MIX(h, bpf_strchrnul(s, 'q'));
		MIX(h, bpf_strrchr(s, 'o'));
		MIX(h, bpf_strrchr(s, 'q'));
		MIX(h, bpf_strrchr(s, 0));
	}
	return h ^ h >> 32;
}

SEC("tc") int pairs_of_strings(struct __sk_buff *skb)
{
	u64 h = 0;

	for (u32 i = 0; i < 12; i++) {
		const char *s = texts[i];

		for (u32 k = 0; k < 12; k++) {
			const char *t = texts[k];

			MIX(h, bpf_strcmp(s, t));
			MIX(h, bpf_strcasecmp(s, t));
			MIX(h, bpf_strspn(s, t));
			MIX(h, bpf_strcspn(s, t));
			MIX(h, bpf_strstr(s, t));
			for (u32 n = 0; n < 14; n += 3)
				MIX(h, bpf_strnstr(s, t, n));
		}
	}
	return h ^ h >> 32;
}

SEC("tc") int strings_nowhere(struct __sk_buff *skb)
{
	const char *none = NULL, *bad = (const char *)8;
	u64 h = 0;

	HIDE(none), HIDE(bad);
	MIX(h, bpf_strlen(bad));
	MIX(h, bpf_strcmp(bad, texts[2]));
	MIX(h, bpf_strcmp(texts[2], bad));
	MIX(h, bpf_strstr(texts[2], bad));
	MIX(h, bpf_strchr(bad, 'a'));
	return h ^ h >> 32;
}
