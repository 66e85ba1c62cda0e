// SPDX-License-Identifier: MIT OR Apache-2.0
// Keeps what it should give back on one of its paths.
#include "functions.h"

SEC("hook/sum")
int add(struct sum *s)
{
	struct session *session = session_get(s->key);

	if (!session)
		return 0;
	s->total = session_key(session);
	if (s->total > 7)
		return 1;
	session_put(session);
	return 0;
}
