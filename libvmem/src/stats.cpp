// SPDX-License-Identifier: MIT
/// Which page is in which sum: see smaps_pte_entry() and vm_normal_page(). pagemap tells a page
/// of memory from the rest: `file` is set for every page that is not anonymous, `exclusive` for
/// those that are mapped once. What has neither is an anonymous page that is mapped more than once,
/// or no page at all (the zero page, a driver's frame): kpagecount tells, which is 0 for these. The
/// huge zero page has `file` (pagemap_pmd_range() asks for its page all the same): kpagecount
/// again.
#include "vmem/stats.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <string_view>
#include <thread>

#include "frame_sums.hpp"
#include "kernel_release.hpp"
#include "leaf_sharing.hpp"
#include "numa_maps.hpp"
#include "pagemap_bits.hpp"
#include "target_pace.hpp"
#include "vmem/frames.hpp"

namespace vmem {
namespace {

constexpr std::uint32_t from_smaps =
    unknown_sum::rss | unknown_sum::pss | unknown_sum::uss | unknown_sum::swap;
/// From so many frames on two threads share the reading of their flags.
constexpr std::uint64_t flags_shared = std::uint64_t{1} << 15;

/// Whether something is in swap: then shared memory may be.
bool swap_in_use(const SysRoot& root) {
  const auto text = root.read_file("proc/swaps");
  if (!text) return text.error().code != Errc::not_found;  // a kernel without swap has none
  std::string_view rest = *text;
  // "Filename Type Size Used Priority"; a name has its spaces escaped.
  for (bool heading = true; !rest.empty(); heading = false) {
    const std::size_t newline = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, newline);
    rest.remove_prefix(std::min(newline + 1, rest.size()));
    if (heading) continue;
    for (int field = 0; field < 3; ++field) {
      line.remove_prefix(std::min(line.find_first_of(" \t"), line.size()));
      line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    }
    std::uint64_t used = 0;
    std::from_chars(line.data(), line.data() + line.size(), used);
    if (used != 0) return true;
  }
  return false;
}

/// Whether kpagecount is of pages on this kernel, and not an average over the folio
/// (CONFIG_NO_PAGE_MAPCOUNT, which came with 6.15 and shows nowhere).
bool exact_counts(std::string_view release) { return kernel_number(release).value_or(9999) < 615; }

}  // namespace

void Tally::add(unsigned key, std::uint64_t amount) {
  // Most often the last or only one.
  auto at = std::ranges::lower_bound(entries_, key, {}, &Entry::first);
  if (at == entries_.end() || at->first != key) at = entries_.insert(at, {key, 0});
  at->second += amount;
}

void Tally::add(const Tally& other) {
  for (const auto& [key, amount] : other.entries_) add(key, amount);
}

std::uint64_t Tally::at(unsigned key) const {
  const auto at = std::ranges::lower_bound(entries_, key, {}, &Entry::first);
  return at != entries_.end() && at->first == key ? at->second : 0;
}

namespace {

constexpr auto numbers =
    std::to_array<std::uint64_t MemorySums::*>({&MemorySums::vmas,     &MemorySums::size,
                                                &MemorySums::rss,      &MemorySums::pss_fixed,
                                                &MemorySums::uss,      &MemorySums::swap,
                                                &MemorySums::hugetlb,  &MemorySums::hugetlb_private,
                                                &MemorySums::device,   &MemorySums::uncounted,
                                                &MemorySums::guard,    &MemorySums::special,
                                                &MemorySums::hidden,   &MemorySums::unseen,
                                                &MemorySums::changed,  &MemorySums::extents,
                                                &MemorySums::framed,   &MemorySums::pss_dirty,
                                                &MemorySums::accessed, &MemorySums::lazyfree,
                                                &MemorySums::swap_pss, &MemorySums::locked});
constexpr auto tallies =
    std::to_array<Tally MemorySums::*>({&MemorySums::leaf, &MemorySums::runs, &MemorySums::nodes,
                                        &MemorySums::flags, &MemorySums::folios});
static_assert(sizeof(MemorySums) ==
                  sizeof(std::uint64_t) * (numbers.size() + 2) + sizeof(Tally) * tallies.size(),
              "a member is missing here, or in add() and clear()");

}  // namespace

void MemorySums::add(const MemorySums& other) {
  for (const auto field : numbers) this->*field += other.*field;
  largest_extent = std::max(largest_extent, other.largest_extent);
  for (const auto field : tallies) (this->*field).add(other.*field);
  unknown |= other.unknown;
}

