/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The hook of examples/records: a line of a log on its way, its fields taken apart. */
#include "skep.h"

typedef u8 __u8;
typedef u32 __u32;
typedef u64 __u64;

struct record {
	const __u8 *text;
	const __u8 *text_end;
	__u64 time;
	__u32 level;
	__u32 bytes;
	__u32 route;
} __attribute__((preserve_access_index));

/* Results. */
#define DROP 0
#define KEEP 1
