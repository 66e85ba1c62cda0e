// SPDX-License-Identifier: MIT OR Apache-2.0
// Plug-ins for a hook of an application: its struct, as `c_declaration` writes it.
#include "skep.h"

typedef u8 __u8;
typedef u32 __u32;
typedef u64 __u64;

struct request {
	const __u8 *path;
	const __u8 *path_end;
	__u32 method;
	__u32 status;
} __attribute__((preserve_access_index));

struct {
	__uint(type, MAP_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 4);
} seen SEC(".maps");

SEC("hook/request")
int deny_admin(struct request *r)
{
	static const char admin[] = { '/', 'a', 'd', 'm', 'i', 'n' };
	const __u8 *path = r->path;
	__u32 key = 0;
	__u64 *count = map_lookup(&seen, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	if (path + sizeof(admin) > r->path_end)
		return 0;
	for (__u32 i = 0; i < sizeof(admin); i++)
		if (path[i] != admin[i])
			return 0;
	r->status = 403;
	return 1;
}