void MemorySums::clear() {
  for (const auto field : numbers) this->*field = 0;
  largest_extent = 0;
  for (const auto field : tallies) (this->*field).clear();
  unknown = 0;
}

std::vector<unsigned> leaf_shifts(PageSize page_size) {
  const PageSize pmd = page_size.next_level();
  std::vector<unsigned> shifts{page_size.shift(), pmd.shift()};
  if (page_size.shift() == 12) shifts.push_back(pmd.shift() + 9);
  return shifts;
}

struct StatsReader::State {
  StatsOptions options;
  PageSize page_size;
  bool recorded = false;
  bool swap_used = false;
  bool exact_counts = false;
  std::optional<FrameReader> counts;
  std::array<std::optional<FrameReader>, 2> flags;
  std::optional<Error> flags_error;
  std::optional<NumaMap> numa;
  bool tells_nodes = false;
};

namespace {

/// Sums the VMAs of one process, extent by extent.
template <class State>
class Summing {
 public:
  Summing(State& state, const Process& process, Translator& translator, VmaInspector& inspector,
          FunctionRef<bool(const VmaStats&)> sink)
      : state_(state),
        process_(process),
        inspector_(inspector),
        sink_(sink),
        page_size_(state.page_size),
        // A forced source of page tables knows nothing of what pagemap alone tells.
        only_tables_(translator.backend() != Backend::pagemap),
        numa_maps_(process) {}

  bool extent(const Vma& vma, const Extent& extent) {
    if (open_ && !(vma_ == vma && seen_.end == extent.va)) {
      if (!finish()) return false;
    }
    if (!open_) begin(vma);
    add(extent);
    // At once where it ends: what is asked of smaps comes in ascending order.
    if (failed_) return false;
    return extent.end() < vma.range.end || finish();
  }

  bool finish() {
    if (!open_) return true;
    open_ = false;
    close_run();
    if (auto read = flush_flags(); !read) return fail(read);
    // A VMA that grew, was split or merged meanwhile is told as far as it was seen.
    vma_.range = {seen_.start, seen_.end};
    if (swap_elsewhere()) sums_.unknown |= unknown_sum::swap;
    sums_.unknown |= unknown_sum::smaps;
    // Of what kept changing smaps tells another moment, and holds the target up for it.
    if (sums_.changed == 0 && (sums_.unknown & wanted_from_smaps()) != 0) ask_smaps();
    if (sums_.leaf.at(0) != 0) ask_smaps_for_leaves();
    const NumaMapsEntry* policy = nullptr;
    if (sums_.changed == 0 && (state_.options.policy || !sums_.known(unknown_sum::nodes)))
      policy = numa_maps_.find(vma_.range.start);
    if (policy != nullptr && policy->nodes && !sums_.known(unknown_sum::nodes))
      nodes_from(*policy->nodes);
    if (state_.options.by_node) rest_of_nodes();
    sums_.vmas = 1;
    sums_.size = vma_.range.bytes();
    return sink_(VmaStats{.vma = vma_,
                          .classification = classification_,
                          .sums = sums_,
                          .by_node = by_node_,
                          .policy = policy != nullptr && state_.options.policy
                                        ? std::string_view(policy->policy)
                                        : std::string_view{}});
  }

  Result<void> result() { return std::move(result_); }

 private:
  bool fail(Result<void>& read) {
    failed_ = true;
    result_ = std::move(read);
    return false;
  }

  void begin(const Vma& vma) {
    open_ = true;
    vma_ = vma;
    classification_ = inspector_.classify(vma);
    hugetlb_ = classification_.kind == VmaKind::hugetlb;
    device_ = classification_.vma_class == VmaClass::device;
    sums_.clear();
    by_node_.clear();
    seen_ = {};
    run_bytes_ = 0;
    table_bytes_ = 0;
    untold_ = 0;
    untold_nodes_.clear();
    only_untold_ = all_placed_ = true;
    frame_numbers_.reset();
  }

  std::uint32_t wanted_from_smaps() const {
    std::uint32_t wanted = unknown_sum::rss | unknown_sum::swap;
    if (state_.options.sharing) wanted |= unknown_sum::pss | unknown_sum::uss;
    if (hugetlb_) wanted = 0;
    return state_.options.smaps ? wanted | unknown_sum::smaps : wanted;
  }

  bool swap_elsewhere() { return state_.swap_used && !hugetlb_ && inspector_.may_be_shmem(vma_); }

