// SPDX-License-Identifier: MIT OR Apache-2.0
// Lacks the operation that is optional.
#define STEP 10
#include "counter.h"
