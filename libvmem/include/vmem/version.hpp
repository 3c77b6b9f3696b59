// SPDX-License-Identifier: MIT
/// The version of these headers. Both build systems read it from this line.
#pragma once

#define VMEM_VERSION "0.1.0"
