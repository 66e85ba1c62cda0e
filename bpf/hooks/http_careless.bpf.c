// SPDX-License-Identifier: MIT OR Apache-2.0
// A version of http_paths.bpf.c with a mistake: it looks at bytes that the path need not have. It is refused.
#include "http.h"

SEC("hook/request")
int paths(struct http_request *r)
{
	const __u8 *path = r->path;

	if (path[1] == 'a' && path[2] == 'd') {
		r->status = 404;
		return ANSWER;
	}
	return PASS;
}