  void ask_smaps() {
    const auto entry = inspector_.smaps(vma_);
    if (!entry) return;
    // Two moments make no sum: what is private would not be a part of what is resident.
    if (entry->rss && sums_.known(unknown_sum::rss) && *entry->rss != sums_.rss &&
        !state_.options.smaps && !hugetlb_)
      return;
    const auto take = [&](std::uint32_t which, const std::optional<std::uint64_t>& bytes,
                          std::uint64_t& into, unsigned shift = 0) {
      if (sums_.known(which) || !bytes) return;
      into = *bytes << shift;
      sums_.unknown &= ~which;
    };
    if (entry->rss && !sums_.known(unknown_sum::rss)) {
      if (table_bytes_ != 0) {
        // Mapped, and now known to be memory.
        (device_ ? sums_.device : sums_.uncounted) -= std::min(table_bytes_, *entry->rss);
        sums_.unknown &= ~(device_ ? unknown_sum::device : unknown_sum::uncounted);
      }
      if (untold_ != 0 && only_untold_) tell_untold(*entry->rss);
    }
    take(unknown_sum::rss, entry->rss, sums_.rss);
    take(unknown_sum::pss, entry->pss, sums_.pss_fixed, MemorySums::pss_shift);
    take(unknown_sum::uss, entry->uss, sums_.uss);
    take(unknown_sum::swap, entry->swap, sums_.swap);
    if (!state_.options.smaps) return;
    take(unknown_sum::pss_dirty, entry->pss_dirty, sums_.pss_dirty);
    take(unknown_sum::accessed, entry->referenced, sums_.accessed);
    take(unknown_sum::lazyfree, entry->lazyfree, sums_.lazyfree);
    take(unknown_sum::swap_pss, entry->swap_pss, sums_.swap_pss);
    take(unknown_sum::locked, entry->locked, sums_.locked);
  }

  /// The kernel's rss says how much is memory of what may be none.
  void tell_untold(std::uint64_t rss) {
    if (rss < sums_.rss || rss - sums_.rss > untold_) return;  // it moved
    const std::uint64_t memory = rss - sums_.rss;
    sums_.uncounted += untold_ - memory;
    sums_.unknown &= ~unknown_sum::uncounted;
    // Which of them, and so on which nodes, only if it is all or none.
    const bool all = memory == untold_;
    if ((!all && memory != 0) || untold_nodes_.at(0) != 0 || sums_.hidden != 0) return;
    if (all) {
      for (const auto& [key, bytes] : untold_nodes_.entries()) {
        sums_.nodes.add(key - 1, bytes);
        if (!state_.options.by_node) continue;
        MemorySums& node = node_sums(static_cast<int>(key) - 1);
        node.rss += bytes;
        node.nodes.add(key - 1, bytes);
        node.unknown |= not_by_node | unknown_sum::pss | unknown_sum::leaf |
                        (only_tables_ ? unknown_sum::uss : 0U);
      }
    }
    if (all_placed_) sums_.unknown &= ~unknown_sum::nodes;
  }

  /// Frames do not say on which nodes it lies, and numa_maps does.
  void nodes_from(const Tally& nodes) {
    std::uint64_t bytes = 0;
    for (const auto& [node, part] : nodes.entries()) bytes += part;
    // It leaves out reserved pages ([vdso]), which rss has.
    if (sums_.known(unknown_sum::rss) ? bytes != sums_.rss + sums_.hugetlb
                                      : classification_.vma_class == VmaClass::special)
      return;
    sums_.nodes = nodes;
    sums_.unknown &= ~unknown_sum::nodes;
    if (!state_.options.by_node) return;
    by_node_.clear();
    for (const auto& [node, part] : nodes.entries()) {
      MemorySums& sums = node_sums(static_cast<int>(node));
      (hugetlb_ ? sums.hugetlb : sums.rss) = part;
      if (sums_.hugetlb_private == sums_.hugetlb) sums.hugetlb_private = sums.hugetlb;
      sums.nodes.add(node, part);
      sums.unknown |= not_by_node | unknown_sum::leaf;
      if (!hugetlb_) sums.unknown |= unknown_sum::pss | unknown_sum::uss;
      // Which of them are private is known where it is all or none.
      if (sums_.hugetlb_private != 0 && sums_.hugetlb_private != sums_.hugetlb)
        sums.unknown |= unknown_sum::hugetlb;
    }
  }

