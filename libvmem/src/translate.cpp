// SPDX-License-Identifier: MIT
/// Joins VMAs and page facts. VMAs are streamed, a read of maps at a time (some 50 lines);
/// neighbours are read as one span; extents are cut at the VMAs' borders and held back
/// until the VMAs have been read again and proved the same.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "device_paths.hpp"
#include "entry_kinds.hpp"
#include "errors.hpp"
#include "extent_builder.hpp"
#include "leaf_sizes.hpp"
#include "vma_query.hpp"
#include "vmem/pages.hpp"

namespace vmem {
namespace {

/// Reading on through an unmapped gap this small costs less than another walk.
constexpr std::uint64_t bridged_pages = 128;
/// Extents held back at most. They cost some 20 ns each to read, so checking their VMAs
/// once in so many is cheap.
constexpr std::size_t held_back = 8192;
constexpr int attempts = 3;
/// From this size on it pays to know beforehand that a recorded mapping is of huge pages.
constexpr std::uint64_t large_bytes = 64 << 20;

/// The gate page: part of no address space (arch/x86/entry/vsyscall/vsyscall_64.c).
bool is_gate(const Vma& vma) { return vma.path == "[vsyscall]"; }

/// The lowest VMA that ends above `address`.
Result<std::optional<Vma>> vma_from(const Process& process, VirtAddr address) {
  Vma vma;
  std::optional<PageSize> size;
  switch (query_vma(process, address, vma, size, true)) {
    case VmaQuery::found:
      return vma;
    case VmaQuery::none:
      return std::nullopt;
    case VmaQuery::failed:
      break;
  }
  auto reader = VmaReader::open(process);
  if (!reader) return std::unexpected(std::move(reader.error()));
  for (;;) {
    auto more = reader->next(vma);
    if (!more) return std::unexpected(std::move(more.error()));
    if (!*more) return std::nullopt;
    if (vma.range.end > address) return vma;
  }
}

/// Pages of the kernel's that every process has: [vvar], [vvar_vclock].
bool is_vvar(const Vma& vma) { return vma.path.starts_with("[vvar"); }

/// What one VMA adds to what its pages said: blindness and the size of hugetlb leaves.
class Finisher {
 public:
  /// `thorough`: memory without a file is asked about, too. No driver has a way to it but to map
  /// into memory that it is handed.
  Finisher(VmaInspector& inspector, bool live, bool thorough)
      : inspector_(inspector), live_(live), thorough_(thorough) {}

  /// Begins the extents of a VMA. It may have become VM_PFNMAP since its last ones.
  void begin() { sight_.reset(); }

  /// `asked`: the part of the VMA that was walked. False: the VMA is another one by now.
  [[nodiscard]] bool finish(const Vma& vma, VaRange asked, Extent& extent) {
    if (extent.state == PageState::absent) {
      if (!sight_) sight_ = look(vma, asked, extent);
      const auto unseen = [&](Reason reason) {
        extent.state = PageState::unseen;
        extent.reason = reason;
      };
      switch (*sight_) {
        case VmaInspector::Blindness::sighted:
          break;
        case VmaInspector::Blindness::pfnmap:
          unseen(Reason::pfnmap);
          break;
        case VmaInspector::Blindness::gate:
          unseen(Reason::gate_vma);
          break;
        case VmaInspector::Blindness::unproven:
          unseen(Reason::maybe_pfnmap);
          break;
        case VmaInspector::Blindness::gone:
          return false;
      }
    } else if (may_be_small_hugetlb(extent)) {
      if (const auto size = inspector_.hugetlb_page_size(vma)) {
        extent.leaf_shift = static_cast<std::uint8_t>(size->shift());
      }
    }
    return true;
  }

 private:
  using Blindness = VmaInspector::Blindness;

  /// The kernel asks about VM_PFNMAP before it looks at a page, so a page that it showed proves
  /// sight at that moment. A driver may map the rest by frame number later; a record may hold
  /// anything.
  Blindness look(const Vma& vma, VaRange asked, const Extent& absent) {
    const bool whole = absent.va == asked.start && absent.end() == asked.end;
    if (live_ && !thorough_ && without_file(vma)) return Blindness::sighted;
    if (live_ && !whole && !inspector_.may_turn_blind(vma)) return Blindness::sighted;
    const Blindness blindness = inspector_.blindness(vma);
    return blindness == Blindness::unproven && !whole ? Blindness::sighted : blindness;
  }

