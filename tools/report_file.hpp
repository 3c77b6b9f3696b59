// SPDX-License-Identifier: MIT
/// A report that a tool writes into a file besides what it prints.
#pragma once

#include <string>
#include <string_view>

#include "cli.hpp"

namespace vmem::tools {

/// Writes `text` into `file`: whole or not at all, in place of an old one at once; a symbolic link
/// stays, and what it leads to is replaced. Written to as it is: what is no regular file, has
/// several names or another owner, lies in a directory where nothing can be made, and what this
/// process writes to anyway (/dev/stdout, /dev/fd/3). False, and a message, where it could not be.
bool write_report(const std::string& file, std::string_view text, const Messages& messages);

}  // namespace vmem::tools