  /// What there is besides the memory of known nodes is memory of no known node.
  void rest_of_nodes() {
    std::uint64_t rss = 0, hugetlb = 0;
    for (const auto& [node, sums] : by_node_) {
      rss += sums.rss;
      hugetlb += sums.hugetlb;
    }
    const bool all = sums_.known(unknown_sum::rss | unknown_sum::hugetlb);
    if (all && rss >= sums_.rss && hugetlb >= sums_.hugetlb) return;
    MemorySums& rest = node_sums(-1);
    rest.rss += sums_.rss - std::min(rss, sums_.rss);
    rest.hugetlb += sums_.hugetlb - std::min(hugetlb, sums_.hugetlb);
    rest.unknown |= not_by_node | unknown_sum::pss | unknown_sum::uss | unknown_sum::leaf |
                    unknown_sum::nodes |
                    (sums_.unknown & (unknown_sum::rss | unknown_sum::hugetlb));
  }

  /// Of pages whose leaves nobody tells apart, the sum by size: what is mapped by a PMD leaf stands
  /// in smaps, all else is base pages. That holds only if all that is mapped is in the kernel's
  /// count: the huge zero page and a device's memory (DAX) are in neither.
  void ask_smaps_for_leaves() {
    if (hugetlb_ || device_ || classification_.kind == VmaKind::dax) return;
    if (!sums_.known(unknown_sum::rss) || sums_.rss != sums_.mapped()) return;
    const auto entry = inspector_.smaps(vma_);
    if (!entry || !entry->pmd_mapped || !entry->rss || *entry->rss != sums_.rss) return;
    const unsigned pmd = page_size_.next_level().shift();
    const std::uint64_t untold = sums_.leaf.at(0);
    const std::uint64_t told = sums_.leaf.at(pmd);
    if (*entry->pmd_mapped < told || *entry->pmd_mapped - told > untold) return;
    const std::uint64_t huge = *entry->pmd_mapped - told;
    Tally leaf;
    for (const auto& [shift, bytes] : sums_.leaf.entries()) {
      if (shift != 0) leaf.add(shift, bytes);
    }
    if (huge != 0) leaf.add(pmd, huge);
    if (huge != untold) leaf.add(page_size_.shift(), untold - huge);
    sums_.leaf = std::move(leaf);
  }

  void add(const Extent& extent) {
    if (seen_.empty()) seen_.start = extent.va;
    seen_.end = extent.end();
    switch (extent.state) {
      case PageState::resident:
        return mapped(extent);
      case PageState::hidden:
        sums_.hidden += extent.bytes;
        sums_.unknown |= unknown_sum::extents | unknown_sum::nodes;
        if (state_.options.frames) sums_.unknown |= unknown_sum::frames;
        return mapped(extent);
      case PageState::swapped:
        sums_.swap += extent.bytes;
        // It may be something else that looks like swap, which is counted differently.
        if (extent.reason == Reason::swap_fields_hidden) {
          sums_.unknown |= from_smaps;
          only_untold_ = false;
        }
        return;
      case PageState::special:
        sums_.special += extent.bytes;
        if (!names_frame(extent)) return;
        // The page behind such an entry is counted where it is one of memory.
        if (hugetlb_) {
          sums_.hugetlb += extent.bytes;
          sums_.unknown |= unknown_sum::nodes;
        } else {
          not_seen();
        }
        return;
      case PageState::guard:
        sums_.guard += extent.bytes;
        return;
      case PageState::unseen:
        sums_.unseen += extent.bytes;
        // Anything may be there.
        if (extent.reason == Reason::table_unreadable) sums_.unknown |= unknown_sum::all;
        // The kernel's own pages, the same in every process, count where they are seen.
        if (classification_.kind == VmaKind::vvar || extent.reason == Reason::gate_vma) return;
        sums_.unknown |= unknown_sum::extents | unknown_sum::leaf |
                         (device_ ? unknown_sum::device : unknown_sum::uncounted) |
                         (state_.options.frames ? unknown_sum::frames : 0U);
        return;
      case PageState::changed:
        sums_.changed += extent.bytes;
        sums_.unknown |= unknown_sum::all;
        only_untold_ = all_placed_ = false;
        return;
      case PageState::absent:
      case PageState::unmapped:
        return;
    }
  }

  /// Memory that the kernel counts, and of which no frame is shown.
  void not_seen() {
    sums_.unknown |= unknown_sum::rss | unknown_sum::pss | unknown_sum::uss | unknown_sum::nodes;
    only_untold_ = false;
    all_placed_ = false;
  }

