// SPDX-License-Identifier: MIT OR Apache-2.0
// A filter of examples/records that may not end: it is refused.
#include "record.h"

SEC("hook/record")
int loud(struct record *r)
{
	volatile __u64 n = r->time;

	while (n != 0)
		n = n * 3 + 1;
	return KEEP;
}
