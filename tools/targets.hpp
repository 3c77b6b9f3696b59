// SPDX-License-Identifier: MIT
/// From TARGET words to processes. All of these say themselves, on stderr, what is wrong.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "cli.hpp"

namespace vmem::tools {

/// The live system, or the one recorded in --sysroot.
std::optional<SysRoot> open_root(const CommonOptions& options, const Messages& messages);

/// The one process that the options and `target` (a PID or "self"; not with -n) name.
std::optional<Process> open_target(const CommonOptions& options, const std::string& target,
                                   const Messages& messages);

/// The processes that the options (-n, here any number) and `words` name, each once, in the
/// order asked. They are not opened: whether each can be is for the caller to say. `partial`: why
/// -n may not have found all, which has been said and makes the answer weaker.
std::optional<std::vector<pid_t>> find_targets(const SysRoot& root, const CommonOptions& options,
                                               const std::vector<std::string>& words,
                                               const Messages& messages,
                                               std::optional<std::string_view>& partial);

}  // namespace vmem::tools
