// SPDX-License-Identifier: MIT
/// Leaf sizes of pages that pagemap showed without them: before Linux 6.7 there is no PAGEMAP_SCAN,
/// and consecutive frames may be one huge leaf or many small ones.
#pragma once

#include <algorithm>

#include "extent_builder.hpp"
#include "vmem/pages.hpp"

namespace vmem {

/// Whether page tables would tell more.
constexpr bool lacks_leaf_size(const Extent& extent) {
  return extent.state == PageState::resident && extent.leaf_shift == 0;
}

/// Hands on `extent`, cut where the leaf size changes, with the sizes that `tables` tells. Where
/// these have other frames by now, or cannot be read, the size stays unknown.
inline void with_leaf_sizes(Translator& tables, const Extent& extent, PageSize page_size,
                            ExtentSink sink) {
  ExtentBuilder out{page_size, sink};
  Extent rest = extent;
  bool open = true;
  // What an error left out goes on as it came.
  [[maybe_unused]] const auto walked =
      tables.walk({extent.va, extent.end()}, {}, [&](const Extent& told) {
        if (told.va != rest.va || rest.bytes == 0) return false;
        const std::uint64_t bytes = std::min(told.bytes, rest.bytes);
        Extent part = cut_front(rest, bytes, page_size);
        if (told.state == PageState::resident && told.pfn == part.pfn)
          part.leaf_shift = told.leaf_shift;
        return open = out.add(part);
      });
  if (open && rest.bytes != 0) open = out.add(rest);
  if (open) out.flush();
}

}  // namespace vmem
