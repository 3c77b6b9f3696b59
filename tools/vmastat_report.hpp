// SPDX-License-Identifier: MIT
/// What vmastat makes of the same sums besides tables: metrics, a map, a report with pictures.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "render.hpp"
#include "vmem/stats.hpp"

namespace vmem::tools {

/// Takes all processes, one after another, and prints at the end (or after each).
class StatReport {
 public:
  virtual ~StatReport() = default;
  /// Before a process is read.
  virtual void begin(const Process& process) = 0;
  virtual void extent(const Vma& vma, const Extent& extent) = 0;
  virtual void vma(const VmaStats& stats) = 0;
  /// After a process was read; `whole`: to its end.
  virtual void end(const MemorySums& sums, bool whole) = 0;
  /// After all of them. `refused`: processes that could not be read.
  virtual void finish(std::size_t refused) = 0;
};

/// What metrics say of the machine; empty: not known.
struct MachineFacts {
  std::optional<std::uint64_t> max_map_count;
  std::optional<bool> hidden;  ///< not all processes are seen (hidepid)
};

/// OpenMetrics text, which the node exporter's textfile collector reads, too.
std::unique_ptr<StatReport> openmetrics_report(Output& out, const MachineFacts& machine);

/// The address space as cells of a terminal that is `width` columns wide.
std::unique_ptr<StatReport> map_report(Output& out, const SysRoot& root, unsigned width,
                                       bool color);

/// One self-contained HTML document, into `html`.
std::unique_ptr<StatReport> html_report(std::string& html, const SysRoot& root);

}  // namespace vmem::tools
