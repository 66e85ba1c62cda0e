/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Functions of the application that plug-ins call in crates/skep/tests/host.rs. */
#include "skep.h"

struct sum {
	u64 total;
	u32 version;
	u32 key;
} __attribute__((preserve_access_index));

#define __ksym __attribute__((section(".ksyms")))

struct session {};
extern u32 level(u32 key) __ksym;
extern s64 signed_sum(signed char a, s64 b) __ksym;
extern u64 weigh(const void *bytes, u64 bytes__sz) __ksym;
extern void fill(void *bytes, u64 bytes__sz) __ksym;
extern struct session *session_get(u32 key) __ksym;
extern struct session *session_new(void) __ksym;
extern void session_put(struct session *session) __ksym;
extern u32 session_key(struct session *session) __ksym;
extern u8 session_known(struct session *session__nullable) __ksym;
