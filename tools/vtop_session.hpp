// SPDX-License-Identifier: MIT
/// One run of vtop: the questions, asked of a process and answered on stdout.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli.hpp"
#include "vtop_output.hpp"

namespace vmem::tools {

struct VtopOptions : CommonOptions {
  bool pages = false;
  bool frames = false;
  bool walk = false;
  std::optional<double> watch;  ///< seconds
  std::uint64_t count = 0;      ///< looks; 0: no end
  unsigned threads = 0;         ///< 0: as there are CPUs, 2 at most
};

/// Answers each of `addresses` (none: every mapping), and returns the exit status.
int run_vtop(const VtopOptions& options, Process& process, Translator& translator,
             std::vector<Column> columns, const std::vector<std::string>& addresses);

}  // namespace vmem::tools
