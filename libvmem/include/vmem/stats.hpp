// SPDX-License-Identifier: MIT
/// What a process's memory is made of: sums over extents and frame facts, VMA by VMA.
///
/// Counted as the kernel counts for smaps (smaps_account() and smaps_hugetlb_range() in
/// fs/proc/task_mmu.c): a page is in rss if it is an ordinary page of memory; the zero page, what a
/// driver mapped by frame number and hugetlb pages are not.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/function_ref.hpp"
#include "vmem/maps.hpp"
#include "vmem/pages.hpp"
#include "vmem/physmap.hpp"
#include "vmem/sysroot.hpp"

namespace vmem {

/// A few numbers by a small key, ascending; what is not there is 0.
class VMEM_EXPORT Tally {
 public:
  using Entry = std::pair<unsigned, std::uint64_t>;
  void add(unsigned key, std::uint64_t amount);
  void add(const Tally& other);
  std::uint64_t at(unsigned key) const;
  const std::vector<Entry>& entries() const { return entries_; }
  bool empty() const { return entries_.empty(); }
  void clear() { entries_.clear(); }  ///< keeps its memory
  friend bool operator==(const Tally&, const Tally&) = default;

 private:
  std::vector<Entry> entries_;
};

/// Which of the sums are not known, and why not is to be read from the states counted beside them.
namespace unknown_sum {
inline constexpr std::uint32_t rss = 1;
inline constexpr std::uint32_t pss = 2;
inline constexpr std::uint32_t uss = 4;
inline constexpr std::uint32_t swap = 8;
inline constexpr std::uint32_t device = 16;  ///< a device mapping could not be seen
inline constexpr std::uint32_t extents = 32;  ///< also largest_extent and runs: PFNs are hidden
inline constexpr std::uint32_t nodes = 64;
inline constexpr std::uint32_t frames = 128;  ///< flags and folios
inline constexpr std::uint32_t hugetlb = 256;
inline constexpr std::uint32_t leaf = 512;
/// vmas, size, guard, special, hidden, unseen, changed: of VMAs, and not of what lies on a node.
inline constexpr std::uint32_t mapping = 1024;
inline constexpr std::uint32_t ksm = 2048;  ///< of flags: see FrameFacts::doubtful
inline constexpr std::uint32_t uncounted = 4096;
// What smaps alone tells (StatsOptions::smaps); unknown, too, where it was not asked for.
inline constexpr std::uint32_t pss_dirty = 8192;
inline constexpr std::uint32_t accessed = 16384;
inline constexpr std::uint32_t lazyfree = 32768;
inline constexpr std::uint32_t swap_pss = 65536;
inline constexpr std::uint32_t locked = 131072;
inline constexpr std::uint32_t smaps = pss_dirty | accessed | lazyfree | swap_pss | locked;
inline constexpr std::uint32_t all = 262143;
}  // namespace unknown_sum

/// Sums, in bytes where nothing else is said.
struct VMEM_EXPORT MemorySums {
  /// Fixed point of pss: bytes << 12, as the kernel's PSS_SHIFT has it, so that nothing is lost
  /// page by page.
  static constexpr unsigned pss_shift = 12;

  std::uint64_t vmas = 0;  ///< a number
  std::uint64_t size = 0;  ///< of address space
  std::uint64_t rss = 0;
  std::uint64_t pss_fixed = 0;  ///< each page of rss divided by how often it is mapped
  std::uint64_t uss = 0;  ///< of rss: mapped once (Private_Clean + Private_Dirty)
  std::uint64_t swap = 0;
  std::uint64_t hugetlb = 0;  ///< mapped hugetlb pages: Shared_Hugetlb + Private_Hugetlb
  std::uint64_t hugetlb_private = 0;
  std::uint64_t device = 0;  ///< device memory mapped by a VMA of class device
  std::uint64_t uncounted = 0;  ///< other mapped pages in no count: zero page, [vvar], perf rings
  std::uint64_t guard = 0;  ///< guard pages (MADV_GUARD_INSTALL)
  std::uint64_t special = 0;  ///< migration, device-private, poison and marker entries
  std::uint64_t hidden = 0;  ///< mapped, PFN not shown
  std::uint64_t unseen = 0;  ///< address space that the source is blind to
  std::uint64_t changed = 0;  ///< address space that kept moving while it was read
  std::uint64_t pss_dirty = 0;  ///< of pss: dirty pages
  std::uint64_t accessed = 0;  ///< smaps' Referenced: used since somebody last cleared that
  std::uint64_t lazyfree = 0;  ///< MADV_FREE: the kernel takes it when it needs memory
  std::uint64_t swap_pss = 0;  ///< of swap, each page divided by those who share it
  std::uint64_t locked = 0;  ///< of pss: in VMAs under mlock(2)
  std::uint64_t extents = 0;  ///< runs of consecutive frames, a number
  std::uint64_t largest_extent = 0;
  Tally leaf;  ///< mapped bytes by log2 of the page-table leaf; 0: leaf not known
  Tally runs;  ///< number of extents by log2 of their bytes, rounded down
  Tally nodes;  ///< bytes of rss, hugetlb by NUMA node
  Tally flags;  ///< bytes by kpageflags bit (StatsOptions::frames)
  /// Bytes by log2 of the folio that they are part of (StatsOptions::frames); 0: not known.
  Tally folios;
  std::uint64_t framed = 0;  ///< bytes whose kpageflags were read
  std::uint32_t unknown = 0;  ///< unknown_sum

