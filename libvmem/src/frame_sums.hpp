// SPDX-License-Identifier: MIT
/// Sums of kpageflags over the frames of a walk: gathered, put in order, read in batches.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "vmem/frames.hpp"
#include "vmem/stats.hpp"

namespace vmem {

struct FrameSpan {
  Pfn first;
  std::uint64_t frames = 0;
};

/// Runs of frames, to be read in the order of their frames. The kernel's cost is the way to a
/// frame's struct page, which the processor shortens where the next one is its neighbour: in
/// fragmented memory, a third. And neighbours are fewer reads.
class FrameRuns {
 public:
  bool empty() const { return runs_.empty(); }
  /// As many runs as take 2 MiB, or as many frames as take the kernel some 150 ms.
  bool full() const { return runs_.size() >= most_runs || frames_ >= most_frames; }
  std::uint64_t frames() const { return frames_; }

  /// False: it does not fit in here (no machine's, but a recording may say anything).
  bool add(FrameSpan span) {
    if (span.first.value + span.frames > max_first || span.frames > max_frames) return false;
    frames_ += span.frames;
    if (!runs_.empty()) {
      // Frames often come in descending order, as the allocator hands them out.
      FrameSpan last = unpacked(runs_.back());
      const bool before = span.first + span.frames == last.first;
      if (last.frames + span.frames <= max_frames &&
          (before || last.first + last.frames == span.first)) {
        if (before) last.first = span.first;
        last.frames += span.frames;
        runs_.back() = packed(last);
        return true;
      }
    }
    runs_.push_back(packed(span));
    return true;
  }

  /// By the first frame: a radix sort, since a comparing one takes as long as what it saves.
  void sort() {
    if (runs_.size() < 2) return;
    spare_.resize(runs_.size());
    constexpr unsigned digit = 10;
    for (unsigned shift = count_bits; shift < 64; shift += digit) {
      std::array<std::uint32_t, (1U << digit) + 1> starts{};
      const auto of = [&](std::uint64_t run) { return run >> shift & ((1U << digit) - 1); };
      for (const std::uint64_t run : runs_) ++starts[of(run) + 1];
      if (starts[of(runs_.front()) + 1] == runs_.size()) continue;  // alike in all
      for (std::size_t i = 1; i < starts.size(); ++i) starts[i] += starts[i - 1];
      for (const std::uint64_t run : runs_) spare_[starts[of(run)]++] = run;
      runs_.swap(spare_);
    }
  }

  /// For more than one thread: each call gives out other spans, until there are no more.
  std::span<const std::uint64_t> take() {
    constexpr std::size_t part = 1024;
    const std::size_t from = std::min(taken_.fetch_add(part), runs_.size());
    return std::span(runs_).subspan(from, std::min(part, runs_.size() - from));
  }
  static FrameSpan unpacked(std::uint64_t run) {
    return {{run >> count_bits}, run & ((std::uint64_t{1} << count_bits) - 1)};
  }

  void clear() {
    runs_.clear();
    frames_ = 0;
    taken_ = 0;
  }

 private:
  static constexpr std::size_t most_runs = std::size_t{1} << 18;
  static constexpr std::uint64_t most_frames = std::uint64_t{1} << 21;
  static constexpr unsigned count_bits = 24;
  static constexpr std::uint64_t max_frames = (std::uint64_t{1} << count_bits) - 1;
  static constexpr std::uint64_t max_first = std::uint64_t{1} << (64 - count_bits);
  static std::uint64_t packed(FrameSpan span) {
    return span.first.value << count_bits | span.frames;
  }

  std::vector<std::uint64_t> runs_, spare_;  ///< first frame, number of frames
  std::uint64_t frames_ = 0;
  std::atomic<std::size_t> taken_ = 0;
};

/// Sums of kpageflags over spans.
class FlagSums {
 public:
  explicit FlagSums(PageSize page_size) : page_size_(page_size) {}

  /// Takes from `runs` until they are all taken.
  Result<void> read(FrameReader& reader, FrameRuns& runs) {
    for (auto part = runs.take(); !part.empty(); part = runs.take()) {
      for (std::size_t i = 0; i < part.size();) {
        FrameSpan span = FrameRuns::unpacked(part[i++]);
        for (; i < part.size(); ++i) {
          const FrameSpan next = FrameRuns::unpacked(part[i]);
          if (span.first + span.frames != next.first) break;
          span.frames += next.frames;
        }
        if (auto one = read(reader, span); !one) return one;
      }
    }
    return {};
  }

  Result<void> read(FrameReader& reader, FrameSpan span) {
    auto read = reader.read(span.first, span.frames,
                            [&](Pfn first, std::uint64_t frames, const FrameFacts& facts) {
                              add(first, frames, facts);
                              return true;
                            });
    return read ? finish_span(reader) : read;
  }

  void deliver(MemorySums& sums) {
    for (Like& like : like_) settle_flags(like);
    for (unsigned bit = 0; bit < 64; ++bit) {
      if (frames_[bit] != 0) sums.flags.add(bit, frames_[bit] * page_size_.bytes());
      if (folios_[bit] != 0) sums.folios.add(bit, folios_[bit] * page_size_.bytes());
    }
    sums.framed += known_ * page_size_.bytes();
    if (missing_) sums.unknown |= unknown_sum::frames;
    if (ksm_doubtful_) sums.unknown |= unknown_sum::ksm;
  }

