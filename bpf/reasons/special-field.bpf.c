// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct account {
	struct bpf_spin_lock lock;
	u32 amount;
};

struct {
	__uint(type, MAP_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct account);
} accounts SEC(".maps");

SEC("tc")
int rejected(struct __sk_buff *skb)
{
	u32 key = 0;
	struct account *account = map_lookup(&accounts, &key);

	if (!account)
		return 0;
	account->lock.val = 0;
	account->amount = 0;
	return 0;
}

/* Fixed. */
SEC("tc")
int accepted(struct __sk_buff *skb)
{
	u32 key = 0;
	struct account *account = map_lookup(&accounts, &key);

	if (!account)
		return 0;
	account->amount = 0;
	return 0;
}
