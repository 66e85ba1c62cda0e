// SPDX-License-Identifier: MIT OR Apache-2.0
// Policy of examples/http: a bucket of tokens for each client, filled again as time goes by.
#include "http.h"

#define BURST 20
#define PER_SECOND 10
#define SECOND 1000000000ULL

struct bucket {
	__u64 filled_at;
	__u64 tokens;
};

struct {
	__uint(type, 9); /* LRU hash: clients that do not come back make room */
	__type(key, __u64);
	__type(value, struct bucket);
	__uint(max_entries, 65536);
} buckets SEC(".maps");

SEC("hook/request")
int rate(struct http_request *r)
{
	__u64 client = r->client, now = ktime_ns();
	struct bucket *bucket = map_lookup(&buckets, &client);
	struct bucket fresh = { now, BURST - 1 };
	__u64 earned;

	if (!bucket) {
		map_update(&buckets, &client, &fresh, ANY);
		return PASS;
	}
	earned = (now - bucket->filled_at) / (SECOND / PER_SECOND);
	if (earned) {
		__u64 tokens = bucket->tokens + earned;

		bucket->tokens = tokens > BURST ? BURST : tokens;
		bucket->filled_at += earned * (SECOND / PER_SECOND);
	}
	if (bucket->tokens) {
		bucket->tokens--;
		return PASS;
	}
	r->status = 429;
	r->retry_after = 1;
	return ANSWER;
}
