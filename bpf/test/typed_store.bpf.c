// SPDX-License-Identifier: MIT OR Apache-2.0
// Writes through a pointer of the traced process: refused.
#include "skep.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct conn {
	long id;
} __attribute__((preserve_access_index));

SEC("fentry/mix")
int on_entry(u64 *ctx)
{
	struct conn *conn = (void *)ctx[5];

	conn->id = 1;
	return 0;
}