  std::uint64_t pss() const { return pss_fixed >> pss_shift; }
  /// Everything mapped, hugetlb and devices included.
  std::uint64_t mapped() const { return rss + hugetlb + device + uncounted; }
  bool known(std::uint32_t sums) const { return (unknown & sums) == 0; }
  void add(const MemorySums& other);
  void clear();
};

struct StatsOptions {
  /// pss and uss are wanted: pages that are mapped more than once are looked up in kpagecount.
  bool sharing = true;
  /// flags and folios are wanted: kpageflags of every frame, 50 ns or more each.
  bool frames = false;
  /// pss_dirty, accessed, lazyfree, swap_pss, locked are wanted: smaps of every VMA. While the
  /// kernel makes it, the target cannot map memory: some 27 ms for each GiB of small pages.
  bool smaps = false;
  /// VmaStats::policy is wanted: numa_maps of every VMA, which costs the target as smaps does.
  bool policy = false;
  /// Sums for each NUMA node apart, too (VmaStats::by_node).
  bool by_node = false;
  unsigned threads = 1;  ///< 1 or 2
  bool (*stop)() = nullptr;  ///< as WalkOptions::stop
};

/// One VMA, summed. References are valid during the call.
struct VmaStats {
  const Vma& vma;
  Classification classification;
  const MemorySums& sums;
  /// With StatsOptions::by_node: rss, pss, uss, hugetlb, leaf of each node, the rest unknown; key
  /// -1 for memory of no known node (then
  /// `nodes` is unknown in `sums`). Ascending.
  const std::vector<std::pair<int, MemorySums>>& by_node;
  /// With StatsOptions::policy: where the kernel puts new pages, as numa_maps has it ("default",
  /// "bind:0", "weighted interleave:0-1"); empty: not known. A VMA without a policy of its own
  /// shows its process's.
  std::string_view policy;
};

/// Reads processes of one system.
class VMEM_EXPORT StatsReader {
 public:
  /// What cannot be opened (kpagecount, kpageflags, NUMA) leaves its sums unknown.
  static StatsReader open(const SysRoot& root, const StatsOptions& options);
  StatsReader(StatsReader&&) noexcept;
  StatsReader& operator=(StatsReader&&) noexcept;
  ~StatsReader();

  /// Why frame facts cannot be had although they were asked for; null if they can.
  const Error* frames_error() const;

  /// Whether the system says at all which memory is on which node; false: it has no such list, and
  /// nodes are unknown unless numa_maps tells them.
  bool tells_nodes() const;

  /// Calls `sink` for each VMA in ascending order, until it returns false. Sums that pages alone
  /// do not tell are taken from smaps, for just the VMAs that have them: what shared memory has in
  /// swap, and rss, pss, uss where PFNs are hidden; nodes, where frames do not tell them, from
  /// numa_maps. A VMA that is split or merged meanwhile comes
  /// in the parts in which it was seen; what kept moving is in `changed`, and its sums are unknown.
  /// Errors: as translate_all(); what the sink got until then is right.
  /// `extents`, if given, gets every extent before the VMA's sums.
  Result<void> read(const Process& process, Translator& translator, VmaInspector& inspector,
                    FunctionRef<bool(const VmaStats&)> sink,
                    const VmaExtentSink* extents = nullptr);

 private:
  struct State;
  explicit StatsReader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Leaf sizes that a machine with this base page has in any case, as log2, ascending: base page and
/// PMD, and for 4 KiB pages PUD. (Contiguous-bit sizes of arm64 appear where they are seen.)
VMEM_EXPORT std::vector<unsigned> leaf_shifts(PageSize page_size);

}  // namespace vmem
