// SPDX-License-Identifier: MIT OR Apache-2.0
// Policy of examples/http: nobody posts, and what is below /admin is hidden.
#include "http.h"

static const char hidden[] = { '/', 'a', 'd', 'm', 'i', 'n' };

SEC("hook/request")
int paths(struct http_request *r)
{
	const __u8 *path = r->path;

	if (r->method == POST) {
		r->status = 405;
		return ANSWER;
	}
	if (path + sizeof(hidden) > r->path_end)
		return PASS;
	for (__u32 i = 0; i < sizeof(hidden); i++)
		if (path[i] != hidden[i])
			return PASS;
	r->status = 404;
	return ANSWER;
}
