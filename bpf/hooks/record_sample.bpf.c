// SPDX-License-Identifier: MIT OR Apache-2.0
// Filter of examples/records: one of a hundred lines that mention a time-out is kept, and goes to the second output.
#include "record.h"

u64 seen;

SEC("hook/record")
int sample(struct record *r)
{
	static const char word[] = { 't', 'i', 'm', 'e', 'o', 'u', 't' };
	const __u8 *text = r->text;

	for (__u32 at = 0; at < 256; at++) {
		__u32 n = 0;

		if (text + at + sizeof(word) > r->text_end)
			return DROP;
		while (n < sizeof(word) && text[at + n] == word[n])
			n++;
		if (n < sizeof(word))
			continue;
		if (__sync_fetch_and_add(&seen, 1) % 100)
			return DROP;
		r->route = 1;
		return KEEP;
	}
	return DROP;
}
