// SPDX-License-Identifier: MIT OR Apache-2.0
#define VERSION 2
#include "version.h"
