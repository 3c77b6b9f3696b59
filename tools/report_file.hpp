// SPDX-License-Identifier: MIT
/// A report that a tool writes into a file besides what it prints.
#pragma once

#include <string>
#include <string_view>

#include "cli.hpp"

namespace vmem::tools {

/// Writes `text` into `file`: whole or not at all, in place of an old one at once, where the
/// directory allows that; a symbolic link stays, and what it leads to is replaced. What is no
/// regular file is written to as it is, and so is this process's own stdout by its name
/// (/dev/stdout). False, and a message, where it could not be.
bool write_report(const std::string& file, std::string_view text, const Messages& messages);

}  // namespace vmem::tools
