// SPDX-License-Identifier: MIT OR Apache-2.0
// Policy of examples/http: clients that do not say who they are, or say that they are a robot.
#include "http.h"

SEC("hook/request")
int agents(struct http_request *r)
{
	const __u8 *agent = r->user_agent;

	if (agent == r->user_agent_end) {
		r->status = 400;
		return ANSWER;
	}
	for (__u32 i = 0; i < 64; i++) {
		if (agent + i + 3 > r->user_agent_end)
			return PASS;
		if (agent[i] == 'b' && agent[i + 1] == 'o' && agent[i + 2] == 't') {
			r->status = 403;
			return ANSWER;
		}
	}
	return PASS;
}