  void mapped(const Extent& extent) {
    sums_.leaf.add(extent.leaf_shift, extent.bytes);
    if (extent.state == PageState::resident) {
      continue_run(extent);
      if (state_.options.frames) {
        if (auto read = collect_flags(extent); !read) (void)fail(read);
      }
    }
    const bool exclusive = (extent.bits & page_bit::exclusive) != 0;
    const bool sampled = (extent.bits & page_bit::leaf_sampled) != 0;
    if (hugetlb_) {
      sums_.hugetlb += extent.bytes;
      if (exclusive) sums_.hugetlb_private += extent.bytes;
      for_nodes(extent.pfn, extent, [&](MemorySums& sums, std::uint64_t bytes) {
        sums.hugetlb += bytes;
        if (exclusive) sums.hugetlb_private += bytes;
      });
      return;
    }
    if (extent.backend != Backend::pagemap) {
      // What pagemap does not show is VM_PFNMAP: in no count of the kernel's.
      if (!only_tables_ || maps_frame_numbers().value_or(false)) return uncounted(extent.bytes);
      if (!maps_frame_numbers()) {
        sums_.unknown |= unknown_sum::rss | unknown_sum::pss | unknown_sum::uss |
                         unknown_sum::nodes |
                         (device_ ? unknown_sum::device : unknown_sum::uncounted);
        only_untold_ = all_placed_ = false;
        table_bytes_ += extent.bytes;
        return uncounted(extent.bytes);
      }
      return by_table(extent);
    }
    const bool page_of_memory = (extent.bits & (page_bit::file | page_bit::exclusive)) != 0;
    const bool huge = extent.leaf_shift != page_size_.shift();  // or it may be: not told
    if (exclusive && !sampled && !huge) return counted(extent.pfn, extent, 1, true);
    // The huge zero page stands in memory of nobody's file only.
    const bool maybe_zero = extent.leaf_shift != page_size_.shift() && vma_.inode == 0;
    const bool certain = exclusive || (page_of_memory && !maybe_zero);
    if (certain && !state_.options.sharing) return counted(extent.pfn, extent, 1, exclusive);
    if (huge && state_.options.sharing) return by_leaf(extent, certain);
    by_count(extent, certain);
  }

  void uncounted(std::uint64_t bytes) { (device_ ? sums_.device : sums_.uncounted) += bytes; }

  /// Whether a driver mapped frames by number here, which are in no count: true for VM_PFNMAP;
  /// empty where some may be and others not (VM_MIXEDMAP), or it is not known. Asked of page tables
  /// alone, which do not tell.
  std::optional<bool> maps_frame_numbers() {
    if (!device_ && classification_.vma_class != VmaClass::special) return false;
    // These are alike in every process: its own smaps need not be asked.
    if (vma_.path == "[vdso]") return false;
    if (!frame_numbers_) {
      frame_numbers_.emplace();
      const auto blindness = inspector_.blindness(vma_);
      if (blindness == VmaInspector::Blindness::pfnmap) {
        *frame_numbers_ = true;
      } else if (blindness == VmaInspector::Blindness::sighted) {
        const auto flags = inspector_.flags(vma_);
        if (flags && !flags->has("mm")) *frame_numbers_ = flags->has("pf");
      }
    }
    return *frame_numbers_;
  }

  /// What page tables alone show: whether a page is mapped once (bit 56 of pagemap) is told by its
  /// count where that is the page's own, else by pagemap; smaps would hold up the target.
  void by_table(const Extent& extent) {
    if (!state_.options.sharing) return by_count(extent, false);
    if (state_.exact_counts) return by_count(extent, false, true);
    if (!pagemap_ && !pagemap_refused_) {
      auto fd = process_.open_file("pagemap");
      if (fd)
        pagemap_.emplace(std::move(*fd));
      else
        pagemap_refused_ = true;
    }
    constexpr std::size_t most = 512;
    for (std::uint64_t done = 0; done != extent.bytes;) {
      Extent part = extent;
      part.va = extent.va + done;
      part.pfn = extent.pfn + page_size_.pages(done);
      const std::uint64_t pages =
          std::min<std::uint64_t>(most, page_size_.pages(extent.bytes - done));
      entries_.resize(pages);
      bool read = false;
      if (pagemap_) {
        const auto turn = TargetPace::turn(process_);
        const auto bytes = read_at(*pagemap_, entries_.data(), pages * sizeof(std::uint64_t),
                                   page_size_.pages(part.va.value) * sizeof(std::uint64_t));
        read = bytes && *bytes == pages * sizeof(std::uint64_t);
      }
      const auto same = [&](std::uint64_t i) {
        return read && pagemap::present(entries_[i]) && pagemap::pfn(entries_[i]) == part.pfn + i;
      };
      for (std::uint64_t from = 0; from != pages;) {
        const bool told = same(from);
        const bool exclusive = told && (entries_[from] & pagemap::bit_exclusive) != 0;
        std::uint64_t to = from + 1;
        while (to != pages && same(to) == told &&
               (!told || ((entries_[to] & pagemap::bit_exclusive) != 0) == exclusive))
          ++to;
        Extent run = part;
        run.va = part.va + page_size_.bytes() * from;
        run.pfn = part.pfn + from;
        run.bytes = (to - from) * page_size_.bytes();
        run.bits = exclusive ? page_bit::exclusive : 0;
        if (!told) sums_.unknown |= unknown_sum::uss;
        if (told && extent.leaf_shift != page_size_.shift())
          by_leaf(run, exclusive);
        else if (exclusive)
          counted(run.pfn, run, 1, true);
        else
          by_count(run, false);
        from = to;
      }
      done += pages * page_size_.bytes();
    }
  }

