// SPDX-License-Identifier: MIT
/// Which pages of a huge leaf are mapped once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vmem/frames.hpp"
#include "vmem/pages.hpp"

namespace vmem {

/// The frames of a leaf; where its size is not told, of the next level's.
inline std::uint64_t leaf_frames(const Extent& extent, PageSize page_size) {
  const unsigned shift =
      extent.leaf_shift != 0 ? extent.leaf_shift : page_size.next_level().shift();
  return std::uint64_t{1} << (shift - page_size.shift());
}

/// Newer kernels (6.18) ask of one page and set bit 56 alike for all of a PMD leaf; of a huge page
/// that another process maps in part that is true of some pages only. kpagecount tells them apart.
/// Where it is the same for all the leaf, bit 56 holds for all of it, and it must be
/// taken: under CONFIG_NO_PAGE_MAPCOUNT the count is an average, 1 also for pages that are shared.
class LeafSharing {
 public:
  /// Calls `sink(first, frames, facts, exclusive)` for runs that tile [first, first + frames).
  /// `leaf` frames, a power of two, make one leaf; `bit` is what pagemap said of all these pages.
  template <class Sink>
  Result<void> read(FrameReader& reader, Pfn first, std::uint64_t frames, std::uint64_t leaf,
                    bool bit, Sink sink) {
    while (frames != 0) {
      const std::uint64_t before = first.value & (leaf - 1);
      const std::uint64_t count = std::min(frames, leaf - before);
      const Pfn end = first + count;
      runs_.clear();
      auto read = reader.read({first.value - before}, leaf,
                              [&](Pfn at, std::uint64_t run, const FrameFacts& facts) {
                                runs_.push_back({at, run, facts});
                                return true;
                              });
      if (!read) return read;
      const bool mixed = std::ranges::any_of(
          runs_, [&](const Run& r) { return r.facts.mapcount != runs_.front().facts.mapcount; });
      for (const Run& r : runs_) {
        const Pfn from = std::max(r.first, first), to = std::min(r.first + r.frames, end);
        if (from < to)
          sink(from, to.value - from.value, r.facts, mixed ? r.facts.mapcount == 1 : bit);
      }
      first = end;
      frames -= count;
    }
    return {};
  }

 private:
  struct Run {
    Pfn first;
    std::uint64_t frames = 0;
    FrameFacts facts;
  };
  std::vector<Run> runs_;
};

}  // namespace vmem
