// SPDX-License-Identifier: MIT
/// PAGEMAP_SCAN (Linux 6.7): struct pm_scan_arg, struct page_region and PAGE_IS_* of
/// include/uapi/linux/fs.h, which older headers lack.
#pragma once

#include <sys/ioctl.h>

#include <cstdint>

namespace vmem::pagemap {

struct ScanArgument {
  std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
  std::uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(ScanArgument) == 96);

struct ScanRegion {
  std::uint64_t start, end, categories;
};

inline constexpr unsigned long scan_request = _IOWR('f', 16, ScanArgument);
static_assert(scan_request == 0xc0606610);

inline constexpr std::uint64_t page_is_present = 1 << 3;
inline constexpr std::uint64_t page_is_swapped = 1 << 4;  // markers and guard pages too
inline constexpr std::uint64_t page_is_huge = 1 << 6;     // a PMD leaf, or any hugetlb page

}  // namespace vmem::pagemap