  /// Pages of which nothing says how often they are mapped.
  void not_told(const Extent& extent, bool page_of_memory) {
    sums_.unknown |= unknown_sum::pss;
    if (page_of_memory) {
      sums_.rss += extent.bytes;
      return for_nodes(extent.pfn, extent, [&](MemorySums& sums, std::uint64_t bytes) {
        sums.rss += bytes;
        sums.unknown |= unknown_sum::pss | (sums_.unknown & unknown_sum::uss);
      });
    }
    sums_.unknown |= unknown_sum::rss | unknown_sum::uncounted | unknown_sum::nodes;
    untold_ += extent.bytes;
    if (extent.state != PageState::resident || !state_.numa) return untold_nodes_.add(0, 1);
    by_nodes(extent.pfn, extent.bytes, [&](std::optional<unsigned> node, std::uint64_t bytes) {
      untold_nodes_.add(node ? *node + 1 : 0, bytes);
    });
  }

  /// Pages of what are, or may be, huge leaves, and not hugetlb's.
  void by_leaf(const Extent& extent, bool page_of_memory) {
    if (extent.state != PageState::resident || !state_.counts) {
      sums_.unknown |= unknown_sum::uss;
      return not_told(extent, page_of_memory);
    }
    auto read = leaf_sharing_.read(
        *state_.counts, extent.pfn, page_size_.pages(extent.bytes), leaf_frames(extent, page_size_),
        (extent.bits & page_bit::exclusive) != 0,
        [&](Pfn first, std::uint64_t frames, const FrameFacts& facts, bool exclusive) {
          const std::uint64_t bytes = frames * page_size_.bytes();
          const Extent part{.va = extent.va,
                            .bytes = bytes,
                            .state = extent.state,
                            .leaf_shift = extent.leaf_shift};
          if (facts.mapcount == 0 && !page_of_memory) return uncounted(bytes);
          const std::uint64_t mapcount = std::max<std::uint64_t>(facts.mapcount, 1);
          counted(first, part, exclusive ? 1 : mapcount, exclusive || facts.mapcount == 0);
        });
    if (!read) (void)fail(read);
  }

  /// Pages of which `mapcount` says how often they are mapped, or whether they are pages at all.
  /// `once`: what is mapped once is private.
  void by_count(const Extent& extent, bool page_of_memory, bool once = false) {
    if (extent.state != PageState::resident || !state_.counts) {
      if (only_tables_) sums_.unknown |= unknown_sum::uss;
      return not_told(extent, page_of_memory);
    }
    auto read =
        state_.counts->read(extent.pfn, page_size_.pages(extent.bytes),
                            [&](Pfn first, std::uint64_t frames, const FrameFacts& facts) {
                              const std::uint64_t bytes = frames * page_size_.bytes();
                              const Extent part{.va = extent.va,
                                                .bytes = bytes,
                                                .state = extent.state,
                                                .leaf_shift = extent.leaf_shift};
                              // A frame past the end of the file is no memory: nobody counts it.
                              if (facts.mapcount == 0 && !page_of_memory)
                                uncounted(bytes);
                              else
                                counted(first, part, std::max<std::uint64_t>(facts.mapcount, 1),
                                        facts.mapcount == 0 || (once && facts.mapcount == 1));
                              return true;
                            });
    if (!read) (void)fail(read);
  }

