// SPDX-License-Identifier: MIT
/// The kernel's vm_flags by the names that smaps has for them.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>

#include "vmem/maps.hpp"

namespace vmem {

/// vm_flags of a VMA, as the kernel has them.
struct VmaWord {
  VaRange range;
  std::uint64_t flags = 0;
};

/// What show_smap_vma_flags() (fs/proc/task_mmu.c) makes of a word depends on nothing but the word.
/// So a word that was seen beside its line is known whatever its bits are. Of bits 0 to 31, whose
/// meaning no kernel since 5.15 has changed, the names are known beforehand.
class VmFlagNames {
 public:
  /// Compares the names with what smaps says of this process's own VMAs, and learns from it.
  /// Errors: not_supported if they differ: then no name is certain.
  static Result<VmFlagNames> learn(const Process& self, std::span<const VmaWord> own);

  /// Empty: it has a bit whose name is not certain.
  std::optional<VmFlags> of(std::uint64_t word) const;

 private:
  std::map<std::uint64_t, VmFlags> seen_;
};

}  // namespace vmem
