// SPDX-License-Identifier: MIT
#include "pagemap_reader.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>

#include "errors.hpp"
#include "extent_builder.hpp"
#include "pagemap_decode.hpp"
#include "vma_query.hpp"

namespace vmem {
namespace {

using pagemap::page_is_huge;
using pagemap::page_is_present;
using pagemap::page_is_swapped;

/// Reading through a hole this small costs less than another system call.
constexpr std::uint64_t bridged_pages = 128;
/// Up to here a scan is not worth its system call.
constexpr std::uint64_t small_pages = 1024;
/// A scan stops after this many pages: the bound of what it costs if they prove dense. The
/// first of a range stops at small_pages.
constexpr std::uint64_t scanned_pages = 32768;
constexpr std::uint64_t largest_window = std::uint64_t{1} << 40;
/// In nanoseconds: a scan that takes longer is followed by shorter ones.
constexpr std::int64_t longest_scan = 500'000;
/// So many pages take some 10 us; less is not worth a look at the clock.
constexpr std::uint64_t paced_pages = 512;
/// What a huge leaf costs, in pages.
constexpr std::uint64_t leaf_cost = 32;

std::int64_t nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

}  // namespace

PagemapReader::PagemapReader(const Process& process, const Fd& fd, const WalkOptions& options)
    : process_(process),
      fd_(fd),
      page_size_(process.root().page_size()),
      pmd_size_(page_size_.next_level()),
      chunk_bytes_(std::max(chunk_pages * page_size_.bytes(), pmd_size_.bytes())),
      recorded_(process.root().recorded()),
      seeks_holes_(recorded_),
      proven_(process.root().pfn_access() == PfnAccess::full),
      every_page_(options.every_page),
      hugetlb_(recorded_ ? options.hugetlb : std::nullopt),
      stop_(options.stop),
      window_(chunk_bytes_),
      scan_pages_(small_pages) {}

Result<void> PagemapReader::read(VaRange range, ExtentSink sink) {
  sink_ = &sink;
  open_ = true;
  if (hugetlb_) {
    // Where the record ends every entry counts, to say so.
    const off_t size = lseek(fd_.get(), 0, SEEK_END);
    if (size < 0 || static_cast<std::uint64_t>(size) / 8 < page_size_.pages(range.end.value))
      hugetlb_.reset();
  }
  while (open_ && !range.empty() && (stop_ == nullptr || !stop_())) {
    if (range.start >= space_end_) {
      emit_absent(range);
      break;
    }
    VirtAddr end = range.end;
    const bool small = range.bytes() <= small_pages * page_size_.bytes() && !hugetlb_;
    if (small || dense_ || (!can_scan_ && !seeks_holes_)) {
      // Cut at multiples of the chunk, so that no huge leaf lies across two.
      end = chunk_end(range, chunk_bytes_);
      populated_ = huge_ = 0;
      if (auto read = read_outright({range.start, end}, std::nullopt); !read) return read;
      if (!small)
        dense_ = populated_ * 8 >= page_size_.pages(end - range.start) && huge_ * 2 < populated_;
    } else {
      if (range.bytes() > window_) end = range.start + window_;
      auto reached = read_by_scan({range.start, end});
      if (!reached) return std::unexpected(std::move(reached.error()));
      end = *reached;
    }
    range.start = end;
  }
  return {};
}

/// Before a call that looks at so many pages of a live process under its mmap_lock.
TargetPace::Turn PagemapReader::take_turn(std::uint64_t pages) {
  unpaced_ += pages;
  if (unpaced_ < paced_pages) return {};
  unpaced_ = 0;
  return TargetPace::turn(process_);
}

/// Finds what is populated, then reads only that. Returns how far it came; nowhere, with
/// dense_ or !can_scan_ set, where reading outright is the better way.
Result<VirtAddr> PagemapReader::read_by_scan(VaRange window) {
  if (!regions_) regions_ = std::make_unique_for_overwrite<Region[]>(max_regions);
  const auto scanned =
      seeks_holes_ ? next_data(window) : scan(window, scan_pages_, {regions_.get(), max_regions});
  if (!scanned) return window.start;

  const std::span<const Region> regions{regions_.get(), scanned->regions};
  const std::uint64_t total = page_size_.pages(scanned->end - window.start);
  std::uint64_t found = 0;
  for (const Region& region : regions) {
    if ((region.categories & page_is_huge) == 0)
      found += page_size_.pages(region.end - region.start);
  }
  if (!seeks_holes_) {
    if (found * 8 >= total && total >= small_pages) {
      dense_ = true;
      window_ = chunk_bytes_;
      scan_pages_ = small_pages;
      return window.start;
    }
    scan_pages_ = std::min(scan_pages_ * 4, scanned_pages);
    // Nothing at all is cheap to look at, and promises more of the same; but tables that have
    // become empty are looked at entry by entry, with the target's mmap_lock held all the while.
    const std::int64_t taken = scanned->nanoseconds;
    const std::uint64_t more = regions.empty() ? 16 : 2;
    if (taken > longest_scan)
      window_ = std::max(window_ / 4 / chunk_bytes_ * chunk_bytes_, chunk_bytes_);
    else if (scanned->end == window.end && taken * static_cast<std::int64_t>(more) <= longest_scan)
      window_ = std::min(window_ * more, largest_window);
  }

  VirtAddr at = window.start;
  for (std::size_t i = 0; i < regions.size() && open_;) {
    const bool huge = (regions[i].categories & page_is_huge) != 0;
    VaRange part{{regions[i].start}, {regions[i].end}};
    ++i;
    if (!huge) {
      const std::uint64_t bridge = bridged_pages * page_size_.bytes();
      while (i < regions.size() && (regions[i].categories & page_is_huge) == 0 &&
             regions[i].start - part.end.value <= bridge) {
        part.end = {regions[i++].end};
      }
    }
    emit_absent({at, part.start});
    const auto leaf = seeks_holes_ ? std::nullopt : std::optional(page_size_.shift());
    auto read = huge ? read_leaves(part) : read_outright(part, leaf);
    if (!read) return std::unexpected(std::move(read.error()));
    at = part.end;
  }
  emit_absent({at, scanned->end});
  return scanned->end;
}

/// Reads the entry of every page. `leaf_shift`: what is present has leaves of this size;
/// empty where that is not known.
Result<void> PagemapReader::read_outright(VaRange range, std::optional<unsigned> leaf_shift) {
  while (open_ && !range.empty()) {
    const VaRange part{range.start, chunk_end(range, chunk_bytes_)};
    const std::size_t count = page_size_.pages(part.bytes());
    const std::size_t bytes = count * sizeof entries_[0];
    if (count > capacity_) {  // one page for a lookup, else a chunk at once
      capacity_ = count == 1 ? 1 : page_size_.pages(chunk_bytes_);
      entries_ = std::make_unique_for_overwrite<std::uint64_t[]>(capacity_);
    }
    auto turn = take_turn(count);
    auto got = read_at(fd_, entries_.get(), bytes,
                       page_size_.pages(part.start.value) * sizeof entries_[0]);
    turn.end();
    if (!got) {
      got.error().what = "reading pagemap";
      got.error().path = process_.path("pagemap");
      return std::unexpected(std::move(got.error()));
    }
    const std::size_t whole = *got / sizeof entries_[0];
    const VaRange read{part.start, part.start + (whole << page_size_.shift())};
    if (leaf_shift)
      decode_runs(read.start, 0, whole, *leaf_shift);
    else
      decode_blocks(read);
    if (whole != count) {
      // The kernel answers 0 bytes above the last user address (pagemap_read() in
      // fs/proc/task_mmu.c), but also once the address space is gone (exit, exec): then for 0, too.
      std::uint64_t first = 0;
      const auto alive = recorded_ ? Result<std::size_t>(0) : read_at(fd_, &first, sizeof first, 0);
      if (alive && *alive == sizeof first) {
        space_end_ = read.end;
        emit_absent({read.end, range.end});
        return {};
      }
      return std::unexpected(Error{.code = recorded_ ? Errc::malformed : Errc::process_changed,
                                   .what = "reading pagemap",
                                   .path = process_.path("pagemap"),
                                   .address = read.end.value});
    }
    range.start = part.end;
  }
  return {};
}

/// Entries of a range whose leaf sizes are not known. A block the size of a PMD leaf that
/// is not all present with consecutive, congruent frames is made of base pages for certain;
/// only where it might be one leaf is the kernel asked.
void PagemapReader::decode_blocks(VaRange range) {
  const std::size_t total = page_size_.pages(range.bytes());
  std::size_t pending = 0;  // base pages from here to `at`
  for (std::size_t at = 0; at < total && open_;) {
    const VirtAddr va = range.start + (at << page_size_.shift());
    const std::size_t count = std::min<std::size_t>(
        total - at, page_size_.pages(pmd_size_.bytes() - pmd_size_.offset(va)));
    if (is_candidate(va, at, count)) {
      decode_runs(range.start + (pending << page_size_.shift()), pending, at - pending,
                  page_size_.shift());
      std::size_t next = at + count;
      while (next < total) {
        const std::size_t more =
            std::min<std::size_t>(total - next, page_size_.pages(pmd_size_.bytes()));
        if (!is_candidate(range.start + (next << page_size_.shift()), next, more)) break;
        next += more;
      }
      decode_candidates({va, range.start + (next << page_size_.shift())}, at);
      pending = next;
      at = next;
    } else {
      at += count;
    }
  }
  decode_runs(range.start + (pending << page_size_.shift()), pending, total - pending,
              page_size_.shift());
}

/// Whether these pages can be (a part of) one PMD leaf. Bit 56 may differ within a leaf.
bool PagemapReader::is_candidate(VirtAddr va, std::size_t first, std::size_t count) const {
  const std::uint64_t* const e = entries_.get() + first;
  if (!pagemap::present(e[0]) || !fits_leaf(va, e[0], pmd_size_)) return false;
  const std::uint64_t step = pagemap::pfn(e[0]).value != 0 || proven_ ? 1 : 0;
  const std::uint64_t base = e[0] & ~pagemap::bit_exclusive;
  if ((e[count - 1] & ~pagemap::bit_exclusive) != base + step * (count - 1)) return false;
  for (std::size_t i = 1; i < count; ++i) {
    if ((e[i] & ~pagemap::bit_exclusive) != base + step * i) return false;
  }
  return true;
}

/// Frame and address lie equally far into a leaf of this size.
bool PagemapReader::fits_leaf(VirtAddr va, std::uint64_t entry, PageSize leaf) const {
  const std::uint64_t frame = pagemap::pfn(entry).value;
  if (frame == 0 && !proven_) return true;  // hidden: nothing speaks against it
  return ((frame ^ page_size_.pages(va.value)) & (page_size_.pages(leaf.bytes()) - 1)) == 0;
}

void PagemapReader::decode_candidates(VaRange range, std::size_t first) {
  while (open_ && !range.empty()) {
    Region found[16];
    const auto scanned = can_scan_ ? scan(range, 0, found) : std::nullopt;
    if (!scanned) {
      decode_runs(range.start, first, page_size_.pages(range.bytes()), 0);
      return;
    }
    VirtAddr at = range.start;
    const auto decode_up_to = [&](VirtAddr end, unsigned leaf_shift) {
      const std::size_t count = page_size_.pages(end - at);
      decode_runs(at, first, count, leaf_shift);
      first += count;
      at = end;
    };
    for (const Region& region : std::span<const Region>(found, scanned->regions)) {
      decode_up_to({region.start}, 0);  // went away since it was read
      if ((region.categories & page_is_huge) == 0) {
        decode_up_to({region.end}, page_size_.shift());
        continue;
      }
      while (at < VirtAddr{region.end} && open_) {
        const PageSize leaf = huge_leaf(at);
        const VirtAddr leaf_end = std::min(leaf.floor(at) + leaf.bytes(), VirtAddr{region.end});
        const std::size_t count = page_size_.pages(leaf_end - at);
        if (every_page_) {
          decode_up_to(leaf_end, leaf.shift());
        } else {
          emit_leaf({at, leaf_end}, entries_[first], leaf);
          first += count;
          at = leaf_end;
        }
        huge_ += count;
      }
    }
    decode_up_to(scanned->end, 0);
    range.start = scanned->end;
  }
}

/// Entries [first, first + count) as runs, the first of them at `va`.
void PagemapReader::decode_runs(VirtAddr va, std::size_t first, std::size_t count,
                                unsigned leaf_shift) {
  const std::uint64_t* const entries = entries_.get() + first;
  for (std::size_t i = 0; i < count && open_;) {
    const std::uint64_t entry = entries[i];
    const pagemap::Decoded d = pagemap::decode(entry, proven_);
    Extent run{.va = va + (i << page_size_.shift()), .state = d.state, .reason = d.reason};
    const bool resident = d.state == PageState::resident;
    const bool frame = resident || names_frame(run);
    if (frame)
      run.pfn = {d.value};
    else
      run.swap_offset = d.value;
    run.swap_type = d.swap_type;
    // An empty entry may still hold bit 55: newly made VMAs count as soft-dirty.
    if (d.state != PageState::absent) run.bits = d.bits;
    if (resident || d.state == PageState::hidden)
      run.leaf_shift = static_cast<std::uint8_t>(leaf_shift);

    // Entries that go on: the number field counts up and nothing else changes. It must not
    // overflow into the flags (a recorded file can hold anything).
    const std::uint64_t number_step = step_of(run);
    const std::uint64_t step = resident ? number_step : number_step << 5;
    const std::uint64_t last_frame = pagemap::pfn_end - 1;
    const std::uint64_t last = resident ? last_frame
                               : frame  ? (last_frame << 5) | pagemap::swap_type(entry)
                                        : pagemap::pfn_mask;
    const std::uint64_t room =
        step == 0 ? count : ((last - (entry & pagemap::pfn_mask)) / step) + 1;
    const std::size_t limit = i + std::min<std::uint64_t>(count - i, room);
    std::size_t j = i + 1;
    for (std::uint64_t expected = entry + step; j < limit && entries[j] == expected; ++j)
      expected += step;
    run.bytes = (j - i) << page_size_.shift();
    if (d.state != PageState::absent) populated_ += j - i;
    emit(run);
    i = j;
  }
}

/// One leaf, or the part of one in `piece`, of which one entry was read.
void PagemapReader::emit_leaf(VaRange piece, std::uint64_t entry, PageSize leaf) {
  const pagemap::Decoded d = pagemap::decode(entry, proven_);
  Extent run{.va = piece.start,
             .bytes = piece.bytes(),
             .pfn = {d.value},
             .state = d.state,
             .reason = d.reason,
             .bits = d.bits};
  run.leaf_shift = static_cast<std::uint8_t>(leaf.shift());
  // hugetlb pages are mapped as a whole: there bit 56 is one for all (pagemap_hugetlb_range()).
  const bool hugetlb = leaf_size_ == leaf && leaf_is_hugetlb_;
  if (!hugetlb && piece.bytes() > page_size_.bytes()) run.bits |= page_bit::leaf_sampled;
  populated_ += page_size_.pages(piece.bytes());
  emit(run);
}

void PagemapReader::emit_absent(VaRange range) {
  if (!range.empty()) emit({.va = range.start, .bytes = range.bytes(), .state = PageState::absent});
}

/// A range that a scan found to be mapped by huge leaves: one entry for each.
Result<void> PagemapReader::read_leaves(VaRange range) {
  while (open_ && !range.empty()) {
    const PageSize leaf = huge_leaf(range.start);
    if ((every_page_ && !leaf_is_hugetlb_) || leaf.bytes() < pmd_size_.bytes()) {
      const VirtAddr end =
          std::min(range.end, std::max(leaf_range_.end, range.start + leaf.bytes()));
      if (auto read = read_outright({range.start, end}, leaf.shift()); !read) return read;
      range.start = end;
      continue;
    }
    // The last entry of one leaf and the first of the next are neighbours: one read for two.
    const VaRange pieces[2] = {
        {range.start, std::min(range.end, leaf.floor(range.start) + leaf.bytes())},
        {leaf.floor(range.start) + leaf.bytes(),
         std::min(range.end, leaf.floor(range.start) + 2 * leaf.bytes())}};
    const bool two = !pieces[1].empty() && leaf_range_.contains(pieces[1].start);
    const VirtAddr last_page = pieces[0].end - page_size_.bytes();
    std::uint64_t entries[2] = {};
    auto turn = take_turn(leaf_cost);
    auto got = read_at(fd_, entries, (two ? 2 : 1) * sizeof entries[0],
                       page_size_.pages(last_page.value) * sizeof entries[0]);
    turn.end();
    const std::size_t count = got ? *got / sizeof entries[0] : 0;
    for (std::size_t i = 0; i < (two ? 2 : 1) && open_; ++i) {
      const VirtAddr page = i == 0 ? last_page : pieces[1].start;
      if (i < count && pagemap::present(entries[i]) && fits_leaf(page, entries[i], leaf)) {
        // Back to the entry of the piece's first page; a hidden frame does not count up.
        const bool shown = pagemap::pfn(entries[i]).value != 0 || proven_;
        const std::uint64_t back = shown ? page_size_.pages(page - pieces[i].start) : 0;
        emit_leaf(pieces[i], entries[i] - back, leaf);
      } else if (auto read = read_outright(pieces[i], std::nullopt); !read) {
        return read;  // split, moved or gone since the scan: read as it is now
      }
      range.start = pieces[i].end;
    }
  }
  return {};
}

/// Everything populated in `range`, as regions in order. Empty: no such ioctl, do without.
std::optional<PagemapReader::Scan> PagemapReader::scan(VaRange range, std::uint64_t max_pages,
                                                       std::span<Region> regions) {
  pagemap::ScanArgument argument{};
  argument.size = sizeof argument;
  argument.start = range.start.value;
  argument.end = range.end.value;
  argument.vec = reinterpret_cast<std::uintptr_t>(regions.data());
  argument.vec_len = regions.size();
  argument.max_pages = max_pages;
  argument.category_anyof_mask = page_is_present | page_is_swapped;
  argument.return_mask = page_is_present | page_is_swapped | page_is_huge;
  auto turn = take_turn(max_pages == 0 ? leaf_cost : paced_pages);
  const std::int64_t before = nanoseconds();
  const int found = ioctl(fd_.get(), pagemap::scan_request, &argument);
  const std::int64_t taken = nanoseconds() - before;
  turn.end();
  if (found < 0 || argument.walk_end <= range.start.value || argument.walk_end > range.end.value) {
    can_scan_ = false;
    return {};
  }
  Scan result{static_cast<std::size_t>(found), {argument.walk_end}, taken};
  // walk_end is what it should be only where the scan stopped early. Where it went through,
  // it may still be where the kernel emptied its own buffer of 512 regions on the way
  // (do_pagemap_scan() in fs/proc/task_mmu.c sets it at the end only if it is 0).
  std::uint64_t pages = 0;
  for (const Region& region : regions.first(result.regions)) {
    pages += page_size_.pages(region.end - region.start);
  }
  const bool stopped = result.regions == regions.size() || (max_pages != 0 && pages >= max_pages);
  if (!stopped)
    result.end = range.end;
  else if (found > 0)
    result.end = std::max(result.end, VirtAddr{regions[result.regions - 1].end});
  return result;
}

/// The next stretch of a recorded file that is not a hole, as the one region of a scan.
std::optional<PagemapReader::Scan> PagemapReader::next_data(VaRange range) {
  const auto position = [&](VirtAddr va) {
    return static_cast<off_t>(page_size_.pages(va.value) * 8);
  };
  const auto address = [&](off_t offset) {
    return VirtAddr{static_cast<std::uint64_t>(offset) / 8 << page_size_.shift()};
  };
  const off_t range_end = position(range.end);
  off_t data = position(range.start), hole = data_end_;
  if (data < data_start_ || data >= data_end_) {
    data = lseek(fd_.get(), data, SEEK_DATA);
    const int no_data = data < 0 ? errno : 0;
    if (data < 0) {
      // No more data: all holes, if the file reaches that far. Let a read tell.
      const off_t size = lseek(fd_.get(), 0, SEEK_END);
      if (no_data == ENXIO && size >= range_end) return Scan{0, range.end, 0};
      seeks_holes_ = can_scan_ = false;
      return {};
    }
    // tmpfs goes through all pages up to the next hole: asked once for each stretch.
    hole = lseek(fd_.get(), data, SEEK_HOLE);
    data_start_ = data;
    data_end_ = hole;
  }
  if (data >= range_end) return Scan{0, range.end, 0};
  const PageSize block = hugetlb_ && hugetlb_->bytes() > pmd_size_.bytes() ? *hugetlb_ : pmd_size_;
  const VirtAddr start = std::max(range.start, block.floor(address(data)));
  // Widened to whole blocks, so that what is said of leaves does not depend on where the
  // file system puts its holes.
  VirtAddr end = range.end;
  if (hole >= 0 && hole + 7 < range_end) {
    const VirtAddr block_end = block.ceil(address(hole + 7));
    if (block_end > start) end = std::min(end, block_end);
  }
  if (end <= start) {
    seeks_holes_ = can_scan_ = false;
    return {};
  }
  regions_[0] = {start.value, end.value, page_is_present | (hugetlb_ ? page_is_huge : 0)};
  return Scan{1, end, 0};
}

/// The page size of the hugetlb file that is mapped at `range`; empty if it is another file. smaps
/// comes last: it walks every page of the VMA under the target's mmap_lock.
std::optional<PageSize> PagemapReader::hugetlb_size_of_file(VaRange range) const {
  if (const auto bytes = process_.mapped_hugetlb_page_bytes(range))
    return PageSize::valid(*bytes) ? std::optional(PageSize{*bytes}) : std::nullopt;
  SmapsReader smaps{process_};
  const auto entry = smaps.find(range.start);
  return entry && *entry ? (*entry)->kernel_page_size : std::nullopt;
}

/// The size of the huge leaf at `va`: the VMA's own page size for hugetlb, else a PMD.
PageSize PagemapReader::huge_leaf(VirtAddr va) {
  if (leaf_range_.contains(va)) return leaf_size_;
  if (hugetlb_) {
    leaf_range_ = {{0}, {UINT64_MAX}};
    leaf_is_hugetlb_ = true;
    return leaf_size_ = *hugetlb_;
  }
  Vma vma;
  std::optional<PageSize> size;
  if (query_vma(process_, va, vma, size) == VmaQuery::found) {
    leaf_range_ = vma.range;
  } else {
    leaf_range_ = {pmd_size_.floor(va), pmd_size_.floor(va) + pmd_size_.bytes()};
    if (const auto found = find_vma(process_, va); found && *found) {
      leaf_range_ = (*found)->range;
      // hugetlb memory always has a file, be it one of the kernel's own.
      if ((*found)->inode != 0) size = hugetlb_size_of_file(leaf_range_);
    }
  }
  leaf_is_hugetlb_ = size && size->bytes() > page_size_.bytes();
  leaf_size_ = leaf_is_hugetlb_ ? *size : pmd_size_;
  return leaf_size_;
}

}  // namespace vmem