  /// Whether the leaf size is in doubt: not told, or told as the base page where an
  /// architecture has hugetlb pages below a PMD (arm64, riscv).
  bool may_be_small_hugetlb(const Extent& extent) const {
    if (extent.state != PageState::resident && extent.state != PageState::hidden) return false;
#if defined(__x86_64__)
    if (live_) return extent.leaf_shift == 0;
#endif
    return true;
  }

  VmaInspector& inspector_;
  bool live_;
  bool thorough_;
  std::optional<Blindness> sight_;
};

/// Whether this source could not see, and page tables would tell.
bool blind(const Extent& extent) {
  return extent.state == PageState::unseen && extent.reason != Reason::gate_vma;
}

class Walk {
 public:
  Walk(const Process& process, Translator& translator, VmaInspector& inspector, VaRange range,
       bool report_gaps, const WalkOptions& options, VmaExtentSink sink)
      : process_(process),
        translator_(translator.for_walk(range.bytes(), options)),
        fallback_(translator),
        backend_(translator_.backend()),
        sighted_(translator_.sees_pfnmap()),
        inspector_(inspector),
        finisher_(inspector, !process.root().recorded(), report_gaps),
        page_size_(process.root().page_size()),
        range_(range.end.value != 0 ? range
                                    : VaRange{range.start, VirtAddr{0} - page_size_.bytes()}),
        tail_(report_gaps && range.end.value == 0 ? page_size_.bytes() : 0),
        report_gaps_(report_gaps),
        live_(!process.root().recorded()),
        options_(options),
        sink_(sink),
        cursor_(range.start) {}

  Result<void> run() {
    auto reader = VmaReader::open(process_);
    if (!reader) return std::unexpected(std::move(reader.error()));
    if (live_) {
      auto check = VmaReader::open(process_);
      if (!check) return std::unexpected(std::move(check.error()));
      check_.emplace(std::move(*check));
    }
    for (bool more = true; more && open_;) {
      auto got = read_batch(*reader);
      if (!got) return std::unexpected(std::move(got.error()));
      more = *got;
      if (auto walked = walk_batch(); !walked) {
        // A truncated recording is right up to where it ends.
        if (live_) return walked;
        if (auto settled = settle(true); !settled) return settled;
        return walked;
      }
      if (auto settled = settle(true); !settled) return settled;
    }
    if (!open_) return {};
    // An address space that went away reads as the end of maps, too.
    if (auto intact = check_address_space(); !intact) return intact;
    if (report_gaps_) emit_gap(range_.end, tail_);
    return {};
  }

 private:
  struct Held {
    std::size_t vma;  ///< index into batch_
    Extent extent;
  };

  /// Fills the batch with what one read of maps gave, of the VMAs that touch the range.
  Result<bool> read_batch(VmaReader& reader) {
    batch_size_ = 0;
    do {
      if (batch_.size() == batch_size_) batch_.emplace_back();
      Vma& vma = batch_[batch_size_];
      auto more = reader.next(vma);
      if (!more || !*more) return more;
      if (!any_page_ && !is_gate(vma)) any_page_ = vma.range.start;
      if (vma.range.start >= range_.end) return false;
      if (vma.range.end > range_.start) ++batch_size_;
    } while (reader.buffered());
    return true;
  }

  VaRange asked(const Vma& vma) const { return intersect(vma.range, range_); }

  Result<void> walk_batch() {
    for (std::size_t first = 0; first < batch_size_ && open_;) {
      VaRange span = asked(batch_[first]);
      std::size_t last = first + 1;
      if (is_gate(batch_[first])) {
        if (auto held = hold(first, {.va = span.start,
                                     .bytes = span.bytes(),
                                     .state = PageState::unseen,
                                     .reason = Reason::gate_vma});
            !held) {
          return held;
        }
      } else {
        const auto hugetlb = recorded_hugetlb(batch_[first]);
        while (last < batch_size_ && !is_gate(batch_[last]) &&
               batch_[last].range.start - span.end <= bridged_pages * page_size_.bytes() &&
               recorded_hugetlb(batch_[last]) == hugetlb &&
               (!hugetlb || batch_[last].range.start == span.end)) {
          span.end = asked(batch_[last++]).end;
        }
        if (auto walked = walk_span(span, first, hugetlb); !walked) return walked;
      }
      first = last;
    }
    return {};
  }

