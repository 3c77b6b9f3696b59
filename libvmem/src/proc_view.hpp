// SPDX-License-Identifier: MIT
/// What this reader is shown of the live /proc, and why it is not shown more.
#pragma once

#include <optional>
#include <string_view>

#include "vmem/error.hpp"

namespace vmem {

/// See SysRoot::hidden_processes(). `root`: a descriptor of the root directory.
std::optional<std::string_view> hidden_processes(int root);

/// Whether a proc file system is there at all.
bool proc_is_mounted(int root);

/// `path` could not be opened: if it is below proc, and that is not mounted, shows another PID
/// namespace, or not all of its files, the error says so.
void explain_missing(int root, std::string_view path, Error& error);

}  // namespace vmem
