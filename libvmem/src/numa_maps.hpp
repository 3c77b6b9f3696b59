// SPDX-License-Identifier: MIT
/// proc/PID/numa_maps as a stream: the memory policy of each VMA, and its pages by node.
/// Source: show_numa_map() in fs/proc/task_mmu.c, mpol_to_str() in mm/mempolicy.c.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "line_chunks.hpp"
#include "vmem/stats.hpp"
#include "vmem/sysroot.hpp"

namespace vmem {

struct NumaMapsEntry {
  VirtAddr start;  ///< of the VMA; the file has no ends
  std::string policy;  ///< "default", "bind:0", "weighted interleave:0-1", "bind=static:0"
  /// Bytes by node; empty where an old kernel does not say how large a page is.
  std::optional<Tally> nodes;
};

/// Empty: not a line of numa_maps.
std::optional<NumaMapsEntry> parse_numa_maps_line(std::string_view line);

/// For ascending questions. The kernel walks every page up to the VMA asked for, so nothing is
/// read before the first question.
class NumaMapsReader {
 public:
  explicit NumaMapsReader(const Process& process) : process_(process) {}

  /// The entry of the VMA that begins at `start`; null if there is none, or no numa_maps (a kernel
  /// without NUMA), or it is refused. Valid until the next question.
  const NumaMapsEntry* find(VirtAddr start);

 private:
  bool advance();
  const Process& process_;
  std::optional<LineChunks> chunks_;
  std::string_view rest_;
  std::optional<NumaMapsEntry> current_;
  bool refused_ = false;
};

}  // namespace vmem