  /// A live kernel tells huge leaves itself.
  std::optional<PageSize> recorded_hugetlb(const Vma& vma) {
    if (live_ || !options_.whole_hugetlb || asked(vma).bytes() < large_bytes) return {};
    return inspector_.hugetlb_page_size(vma);
  }

  /// Walks neighbours as one, and cuts what comes at their borders.
  Result<void> walk_span(VaRange span, std::size_t vma, std::optional<PageSize> hugetlb) {
    Result<void> result;
    VaRange part = asked(batch_[vma]);
    WalkOptions options = options_;
    options.hugetlb = hugetlb;
    auto walked = translator_.walk(span, options, [&](const Extent& whole) {
      // Nearly all are a part of the VMA that the one before was in.
      if (whole.va >= part.start && whole.end() <= part.end && held_.size() + 1 < held_back) {
        held_.push_back({vma, whole});
        return true;
      }
      Extent extent = whole;
      while (extent.bytes != 0) {
        while (asked(batch_[vma]).end <= extent.va) {
          if (++vma == batch_size_) return true;
        }
        part = asked(batch_[vma]);
        if (extent.va < part.start) {
          cut_front(extent, std::min(extent.bytes, part.start - extent.va), page_size_);
          continue;
        }
        const std::uint64_t bytes = std::min(extent.bytes, part.end - extent.va);
        result = hold(vma, cut_front(extent, bytes, page_size_));
        if (!result || !open_) return false;
      }
      return true;
    });
    if (!result) return result;
    if (options_.stopped()) open_ = false;
    return walked;
  }

  Result<void> hold(std::size_t vma, const Extent& extent) {
    held_.push_back({vma, extent});
    return held_.size() < held_back ? Result<void>{} : settle(false);
  }

  /// Emits what is held, where its VMA is still what it was. At the end of a batch the
  /// second stream of maps tells (its read comes after the pages were read); in the middle
  /// of one a question to the kernel does.
  Result<void> settle(bool end_of_batch) {
    for (std::size_t i = 0; i < held_.size() && open_;) {
      std::size_t j = i + 1;
      while (j < held_.size() && held_[j].vma == held_[i].vma) ++j;
      const Vma& vma = batch_[held_[i].vma];
      auto same = end_of_batch ? unchanged_in_stream(vma) : unchanged(vma);
      if (!same) return std::unexpected(std::move(same.error()));
      if (*same && sighted_) {
        for (; i < j && open_; ++i) emit(vma, held_[i].extent, backend_);
      } else if (*same) {
        finisher_.begin();
        for (; i < j && open_; ++i) {
          if (auto emitted = finish_and_emit(vma, held_[i].extent); !emitted) return emitted;
        }
      } else {
        // The VMA stays in batch_, so the buffer may be used again meanwhile.
        const VaRange range{held_[i].extent.va, held_[j - 1].extent.end()};
        if (auto read = read_again(range, translator_); !read) return read;
      }
      i = j;
    }
    held_.clear();
    return {};
  }

  Result<bool> unchanged_in_stream(const Vma& vma) {
    if (!live_) return true;
    while (check_more_ && (!checked_ || checked_->range.end <= vma.range.start)) {
      if (!checked_) checked_.emplace();
      auto more = check_->next(*checked_);
      if (!more) return more;
      check_more_ = *more;
    }
    return check_more_ && *checked_ == vma;
  }

  Result<bool> unchanged(const Vma& vma) {
    if (!live_) return true;
    auto now = find_vma(process_, vma.range.start);
    if (!now) return std::unexpected(std::move(now.error()));
    return *now == vma;
  }

