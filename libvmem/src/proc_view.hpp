// SPDX-License-Identifier: MIT
/// What this reader is shown of the live /proc, and why it is not shown more.
#pragma once

#include <optional>
#include <string_view>

namespace vmem {

/// See SysRoot::hidden_processes(). `root`: a descriptor of the root directory.
std::optional<std::string_view> hidden_processes(int root);

}  // namespace vmem
