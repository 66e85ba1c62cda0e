// SPDX-License-Identifier: MIT OR Apache-2.0
#include "reasons/reasons.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define MAP(n)                         \
	struct {                       \
		__uint(type, MAP_ARRAY);     \
		__uint(max_entries, 1);      \
		__type(key, u32);      \
		__type(value, u64);    \
	} m##n SEC(".maps");
#define EACH(of)                                                                \
	of(0) of(1) of(2) of(3) of(4) of(5) of(6) of(7) of(8) of(9) of(10) of(11) of(12)  \
	of(13) of(14) of(15) of(16) of(17) of(18) of(19) of(20) of(21) of(22) of(23)      \
	of(24) of(25) of(26) of(27) of(28) of(29) of(30) of(31) of(32) of(33) of(34)      \
	of(35) of(36) of(37) of(38) of(39) of(40) of(41) of(42) of(43) of(44) of(45)      \
	of(46) of(47) of(48) of(49) of(50) of(51) of(52) of(53) of(54) of(55) of(56)      \
	of(57) of(58) of(59) of(60) of(61) of(62) of(63) of(64)
#define USE(n) asm volatile("" ::"r"(&m##n));

EACH(MAP)

SEC("socket")
int rejected(struct __sk_buff *skb)
{
	EACH(USE)
	return 0;
}
