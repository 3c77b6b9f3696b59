// SPDX-License-Identifier: MIT
/// Asks PAGEMAP_SCAN whether pagemap is blind to a VMA.
#pragma once

#include <cstdint>

#include "vmem/maps.hpp"

namespace vmem {

/// The kernel passes over a VM_PFNMAP VMA (pagemap_scan_test_walk() in fs/proc/task_mmu.c), and
/// returns every page of any other VMA, also a page that is not there, as long as no category is
/// asked for. So one page tells. Whoever may open pagemap may ask, and the question holds
/// mmap_lock for that page alone.
class PagemapSight {
 public:
  enum class Answer : std::uint8_t { sighted, blind, cannot_tell };

  /// `blind` also where no VMA is at `page` any more. `cannot_tell` before Linux 6.7, and of
  /// recorded systems.
  Answer ask(const Process& process, VirtAddr page);

 private:
  Fd pagemap_;
  bool refused_ = false;
};

}  // namespace vmem
