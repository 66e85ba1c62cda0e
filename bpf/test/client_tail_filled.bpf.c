// SPDX-License-Identifier: MIT OR Apache-2.0
// The same with what is in the array said by the object.
#define FILLED
#include "client_tail.bpf.c"
