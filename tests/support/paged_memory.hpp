// SPDX-License-Identifier: MIT
/// Page tables of a test's making: a Translator that reads from a list of pages.
#pragma once

#include <map>
#include <vector>

#include "vmem/pages.hpp"

namespace vmem::test {

/// What stands behind one page. The default is no page.
struct PageModel {
  PageState state = PageState::absent;
  std::uint64_t pfn = 0;
  CacheAttribute cache = CacheAttribute::wb;
  std::uint8_t leaf_shift = 12;
  bool tells_pte = true;
  Reason reason = Reason::none;
};

/// Pages not named are absent. Extents are made page by page, and merged where everything is alike.
class PagedMemory : public Translator {
 public:
  explicit PagedMemory(PageSize page_size = PageSize{4096}) : page_size_(page_size) {}

  std::map<std::uint64_t, PageModel> pages;  ///< by address
  /// Runs of equal pages, beyond what `pages` could hold; looked at first.
  std::vector<Extent> runs;
  unsigned walks = 0;
  /// Called before each walk with its number, from 0.
  void (*before_walk)(PagedMemory&, unsigned) = nullptr;

  Backend backend() const override { return Backend::bpf; }
  std::uint8_t known_bits() const override { return 0; }
  bool sees_pfnmap() const override { return true; }

  Result<void> walk(VaRange range, const WalkOptions&, ExtentSink sink) override {
    if (before_walk != nullptr) before_walk(*this, walks);
    ++walks;
    if (!runs.empty()) {
      for (const Extent& run : runs) {
        if (run.end() > range.start && run.va < range.end && !sink(run)) return {};
      }
      return {};
    }
    Extent open;
    const auto flush = [&] { return open.bytes == 0 || sink(open); };
    VirtAddr va = range.start;
    while (va < range.end) {
      const auto at = pages.lower_bound(va.value);
      Extent next;
      if (at == pages.end() || at->first >= range.end.value) {
        next = {.va = va, .bytes = range.end - va, .state = PageState::absent};
      } else if (at->first != va.value) {
        next = {.va = va, .bytes = at->first - va.value, .state = PageState::absent};
      } else {
        next = extent(va, at->second);
      }
      va = next.end();
      const bool follows = open.bytes != 0 && open.state == next.state &&
                           open.reason == next.reason && open.leaf_shift == next.leaf_shift &&
                           open.pte == next.pte &&
                           (open.state != PageState::resident ||
                            open.pfn.value + page_size_.pages(open.bytes) == next.pfn.value);
      if (follows) {
        open.bytes += next.bytes;
        continue;
      }
      if (!flush()) return {};
      open = next;
    }
    flush();
    return {};
  }

 private:
  Extent extent(VirtAddr va, const PageModel& page) const {
    Extent e{.va = va, .bytes = page_size_.bytes(), .state = page.state, .reason = page.reason};
    if (page.state != PageState::resident && !names_frame(e)) return e;
    e.pfn = {page.pfn};
    if (page.state != PageState::resident) return e;
    e.leaf_shift = page.leaf_shift;
    if (page.tells_pte)
      e.pte =
          static_cast<std::uint16_t>(pte_bit::known | pte_bit::user | pte_bit::cache(page.cache));
    return e;
  }

  PageSize page_size_;
};

}  // namespace vmem::test