  /// What pagemap is blind to is asked of the page tables, where these can be read.
  Result<void> finish_and_emit(const Vma& vma, Extent extent) {
    if (!sighted_) {
      if (!finisher_.finish(vma, asked(vma), extent))
        return read_again({extent.va, extent.end()}, translator_);
      if (blind(extent) && (options_.kernel_mappings || tables_open_ || !is_vvar(vma))) {
        tables_open_ = true;
        if (Translator* const tables = fallback_.page_tables())
          return read_again({extent.va, extent.end()}, *tables);
      }
      if (live_ && lacks_leaf_size(extent)) {
        tables_open_ = true;
        if (Translator* const tables = fallback_.page_tables()) {
          with_leaf_sizes(*tables, extent, page_size_, [&](const Extent& part) {
            emit(vma, part, backend_);
            return open_;
          });
          return {};
        }
      }
    }
    emit(vma, extent, backend_);
    return {};
  }

  /// Reads a range again: VMA by VMA as they are now, a bounded number of times.
  Result<void> read_again(VaRange range, Translator& source) {
    int left = attempts;
    while (!range.empty() && open_) {
      auto vma = vma_from(process_, range.start);
      if (!vma) return std::unexpected(std::move(vma.error()));
      if (!*vma || (*vma)->range.start >= range.end) break;  // nothing there any more
      const VaRange part = intersect((*vma)->range, range);
      VirtAddr done = part.start;
      std::vector<Extent> got;
      Result<void> failed;
      bool moved = false;
      const auto flush = [&] {
        auto same = unchanged(**vma);
        if (!same) failed = std::unexpected(std::move(same.error()));
        moved = same && !*same;
        if (!failed || moved) return false;
        finisher_.begin();
        for (Extent extent : got) {
          if (!source.sees_pfnmap() && !finisher_.finish(**vma, part, extent)) {
            moved = true;
            return false;
          }
          done = extent.end();
          if (open_) emit(**vma, extent, source.backend());
        }
        got.clear();
        return open_;
      };
      auto walked = source.walk(part, options_, [&](const Extent& extent) {
        got.push_back(extent);
        return got.size() < held_back || flush();
      });
      if (!walked) return walked;
      if (options_.stopped()) open_ = false;
      if (!moved && failed && open_) flush();
      if (!failed || !open_) return failed;
      if (moved && --left > 0) {
        range.start = done;
        continue;
      }
      if (moved) {
        emit(**vma,
             {.va = done,
              .bytes = part.end - done,
              .state = PageState::changed,
              .reason = Reason::vma_changed},
             source.backend());
        left = 1;  // it does not keep still: one try for each of the rest
      }
      range.start = part.end;
    }
    return {};
  }

  void emit(const Vma& vma, Extent extent, Backend source) {
    if (report_gaps_) emit_gap(extent.va);
    if (!open_) return;
    extent.backend = source;
    cursor_ = extent.end();
    if (extent.reason == Reason::migration_or_device)
      entries_.tell(extent, [&](const Extent& part) { return open_ = sink_(&vma, part); });
    else
      open_ = sink_(&vma, extent);
  }

  void emit_gap(VirtAddr end, std::uint64_t tail = 0) {
    if (!open_ || (cursor_ >= end && tail == 0)) return;
    if (cursor_.value == 0) tail &= end - cursor_ + tail;  // all of 2^64 bytes: less a page
    open_ = sink_(nullptr, {.va = cursor_,
                            .bytes = end - cursor_ + tail,
                            .state = PageState::unmapped,
                            .backend = backend_});
    cursor_ = end;
  }

  /// Whether the translator still reads the address space that maps showed: every page of
  /// a live one can be read, mapped or not.
  Result<void> check_address_space() {
    if (!live_) return {};
    if (any_page_) {
      const VaRange page{*any_page_, *any_page_ + page_size_.bytes()};
      auto walked = translator_.walk(page, {}, [](const Extent&) { return true; });
      if (!walked) return walked;
    }
    if (auto alive = process_.check_alive(); !alive || any_page_) return alive;
    return fail(Errc::no_user_memory, "reading maps", process_.path("maps"));
  }

