// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <optional>
#include <span>

#include "pagemap_scan.hpp"
#include "target_pace.hpp"
#include "vmem/pages.hpp"

namespace vmem {

/// Reads runs of pages from /proc/PID/pagemap. One reader serves one thread.
///
/// How it reads, by what it costs (nanoseconds a page, Linux 6.18): an entry read by pread
/// takes the kernel 30 if there is a page and 1.7 if not; PAGEMAP_SCAN takes 13 for a page
/// and next to nothing for an empty page-table level or a huge leaf, but tells no PFN. So
/// scan first pays where under about 12 % of the pages are populated, and where leaves are
/// huge (one entry then serves a leaf). A range starts with a scan; where a window proves
/// to be densely populated with small pages the next are read outright, until one is
/// sparse or shows huge leaves. A recorded file tells its holes by SEEK_DATA instead, and of its
/// huge leaves those that the VMA's page size gives away (WalkOptions::hugetlb).
class PagemapReader {
 public:
  PagemapReader(const Process& process, const Fd& fd, const WalkOptions& options);

  /// Yields runs that tile `range` in order, until `sink` returns false.
  Result<void> read(VaRange range, ExtentSink sink);

  /// The next multiple of the chunk above `range.start`, or the range's end if that is nearer
  /// (the multiple may be 2^64).
  static VirtAddr chunk_end(VaRange range, std::uint64_t chunk_bytes) {
    const std::uint64_t rest = chunk_bytes - range.start.value % chunk_bytes;
    return range.bytes() <= rest ? range.end : range.start + rest;
  }

  /// A good number of bytes to ask for at a time: more where little is populated.
  std::uint64_t stride() const { return dense_ ? chunk_bytes_ : window_; }
  std::uint64_t chunk_bytes() const { return chunk_bytes_; }
  std::uint64_t leaf_bytes() const { return pmd_size_.bytes(); }
  bool dense() const { return dense_; }

 private:
  using Region = pagemap::ScanRegion;
  struct Scan {
    std::size_t regions = 0;
    VirtAddr end;  ///< scanned up to here
    std::int64_t nanoseconds = 0;  ///< that it took
  };
  static constexpr std::size_t chunk_pages = 8192;  // 64 KiB of entries
  static constexpr std::size_t max_regions = 512;

  TargetPace::Turn take_turn(std::uint64_t pages);
  Result<VirtAddr> read_by_scan(VaRange window);
  Result<void> read_outright(VaRange range, std::optional<unsigned> leaf_shift);
  Result<void> read_leaves(VaRange range);
  void decode_blocks(VaRange range);
  void decode_candidates(VaRange range, std::size_t first);
  void decode_runs(VirtAddr va, std::size_t first, std::size_t count, unsigned leaf_shift);
  void emit_leaf(VaRange piece, std::uint64_t entry, PageSize leaf);
  void emit_absent(VaRange range);
  void emit(const Extent& run) { open_ = open_ && (*sink_)(run); }
  bool is_candidate(VirtAddr va, std::size_t first, std::size_t count) const;
  bool fits_leaf(VirtAddr va, std::uint64_t entry, PageSize leaf) const;
  std::optional<Scan> scan(VaRange range, std::uint64_t max_pages, std::span<Region> regions);
  std::optional<Scan> next_data(VaRange range);
  PageSize huge_leaf(VirtAddr va);
  std::optional<PageSize> hugetlb_size_of_file(VaRange range) const;

  const Process& process_;
  const Fd& fd_;
  std::uint64_t unpaced_ = 0;  ///< see take_turn()
  PageSize page_size_;
  PageSize pmd_size_;
  std::uint64_t chunk_bytes_;
  bool recorded_;
  bool seeks_holes_;  ///< a regular file: SEEK_DATA finds what is populated
  bool proven_;      ///< PFN 0 is a frame, not a hidden one
  bool every_page_;
  std::optional<PageSize> hugetlb_;  ///< of what a recorded file holds of the range
  bool (*stop_)();
  VirtAddr space_end_{~std::uint64_t{0}};  ///< above it the kernel has no entries, once that showed
  bool can_scan_ = true;
  bool dense_ = false;  ///< the last window was: read the next outright
  std::uint64_t window_;  ///< bytes to scan next
  std::uint64_t scan_pages_;  ///< pages at which that scan stops
  std::uint64_t populated_ = 0;  ///< pages decoded that are not absent
  std::uint64_t huge_ = 0;  ///< of these, in huge leaves
  VaRange leaf_range_;  ///< the VMA that huge_leaf() asked about last
  PageSize leaf_size_;
  bool leaf_is_hugetlb_ = false;
  std::int64_t data_start_ = 0;  ///< a stretch of a recorded file without a hole: half-open, in
  std::int64_t data_end_ = 0;  ///< bytes
  const ExtentSink* sink_ = nullptr;
  bool open_ = true;  ///< the sink wants more
  std::size_t capacity_ = 0;  ///< of entries_
  std::unique_ptr<std::uint64_t[]> entries_;
  std::unique_ptr<Region[]> regions_;
};

}  // namespace vmem
