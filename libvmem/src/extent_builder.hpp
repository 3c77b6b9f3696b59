// SPDX-License-Identifier: MIT
/// The one merge rule: when two neighbouring runs of pages are one extent.
#pragma once

#include "vmem/pages.hpp"

namespace vmem {

/// How far the frame or swap slot moves from one page to the next; 0 where a state has
/// neither.
constexpr std::uint64_t step_of(const Extent& run) {
  const bool numbered = run.state == PageState::resident || names_frame(run) ||
                        (run.state == PageState::swapped && run.reason == Reason::none);
  return numbered ? 1 : 0;
}

/// The number that step_of() counts.
constexpr std::uint64_t number_of(const Extent& run) {
  return run.state == PageState::resident || names_frame(run) ? run.pfn.value : run.swap_offset;
}

/// `next` goes on where `run` ends, in every respect that is known: a leaf size that is
/// not known fits any, and the extent's is then not known.
constexpr bool continues(const Extent& run, const Extent& next, PageSize page_size) {
  if (run.end() != next.va || run.state != next.state || run.reason != next.reason ||
      run.bits != next.bits || run.swap_type != next.swap_type || run.backend != next.backend ||
      ((run.pte ^ next.pte) & ~pte_bit::usage) != 0) {
    return false;
  }
  if (run.leaf_shift != next.leaf_shift && run.leaf_shift != 0 && next.leaf_shift != 0)
    return false;
  return step_of(run) == 0 || number_of(run) + page_size.pages(run.bytes) == number_of(next);
}

/// The accessed and dirty bits of two runs that are one extent.
constexpr std::uint16_t merged_usage(std::uint16_t a, std::uint16_t b) {
  const unsigned differ = (a ^ b) & (pte_bit::accessed | pte_bit::dirty);
  const unsigned varies =
      ((a | b) & (pte_bit::accessed_varies | pte_bit::dirty_varies)) | differ * 4;
  return static_cast<std::uint16_t>(((a | b) | varies) & ~(varies / 4));
}
static_assert(pte_bit::accessed * 4 == pte_bit::accessed_varies &&
              pte_bit::dirty * 4 == pte_bit::dirty_varies);

/// Merges runs, in ascending order, and hands on what can grow no more.
class ExtentBuilder {
 public:
  ExtentBuilder(PageSize page_size, ExtentSink sink) : page_size_(page_size), sink_(sink) {}

  /// page_bit that every run of what is there has from now on: absent and changed pages have none.
  void mark(std::uint8_t bits) { marks_ = bits; }

  /// False once the sink has had enough.
  bool add(const Extent& run) { return has_marks(run) ? merge(run) : merge(marked(run)); }

  /// The same for a run that is known to be whole: it goes on nothing that was added, and
  /// nothing will go on it.
  bool hand_on(const Extent& whole) {
    if (!flush()) return false;
    return open_ = has_marks(whole) ? sink_(whole) : sink_(marked(whole));
  }

  /// Hands on the last extent.
  bool flush() {
    if (current_.bytes != 0 && open_) open_ = sink_(current_);
    current_.bytes = 0;
    return open_;
  }

 private:
  bool merge(const Extent& run) {
    if (current_.bytes != 0 && continues(current_, run, page_size_)) {
      current_.bytes += run.bytes;
      if (current_.leaf_shift != run.leaf_shift) current_.leaf_shift = 0;
      if (current_.pte != run.pte) current_.pte = merged_usage(current_.pte, run.pte);
      return true;
    }
    if (!flush()) return false;
    current_ = run;
    return true;
  }

  bool has_marks(const Extent& run) const {
    return (marks_ & ~run.bits) == 0 || run.state == PageState::absent ||
           run.state == PageState::changed;
  }
  Extent marked(Extent run) const {
    run.bits |= marks_;
    return run;
  }

  PageSize page_size_;
  ExtentSink sink_;
  Extent current_;
  std::uint8_t marks_ = 0;
  bool open_ = true;
};

/// The first `bytes` of `run` are cut off and returned; `run` keeps the rest.
constexpr Extent cut_front(Extent& run, std::uint64_t bytes, PageSize page_size) {
  Extent front = run;
  front.bytes = bytes;
  run.va = run.va + bytes;
  run.bytes -= bytes;
  const std::uint64_t pages = step_of(run) * page_size.pages(bytes);
  if (run.state == PageState::resident || names_frame(run))
    run.pfn = run.pfn + pages;
  else
    run.swap_offset += pages;
  return front;
}

}  // namespace vmem