  const Process& process_;
  Translator& translator_;
  Translator& fallback_;  ///< knows who sees where translator_ is blind
  const Backend backend_;  ///< of translator_
  const bool sighted_;  ///< translator_ is blind to nothing
  VmaInspector& inspector_;
  Finisher finisher_;
  EntryKinds entries_{process_.root()};
  const PageSize page_size_;
  const VaRange range_;
  /// The last page of all, whose end 64 bits do not hold: it is never mapped, and told as
  /// a part of the last gap.
  const std::uint64_t tail_;
  const bool report_gaps_;
  const bool live_;
  const WalkOptions& options_;
  VmaExtentSink sink_;
  VirtAddr cursor_;  ///< all below is emitted
  bool open_ = true;
  bool tables_open_ = false;  ///< or cannot be: asking them costs no more
  std::vector<Vma> batch_;  ///< kept at its largest: its strings are used again
  std::size_t batch_size_ = 0;
  std::vector<Held> held_;
  std::optional<VirtAddr> any_page_;
  std::optional<VmaReader> check_;
  std::optional<Vma> checked_;  ///< the last of check_
  bool check_more_ = true;
};

}  // namespace

Result<void> translate(const Process& process, Translator& translator, VmaInspector& inspector,
                       VaRange range, const WalkOptions& options, VmaExtentSink sink) {
  if (range.empty()) {
    return std::unexpected(Error{.code = Errc::invalid_argument,
                                 .what = "translating an empty range",
                                 .path = {},
                                 .address = range.start.value});
  }
  const PageSize page_size = process.root().page_size();
  const VaRange pages{page_size.floor(range.start), page_size.ceil(range.end)};
  return Walk{process, translator, inspector, pages, true, options, sink}.run();
}

Result<void> translate_all(const Process& process, Translator& translator, VmaInspector& inspector,
                           const WalkOptions& options, VmaExtentSink sink) {
  const VaRange all{{0}, process.root().page_size().floor({UINT64_MAX})};
  return Walk{process, translator, inspector, all, false, options, sink}.run();
}

Result<Translation> translate(const Process& process, Translator& translator,
                              VmaInspector& inspector, VirtAddr address) {
  const PageSize page_size = process.root().page_size();
  const VirtAddr page = page_size.floor(address);
  Extent extent{.va = page, .bytes = page_size.bytes(), .backend = translator.backend()};
  std::optional<Vma> vma;
  // Asked twice of one descriptor. It stays with its address space: should that go away, the
  // question fails and find_vma() tells why.
  const auto maps = process.open_file("maps");
  const auto vma_of_page = [&]() -> Result<std::optional<Vma>> {
    Vma answer;
    std::optional<PageSize> size;
    if (maps && query_vma(*maps, page, answer, size) == VmaQuery::found) return answer;
    return find_vma(process, page);
  };
  for (int left = attempts; left > 0; --left) {
    auto found = vma_of_page();
    if (!found) return std::unexpected(std::move(found.error()));
    vma = std::move(*found);
    if (!vma) {
      // The maps of a process that has just ended are empty: that is not "unmapped".
      if (auto alive = process.check_alive(); !alive)
        return std::unexpected(std::move(alive.error()));
      extent.state = PageState::unmapped;
      return Translation{std::nullopt, extent};
    }
    if (is_gate(*vma)) {
      extent.state = PageState::unseen;
      extent.reason = Reason::gate_vma;
      return Translation{std::move(vma), extent};
    }
    Translator* source = &translator;
    bool moved = false;
    for (;;) {
      moved = false;
      auto walked = source->walk({page, page + page_size.bytes()}, {}, [&](const Extent& read) {
        extent = read;
        return true;
      });
      if (!walked) return std::unexpected(std::move(walked.error()));
      if (!source->sees_pfnmap()) {
        moved = !Finisher{inspector, !process.root().recorded(), true}.finish(
            *vma, {page, page + page_size.bytes()}, extent);
      }
      extent.backend = source->backend();
      if (!process.root().recorded() && !source->sees_pfnmap() && lacks_leaf_size(extent)) {
        const Extent read = extent;
        if (Translator* const tables = translator.page_tables()) {
          with_leaf_sizes(*tables, read, page_size, [&](const Extent& told) {
            extent = told;
            return true;
          });
        }
      }
      if (!blind(extent) || source->sees_pfnmap()) break;
      Translator* const tables = translator.page_tables();
      if (tables == nullptr) break;
      source = tables;
    }
    if (!process.root().recorded()) {
      auto again = vma_of_page();
      if (!again) return std::unexpected(std::move(again.error()));
      if (moved || *again != vma) continue;
      if (auto alive = process.check_alive(); !alive) {
        return std::unexpected(std::move(alive.error()));
      }
    }
    if (extent.reason == Reason::migration_or_device) {
      const Extent read = extent;
      EntryKinds{process.root()}.tell(read, [&](const Extent& told) {
        extent = told;
        return true;
      });
    }
    return Translation{std::move(vma), extent};
  }
  extent = {.va = page,
            .bytes = page_size.bytes(),
            .state = PageState::changed,
            .reason = Reason::vma_changed,
            .backend = translator.backend()};
  return Translation{std::move(vma), extent};
}

PfnAccess pfn_access(const Process& process, Translator& translator) {
  const PfnAccess known = process.root().pfn_access();
  if (known != PfnAccess::unknown) return known;
  auto reader = VmaReader::open(process);
  if (!reader) return PfnAccess::unknown;
  PfnAccess access = PfnAccess::unknown;
  Vma vma;
  for (;;) {
    const auto more = reader->next(vma);
    if (!more || !*more || is_gate(vma)) return access;
    const auto walked = translator.walk(vma.range, {}, [&](const Extent& extent) {
      if (extent.state == PageState::hidden) access = PfnAccess::hidden;
      if (extent.state == PageState::resident) access = PfnAccess::full;
      return access == PfnAccess::unknown;
    });
    if (!walked || access != PfnAccess::unknown) return access;
  }
}

std::string_view to_string(PageState state) {
  switch (state) {
    case PageState::resident:
      return "resident";
    case PageState::absent:
      return "absent";
    case PageState::swapped:
      return "swapped";
    case PageState::guard:
      return "guard";
    case PageState::special:
      return "special";
    case PageState::hidden:
      return "hidden";
    case PageState::unseen:
      return "unseen";
    case PageState::unmapped:
      return "unmapped";
    case PageState::changed:
      return "changed";
  }
  return "unknown";
}

std::string_view to_string(CacheAttribute cache) {
  switch (cache) {
    case CacheAttribute::unknown:
      return "unknown";
    case CacheAttribute::uc:
      return "uc";
    case CacheAttribute::uc_minus:
      return "uc-";
    case CacheAttribute::wc:
      return "wc";
    case CacheAttribute::wt:
      return "wt";
    case CacheAttribute::wp:
      return "wp";
    case CacheAttribute::wb:
      return "wb";
    case CacheAttribute::device_ngnrne:
      return "device-nGnRnE";
    case CacheAttribute::device_ngnre:
      return "device-nGnRE";
    case CacheAttribute::normal_nc:
      return "normal-nc";
    case CacheAttribute::normal:
      return "normal";
    case CacheAttribute::normal_tagged:
      return "normal-tagged";
  }
  return "unknown";
}

std::string_view to_string(Backend backend) {
  switch (backend) {
    case Backend::pagemap:
      return "pagemap";
    case Backend::bpf:
      return "bpf";
    case Backend::kmod:
      return "kmod";
  }
  return "unknown";
}

std::string_view to_string(Reason reason) {
  switch (reason) {
    case Reason::none:
      return "";
    case Reason::pfnmap:
      return "VM_PFNMAP mapping: pagemap shows nothing of it";
    case Reason::maybe_pfnmap:
      return "may be VM_PFNMAP: its VmFlags cannot be read";
    case Reason::gate_vma:
      return "the kernel's gate page, not VM_PFNMAP: outside the process's page tables";
    case Reason::swap_fields_hidden:
      return "swap type and offset are hidden from this user";
    case Reason::uffd_wp_marker:
      return "userfaultfd write-protect marker";
    case Reason::poison_marker:
      return "poison marker";
    case Reason::other_marker:
      return "page-table marker of an unknown kind";
    case Reason::migration_or_device:
      return "migration, device-private or poison entry";
    case Reason::vma_changed:
      return "the VMA was remapped while it was read";
    case Reason::unknown_entry:
      return "page-table entry of an unknown form";
    case Reason::poison:
      return "poison: lost to a memory error";
    case Reason::migration:
      return "migration entry";
    case Reason::device_private:
      return "device-private entry";
    case Reason::device_exclusive:
      return "device-exclusive entry";
    case Reason::migration_or_exclusive:
      return "migration or device-exclusive entry";
    case Reason::table_unreadable:
      return "the page table could not be read";
  }
  return "";
}

}  // namespace vmem
