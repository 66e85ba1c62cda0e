// SPDX-License-Identifier: MIT OR Apache-2.0
// An event of 64 bytes per entry of the function that `--func` names; its consumer is woken when it sleeps.
#include "test/cost_event.h"

SEC("kprobe")
int on_entry(struct pt_regs *ctx)
{
	return event(ctx, 0);
}
