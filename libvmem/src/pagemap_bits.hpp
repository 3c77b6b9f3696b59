// SPDX-License-Identifier: MIT
/// The one copy of the pagemap entry's layout.
/// Source: Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c (PM_*).
#pragma once

#include <cstdint>

#include "vmem/types.hpp"

namespace vmem::pagemap {

inline constexpr std::uint64_t pfn_mask = (std::uint64_t{1} << 55) - 1;
/// Frames from here on have no address of 64 bits, whatever the page size: no machine has them.
inline constexpr std::uint64_t pfn_end = std::uint64_t{1} << 48;
inline constexpr std::uint64_t bit_soft_dirty = std::uint64_t{1} << 55;
inline constexpr std::uint64_t bit_exclusive = std::uint64_t{1} << 56;
inline constexpr std::uint64_t bit_uffd_wp = std::uint64_t{1} << 57;
inline constexpr std::uint64_t bit_guard = std::uint64_t{1} << 58;
inline constexpr std::uint64_t bit_file = std::uint64_t{1} << 61;
inline constexpr std::uint64_t bit_swap = std::uint64_t{1} << 62;
inline constexpr std::uint64_t bit_present = std::uint64_t{1} << 63;

constexpr bool present(std::uint64_t entry) { return (entry & bit_present) != 0; }
constexpr Pfn pfn(std::uint64_t entry) { return {entry & pfn_mask}; }
constexpr std::uint8_t swap_type(std::uint64_t entry) { return entry & 31; }
constexpr std::uint64_t swap_offset(std::uint64_t entry) { return (entry & pfn_mask) >> 5; }

// Swap types above the swap areas' own are the kernel's (include/linux/swap.h). How many
// there are depends on its configuration, 9 at most: 4 device-private, 3 migration,
// 1 poison, 1 for markers, which is the last (31). A type below 23 is always a swap area.
inline constexpr std::uint8_t marker_type = 31;
inline constexpr std::uint8_t first_special_type = 23;
// include/linux/swapops.h, PTE_MARKER_*
inline constexpr std::uint64_t marker_uffd_wp = 1;
inline constexpr std::uint64_t marker_poisoned = 2;
inline constexpr std::uint64_t marker_guard = 4;

}  // namespace vmem::pagemap