  void counted(Pfn pfn, const Extent& extent, std::uint64_t mapcount, bool exclusive) {
    const std::uint64_t share = (page_size_.bytes() << MemorySums::pss_shift) / mapcount;
    const auto add = [&](MemorySums& sums, std::uint64_t bytes) {
      sums.rss += bytes;
      if (exclusive) sums.uss += bytes;
      sums.pss_fixed += share * page_size_.pages(bytes);
    };
    add(sums_, extent.bytes);
    for_nodes(pfn, extent, add);
  }

  /// Splits what lies at `pfn` by NUMA node.
  template <class Add>
  void for_nodes(Pfn pfn, const Extent& extent, Add add) {
    if (extent.state != PageState::resident || !state_.numa) {
      sums_.unknown |= unknown_sum::nodes;
      all_placed_ = false;
      if (state_.options.by_node) on_node(-1, extent, extent.bytes, add);
      return;
    }
    by_nodes(pfn, extent.bytes, [&](std::optional<unsigned> node, std::uint64_t bytes) {
      if (node) {
        sums_.nodes.add(*node, bytes);
      } else {
        sums_.unknown |= unknown_sum::nodes;
        all_placed_ = false;
      }
      if (state_.options.by_node) on_node(node ? static_cast<int>(*node) : -1, extent, bytes, add);
    });
  }

  /// Calls `part(node, bytes)` for parts that tile `bytes` from `pfn` on. Needs state_.numa.
  template <class Part>
  void by_nodes(Pfn pfn, std::uint64_t total, Part part) {
    for (std::uint64_t left = total; left != 0;) {
      const PhysAddr pa = page_size_.address(pfn);
      if (!node_range_.contains(pa)) {
        node_ = state_.numa->node(pa);
        node_range_ = {pa, state_.numa->run_end(pa)};
      }
      const std::uint64_t rest = page_size_.pages(node_range_.end - pa);
      const std::uint64_t frames = std::clamp<std::uint64_t>(rest, 1, page_size_.pages(left));
      const std::uint64_t bytes = frames * page_size_.bytes();
      part(node_, bytes);
      pfn = pfn + frames;
      left -= bytes;
    }
  }

  template <class Add>
  void on_node(int node, const Extent& extent, std::uint64_t bytes, Add add) {
    MemorySums& sums = node_sums(node);
    add(sums, bytes);
    sums.leaf.add(extent.leaf_shift, bytes);
    if (node >= 0) sums.nodes.add(static_cast<unsigned>(node), bytes);
    sums.unknown |= not_by_node;
    if (node < 0) sums.unknown |= unknown_sum::nodes;
  }

  /// Not told apart by node, or on none.
  static constexpr std::uint32_t not_by_node =
      unknown_sum::extents | unknown_sum::frames | unknown_sum::mapping | unknown_sum::swap |
      unknown_sum::device | unknown_sum::uncounted | unknown_sum::smaps;

  MemorySums& node_sums(int node) {
    const auto key = [](const auto& entry) { return entry.first; };
    auto at = std::ranges::lower_bound(by_node_, node, {}, key);
    if (at == by_node_.end() || at->first != node) at = by_node_.insert(at, {node, {}});
    return at->second;
  }

  void continue_run(const Extent& extent) {
    const bool follows = run_bytes_ != 0 && run_va_ == extent.va && run_pfn_ == extent.pfn;
    if (!follows) close_run();
    run_bytes_ += extent.bytes;
    run_va_ = extent.end();
    run_pfn_ = extent.pfn + page_size_.pages(extent.bytes);
  }

  void close_run() {
    if (run_bytes_ == 0) return;
    ++sums_.extents;
    sums_.largest_extent = std::max(sums_.largest_extent, run_bytes_);
    sums_.runs.add(static_cast<unsigned>(std::bit_width(run_bytes_) - 1), 1);
    run_bytes_ = 0;
  }

  Result<void> collect_flags(const Extent& extent) {
    if (!state_.flags[0]) {
      sums_.unknown |= unknown_sum::frames;
      return {};
    }
    const FrameSpan span{extent.pfn, page_size_.pages(extent.bytes)};
    if (hugetlb_) sums_.folios.add(extent.leaf_shift, extent.bytes);  // 0: not known
    if (!runs_.add(span)) {
      FlagSums sums{page_size_};
      auto read = sums.read(*state_.flags[0], span);
      sums.deliver(sums_);
      return read;
    }
    return runs_.full() ? flush_flags() : Result<void>{};
  }

