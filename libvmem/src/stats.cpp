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
#include "leaf_sharing.hpp"
#include "vmem/frames.hpp"

namespace vmem {
namespace {

constexpr std::uint16_t from_smaps =
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

constexpr auto numbers = std::to_array<std::uint64_t MemorySums::*>(
    {&MemorySums::vmas, &MemorySums::size, &MemorySums::rss, &MemorySums::pss_fixed,
     &MemorySums::uss, &MemorySums::swap, &MemorySums::hugetlb, &MemorySums::hugetlb_private,
     &MemorySums::device, &MemorySums::uncounted, &MemorySums::guard, &MemorySums::special,
     &MemorySums::hidden, &MemorySums::unseen, &MemorySums::changed, &MemorySums::extents,
     &MemorySums::framed});
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
  bool tells_ksm = true;
  std::optional<FrameReader> counts;
  std::array<std::optional<FrameReader>, 2> flags;
  std::optional<Error> flags_error;
  std::optional<NumaMap> numa;
};

namespace {

/// Sums the VMAs of one process, extent by extent.
template <class State>
class Summing {
 public:
  Summing(State& state, Translator& translator, VmaInspector& inspector,
          FunctionRef<bool(const VmaStats&)> sink)
      : state_(state),
        inspector_(inspector),
        sink_(sink),
        page_size_(state.page_size),
        // A forced source of page tables knows nothing of what pagemap alone tells.
        only_tables_(translator.backend() != Backend::pagemap) {}

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
    if ((sums_.unknown & wanted_from_smaps()) != 0) ask_smaps();
    sums_.vmas = 1;
    sums_.size = vma_.range.bytes();
    return sink_(VmaStats{vma_, classification_, sums_, by_node_});
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
  }

  std::uint16_t wanted_from_smaps() const {
    std::uint16_t wanted = unknown_sum::rss | unknown_sum::swap;
    if (state_.options.sharing) wanted |= unknown_sum::pss | unknown_sum::uss;
    return hugetlb_ ? 0 : wanted;
  }

  bool swap_elsewhere() { return state_.swap_used && !hugetlb_ && inspector_.may_be_shmem(vma_); }

  void ask_smaps() {
    const auto entry = inspector_.smaps(vma_);
    if (!entry) return;
    const auto take = [&](std::uint16_t which, const std::optional<std::uint64_t>& bytes,
                          std::uint64_t& into, unsigned shift = 0) {
      if (sums_.known(which) || !bytes) return;
      into = *bytes << shift;
      sums_.unknown &= static_cast<std::uint16_t>(~which);
    };
    if (table_bytes_ != 0 && entry->rss) {
      // Mapped, and now known to be memory.
      (device_ ? sums_.device : sums_.uncounted) -= std::min(table_bytes_, *entry->rss);
    }
    take(unknown_sum::rss, entry->rss, sums_.rss);
    take(unknown_sum::pss, entry->pss, sums_.pss_fixed, MemorySums::pss_shift);
    take(unknown_sum::uss, entry->uss, sums_.uss);
    take(unknown_sum::swap, entry->swap, sums_.swap);
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
        if (extent.reason == Reason::swap_fields_hidden) sums_.unknown |= from_smaps;
        return;
      case PageState::special:
        sums_.special += extent.bytes;
        if (extent.reason != Reason::migration_or_device) return;
        // The page behind such an entry is counted where it is one of memory.
        if (hugetlb_)
          sums_.hugetlb += extent.bytes;
        else
          sums_.unknown |= unknown_sum::rss | unknown_sum::pss | unknown_sum::uss;
        return;
      case PageState::guard:
        sums_.guard += extent.bytes;
        return;
      case PageState::unseen:
        sums_.unseen += extent.bytes;
        if (extent.reason == Reason::gate_vma) return;
        if (device_)
          sums_.unknown |= unknown_sum::device | unknown_sum::extents | unknown_sum::leaf;
        return;
      case PageState::changed:
        sums_.changed += extent.bytes;
        sums_.unknown |= unknown_sum::all;
        return;
      case PageState::absent:
      case PageState::unmapped:
        return;
    }
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
      if (!only_tables_ || device_ || classification_.vma_class == VmaClass::special) {
        if (only_tables_) {
          sums_.unknown |= unknown_sum::rss | unknown_sum::pss | unknown_sum::uss;
          table_bytes_ += extent.bytes;
        }
        return uncounted(extent.bytes);
      }
      sums_.unknown |= unknown_sum::uss;  // the kernel's rule for it needs `exclusive`
      return by_count(extent, false);
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