 private:
  static constexpr unsigned flag_compound_head = 15, flag_compound_tail = 16, flag_huge = 17;

  static bool has(std::uint64_t flags, unsigned bit) { return (flags >> bit & 1) != 0; }

  void add(Pfn first, std::uint64_t frames, const FrameFacts& facts) {
    if ((facts.known & FrameFacts::has_flags) == 0) {
      missing_ = true;
      return;
    }
    known_ += frames;
    if (facts.doubtful != 0) ksm_doubtful_ = true;  // no other flag ever is
    // Few flags are set together in many ways: these are told apart at the end.
    Like& like = like_[facts.flags * 0x9e3779b97f4a7c15 >> 59];
    if (like.flags != facts.flags) {
      settle_flags(like);
      like.flags = facts.flags;
    }
    like.frames += frames;
    const bool head = has(facts.flags, flag_compound_head);
    const bool tail = has(facts.flags, flag_compound_tail) && !head;
    if (has(facts.flags, flag_huge)) {
      close_folio();  // of hugetlb the page-table leaf tells the size
    } else if (tail && open_.frames == 0 && first >= last_.first &&
               first.value + frames <= last_.first.value + last_.frames) {
      folios_[order_of(last_.frames)] += frames;  // more of the folio that was looked at last
    } else if (tail) {
      if (open_.frames == 0) {
        open_ = {first, 0};
        headless_ = true;
      }
      open_.frames += frames;
      mapped_ += frames;
    } else if (head) {
      // Equal facts come as one run, and two heads are never neighbours: one frame.
      close_folio();
      open_ = {first, frames};
      mapped_ = frames;
    } else {
      close_folio();
      folios_[page_size_.shift()] += frames;
    }
  }

  /// Frames whose flags are alike.
  struct Like {
    std::uint64_t flags = 0;
    std::uint64_t frames = 0;
  };
  void settle_flags(Like& like) {
    for (std::uint64_t left = like.flags; left != 0; left &= left - 1)
      frames_[static_cast<unsigned>(std::countr_zero(left))] += like.frames;
    like = {};
  }

  unsigned order_of(std::uint64_t frames) const {
    return page_size_.shift() + static_cast<unsigned>(std::bit_width(frames) - 1);
  }

  /// A folio is a head and its tails. One that was passed whole is as long as was seen; one that
  /// began before the span waits for finish_span().
  void close_folio() {
    if (open_.frames == 0) return;
    if (headless_) {
      cut_ = open_;
      cut_mapped_ = mapped_;
    } else {
      settle(open_, mapped_);
    }
    open_ = {};
    mapped_ = 0;
    headless_ = false;
  }

  void settle(FrameSpan folio, std::uint64_t mapped) {
    folios_[order_of(folio.frames)] += mapped;
    last_ = folio;
  }

  /// A folio that is not mapped whole goes on outside the span: its frames there are looked at.
  Result<void> finish_span(FrameReader& reader) {
    constexpr std::uint64_t step = 64;
    for (bool more = open_.frames != 0; more;) {
      auto read = reader.read(open_.first + open_.frames, step,
                              [&](Pfn, std::uint64_t frames, const FrameFacts& facts) {
                                more = (facts.known & FrameFacts::has_flags) != 0 &&
                                       has(facts.flags, flag_compound_tail) &&
                                       !has(facts.flags, flag_compound_head);
                                if (more) open_.frames += frames;
                                return more;
                              });
      if (!read) return read;
    }
    close_folio();
    for (bool more = cut_.frames != 0; more && cut_.first.value != 0;) {
      const std::uint64_t back = std::min(step, cut_.first.value);
      const Pfn from{cut_.first.value - back};
      std::uint64_t tails = 0;  // that end the window
      bool head = false;  // right before them
      auto read = reader.read(from, back, [&](Pfn, std::uint64_t frames, const FrameFacts& facts) {
        if (has(facts.flags, flag_compound_tail) && !has(facts.flags, flag_compound_head)) {
          tails += frames;
        } else {
          tails = 0;
          head = has(facts.flags, flag_compound_head);
        }
        return true;
      });
      if (!read) return read;
      more = tails == back;
      const std::uint64_t taken = tails + (!more && head ? 1 : 0);
      cut_ = {{cut_.first.value - taken}, cut_.frames + taken};
    }
    if (cut_.frames != 0) settle(cut_, cut_mapped_);
    cut_ = {};
    return {};
  }

  PageSize page_size_;
  std::array<Like, 32> like_{};
  std::array<std::uint64_t, 64> frames_{};
  std::array<std::uint64_t, 64> folios_{};
  std::uint64_t known_ = 0;
  bool missing_ = false;
  bool ksm_doubtful_ = false;
  FrameSpan open_;  ///< the folio that may go on; no frames: none
  std::uint64_t mapped_ = 0;
  bool headless_ = false;  ///< began before the span
  FrameSpan cut_;  ///< of a headless one, what was seen
  std::uint64_t cut_mapped_ = 0;
  FrameSpan last_;  ///< settled last
};

}  // namespace vmem
