// SPDX-License-Identifier: MIT
/// The pool of huge pages: what the sums of mappings cannot have.
#pragma once

#include <cstdint>
#include <optional>

#include "vmem/sysroot.hpp"

namespace vmem::tools {

/// All sizes together, in bytes. Source: Documentation/admin-guide/mm/hugetlbpage.rst.
struct HugePagePool {
  std::uint64_t used = 0;  ///< not free: in mappings, files, SysV segments
  std::uint64_t reserved = 0;  ///< free, and promised to mappings that have not touched them
};

/// Empty: the system does not say it, or its numbers do not fit together.
std::optional<HugePagePool> read_huge_page_pool(const SysRoot& root);

}  // namespace vmem::tools