  /// Reads the flags of what has come together, by two threads where it is much.
  Result<void> flush_flags() {
    if (runs_.empty()) return {};
    runs_.sort();
    FlagSums sums{page_size_};
    Result<void> read;
    if (state_.flags[1] && runs_.frames() >= flags_shared) {
      FlagSums other_sums{page_size_};
      Result<void> other_read;
      std::thread other{[&] { other_read = other_sums.read(*state_.flags[1], runs_); }};
      read = sums.read(*state_.flags[0], runs_);
      other.join();
      if (read) read = std::move(other_read);
      other_sums.deliver(sums_);
    } else {
      read = sums.read(*state_.flags[0], runs_);
    }
    sums.deliver(sums_);
    runs_.clear();
    return read;
  }

  State& state_;
  const Process& process_;
  VmaInspector& inspector_;
  FunctionRef<bool(const VmaStats&)> sink_;
  const PageSize page_size_;
  const bool only_tables_;
  bool open_ = false;
  bool failed_ = false;
  Result<void> result_;
  Vma vma_;
  Classification classification_;
  bool hugetlb_ = false;
  bool device_ = false;
  MemorySums sums_;
  std::vector<std::pair<int, MemorySums>> by_node_;
  VaRange seen_;  ///< of the VMA, so far
  std::uint64_t table_bytes_ =
      0;  ///< of which page tables alone do not tell whether they are memory
  std::uint64_t untold_ = 0;  ///< of which nothing tells whether they are memory
  Tally untold_nodes_;  ///< the same by node + 1; 0: of no known node
  bool only_untold_ = true;  ///< nothing else makes rss unknown
  bool all_placed_ = true;  ///< the node of everything but `untold_` is known
  std::optional<std::optional<bool>> frame_numbers_;  ///< maps_frame_numbers(), once asked
  NumaMapsReader numa_maps_;
  std::optional<Fd> pagemap_;  ///< by_table()'s
  bool pagemap_refused_ = false;
  std::vector<std::uint64_t> entries_;
  // The run of frames that may go on.
  std::uint64_t run_bytes_ = 0;
  VirtAddr run_va_;
  Pfn run_pfn_;
  // Where the last frame was.
  PaRange node_range_;
  std::optional<unsigned> node_;
  LeafSharing leaf_sharing_;
  FrameRuns runs_;  ///< whose flags are to be read
};

}  // namespace

StatsReader::StatsReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
StatsReader::StatsReader(StatsReader&&) noexcept = default;
StatsReader& StatsReader::operator=(StatsReader&&) noexcept = default;
StatsReader::~StatsReader() = default;

StatsReader StatsReader::open(const SysRoot& root, const StatsOptions& options) {
  auto state = std::make_unique<State>();
  state->options = options;
  state->page_size = root.page_size();
  state->swap_used = swap_in_use(root);
  state->exact_counts = exact_counts(root.kernel_release());
  if (auto counts = FrameReader::open(root, FrameFacts::has_mapcount))
    state->counts.emplace(std::move(*counts));
  if (options.frames) {
    for (unsigned i = 0; i < std::min(options.threads, 2U); ++i) {
      auto flags = FrameReader::open(root, FrameFacts::has_flags);
      if (flags)
        state->flags[i].emplace(std::move(*flags));
      else if (i == 0)
        state->flags_error = std::move(flags.error());
    }
  }
  auto numa = NumaMap::read(root);
  state->tells_nodes = numa || numa.error().code != Errc::not_found;
  if (numa) state->numa.emplace(std::move(*numa));
  return StatsReader{std::move(state)};
}

bool StatsReader::tells_nodes() const { return state_->tells_nodes; }

const Error* StatsReader::frames_error() const {
  return state_->flags_error ? &*state_->flags_error : nullptr;
}

Result<void> StatsReader::read(const Process& process, Translator& translator,
                               VmaInspector& inspector, FunctionRef<bool(const VmaStats&)> sink,
                               const VmaExtentSink* extents) {
  const StatsOptions& options = state_->options;
  Summing<State> summing{*state_, process, translator, inspector, sink};
  bool more = true;
  auto walked = translate_all(process, translator, inspector,
                              {.threads = options.threads,
                               // One page of a huge leaf may be mapped elsewhere, another not.
                               .every_page = options.sharing,
                               .page_bits = true,
                               .kernel_mappings = false,
                               .stop = options.stop},
                              [&](const Vma* vma, const Extent& extent) {
                                if (extents != nullptr) more = (*extents)(vma, extent);
                                return more =
                                           more && (vma == nullptr || summing.extent(*vma, extent));
                              });
  // A VMA that a failure cut short is none that there is.
  if (more && walked && !(options.stop != nullptr && options.stop())) summing.finish();
  if (auto result = summing.result(); !result) return result;
  return walked;
}

}  // namespace vmem