  /// Pages of which nothing says how often they are mapped.
  void not_told(const Extent& extent, bool page_of_memory) {
    sums_.unknown |= unknown_sum::pss;
    if (page_of_memory)
      sums_.rss += extent.bytes;
    else
      sums_.unknown |= unknown_sum::rss;
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
  void by_count(const Extent& extent, bool page_of_memory) {
    if (extent.state != PageState::resident || !state_.counts)
      return not_told(extent, page_of_memory);
    auto read = state_.counts->read(
        extent.pfn, page_size_.pages(extent.bytes),
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
            counted(first, part, std::max<std::uint64_t>(facts.mapcount, 1), facts.mapcount == 0);
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
    if (extent.state != PageState::resident) return;
    if (!state_.numa) {
      sums_.unknown |= unknown_sum::nodes;
      if (state_.options.by_node) on_node(-1, extent, extent.bytes, add);
      return;
    }
    for (std::uint64_t left = extent.bytes; left != 0;) {
      const PhysAddr pa = page_size_.address(pfn);
      if (!node_range_.contains(pa)) {
        node_ = state_.numa->node(pa);
        node_range_ = {pa, state_.numa->run_end(pa)};
      }
      const auto node = node_;
      const std::uint64_t rest = page_size_.pages(node_range_.end - pa);
      const std::uint64_t frames = std::clamp<std::uint64_t>(rest, 1, page_size_.pages(left));
      const std::uint64_t bytes = frames * page_size_.bytes();
      if (node) sums_.nodes.add(*node, bytes);
      if (state_.options.by_node) on_node(node ? static_cast<int>(*node) : -1, extent, bytes, add);
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
    // These are not told apart by node, or lie on none.
    sums.unknown |= unknown_sum::extents | unknown_sum::frames | unknown_sum::mapping |
                    unknown_sum::swap | unknown_sum::device;
  }

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
    if (hugetlb_ && extent.leaf_shift != 0) sums_.folios.add(extent.leaf_shift, extent.bytes);
    if (!runs_.add(span)) {
      FlagSums sums{page_size_};
      auto read = sums.read(*state_.flags[0], span);
      sums.deliver(sums_);
      if (!state_.tells_ksm) sums_.unknown |= unknown_sum::ksm;
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
    if (!state_.tells_ksm) sums_.unknown |= unknown_sum::ksm;
    runs_.clear();
    return read;
  }

  State& state_;
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
  state->tells_ksm = tells_ksm(root.kernel_release());
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
  if (auto numa = NumaMap::read(root)) state->numa.emplace(std::move(*numa));
  return StatsReader{std::move(state)};
}

const Error* StatsReader::frames_error() const {
  return state_->flags_error ? &*state_->flags_error : nullptr;
}

Result<void> StatsReader::read(const Process& process, Translator& translator,
                               VmaInspector& inspector, FunctionRef<bool(const VmaStats&)> sink,
                               const VmaExtentSink* extents) {
  const StatsOptions& options = state_->options;
  Summing<State> summing{*state_, translator, inspector, sink};
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
  if (more && !(options.stop != nullptr && options.stop())) summing.finish();
  if (auto result = summing.result(); !result) return result;
  return walked;
}

}  // namespace vmem
