// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli.hpp"
#include "vmastat_output.hpp"

namespace vmem::tools {

struct StatOptions : CommonOptions {
  std::string by = "vma";  ///< vma, class, kind, file, node, process
  bool all = false;
  std::string sort;
  std::optional<std::uint64_t> top;
  bool pages = false;
  bool smaps = false;
  bool thp = false;
  bool tree = false;
  std::optional<double> watch;  ///< seconds
  std::uint64_t count = 0;      ///< looks; 0: no end
  bool openmetrics = false;
  bool map = false;
  std::string html;             ///< the file to write; empty: none
  unsigned threads = 0;         ///< 0: as there are CPUs, 2 at most
};

/// Sums the processes that `words` and the options name, and returns the exit status.
int run_vmastat(const StatOptions& options, const std::vector<std::string>& words);

}  // namespace vmem::tools
