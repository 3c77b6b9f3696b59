// SPDX-License-Identifier: MIT
#pragma once

// The library is built with hidden visibility; what a caller may use says so.
#define VMEM_EXPORT __attribute__((visibility("default")))
