/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The hook of examples/http: its struct, as `http-policies --print-header` writes it. */
#include "skep.h"

typedef u8 __u8;
typedef u32 __u32;
typedef u64 __u64;

struct http_request {
	const __u8 *path;
	const __u8 *path_end;
	const __u8 *user_agent;
	const __u8 *user_agent_end;
	__u64 client;
	__u32 method;
	__u32 status;
	__u32 retry_after;
} __attribute__((preserve_access_index));

/* Methods. */
#define GET 1
#define HEAD 2
#define POST 3

/* Results: the next plug-in is asked, or the request is answered with `status`. */
#define PASS 0
#define ANSWER 1
