// SPDX-License-Identifier: MIT
/// What a pagemap entry says of a page.
#pragma once

#include <cstdint>

#include "pagemap_bits.hpp"
#include "vmem/pages.hpp"

namespace vmem::pagemap {

/// Soft-dirty, exclusive and uffd-wp are neighbours in the entry and in page_bit.
constexpr std::uint8_t bits(std::uint64_t entry) {
  return static_cast<std::uint8_t>(((entry >> 55) & 7) | ((entry >> (61 - 3)) & 8));
}
static_assert(bits(bit_soft_dirty) == page_bit::soft_dirty);
static_assert(bits(bit_exclusive) == page_bit::exclusive);
static_assert(bits(bit_uffd_wp) == page_bit::uffd_wp);
static_assert(bits(bit_file) == page_bit::file);

/// What an entry says, of one page: everything but the address.
struct Decoded {
  PageState state = PageState::absent;
  Reason reason = Reason::none;
  std::uint8_t bits = 0;
  std::uint8_t swap_type = 0;
  std::uint64_t value = 0;  ///< PFN, swap offset, or the frame that an entry names
};

/// What a swap entry means, wherever it stands: in pagemap or in a page table.
constexpr void decode_swap(std::uint8_t type, std::uint64_t offset, Decoded& d) {
  if (type == marker_type) {
    // Guard regions are older (6.13) than their pagemap bit (6.15).
    d.state = offset == marker_guard ? PageState::guard : PageState::special;
    if (offset == marker_uffd_wp)
      d.reason = Reason::uffd_wp_marker;
    else if (offset == marker_poisoned)
      d.reason = Reason::poison_marker;
    else if (offset != marker_guard)
      d.reason = Reason::other_marker;
  } else if (type >= first_special_type) {
    d.state = PageState::special;
    d.reason = offset < pfn_end ? Reason::migration_or_device : Reason::unknown_entry;
    if (offset >= pfn_end) return;
    d.swap_type = type;
    d.value = offset;
  } else {
    d.state = PageState::swapped;
    d.swap_type = type;
    d.value = offset;
  }
}

/// `proven`: this reader is known to be shown PFNs, so that PFN 0 is frame 0; otherwise a
/// zero field means that it is hidden.
constexpr Decoded decode(std::uint64_t entry, bool proven) {
  Decoded d;
  d.bits = bits(entry);
  if (present(entry)) {
    if (pfn(entry).value >= pfn_end) {
      d.state = PageState::special;
      d.reason = Reason::unknown_entry;
      return d;
    }
    d.value = pfn(entry).value;
    d.state = d.value != 0 || proven ? PageState::resident : PageState::hidden;
  } else if ((entry & bit_guard) != 0) {
    d.state = PageState::guard;
  } else if ((entry & bit_swap) != 0) {
    const std::uint8_t type = swap_type(entry);
    const std::uint64_t offset = swap_offset(entry);
    if (!proven && (entry & pfn_mask) == 0) {
      d.state = PageState::swapped;
      d.reason = Reason::swap_fields_hidden;
    } else {
      decode_swap(type, offset, d);
    }
  }
  return d;
}

}  // namespace vmem::pagemap
