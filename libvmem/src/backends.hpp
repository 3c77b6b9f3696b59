// SPDX-License-Identifier: MIT
/// The sources of page facts, each behind its opener; open_translator.cpp chooses.
#pragma once

#include <memory>

#include "vmem/pages.hpp"

namespace vmem {

Result<std::unique_ptr<Translator>> open_pagemap(const Process& process);
/// Errors: not_supported (this build, kernel or recorded tree has none), permission; the hint
/// says what is missing.
Result<std::unique_ptr<Translator>> open_bpf(const Process& process);
Result<std::unique_ptr<Translator>> open_kmod(const Process& process);
/// proc/PID/extents of a recorded system (recorded_extents.hpp). Errors: not_found, malformed.
Result<std::unique_ptr<Translator>> open_recorded_extents(const Process& process);

}  // namespace vmem
