// SPDX-License-Identifier: MIT
/// A VMA as every tool's JSON has it.
#pragma once

#include <optional>
#include <string>

#include "vmem/maps.hpp"

namespace vmem::tools {

/// "8:1", as maps has it (hexadecimal).
std::string device_number(const Vma& vma);

/// "start":…,"flags":[…] without braces; "path" as json_name() has it. `flags` empty: null.
std::string vma_json(const Vma& vma, Classification classification,
                     const std::optional<VmFlags>& flags);

}  // namespace vmem::tools
