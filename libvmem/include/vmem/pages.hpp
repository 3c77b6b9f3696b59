// SPDX-License-Identifier: MIT
/// From virtual addresses to page frames.
///
/// The central value is the Extent: a run of pages with one state and consecutive
/// frames. A Translator delivers extents that tile the asked range exactly: in order,
/// without gaps, without overlap, as long as possible. Two neighbouring extents differ in
/// state, reason, leaf size or attribute bits, or their frames do not follow each other.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/function_ref.hpp"
#include "vmem/maps.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

enum class PageState : std::uint8_t {
  resident,  ///< in memory, at Extent::pfn
  absent,    ///< a VMA covers it, no page yet
  swapped,   ///< Extent::swap_type and swap_offset, unless reason is swap_fields_hidden
  guard,     ///< a lightweight guard page (MADV_GUARD_INSTALL)
  special,   ///< neither a page nor swap: migration, poison, a marker; see reason, names_frame()
  hidden,    ///< in memory, but this reader is not shown the PFN
  unseen,    ///< this backend cannot see this VMA; see reason
  unmapped,  ///< no VMA
  changed,   ///< kept moving while it was read
};

/// Why a state is what it is, where the state alone does not say.
enum class Reason : std::uint8_t {
  none,
  pfnmap,               ///< unseen: VM_PFNMAP, which pagemap shows as empty
  maybe_pfnmap,         ///< unseen: looks like a device mapping, VmFlags cannot be read
  gate_vma,             ///< unseen: [vsyscall] is outside the process's page tables
  swap_fields_hidden,   ///< swapped: type and offset are not shown to this reader
  uffd_wp_marker,       ///< special: userfaultfd write-protect marker on an empty page
  poison_marker,        ///< special: the page is poisoned
  other_marker,         ///< special: a page-table marker this library does not know
  /// special: migration, device-private or poison entry; which of them could not be told.
  migration_or_device,
  vma_changed,          ///< changed: the VMA was remapped during the read
  unknown_entry,        ///< special: a page-table entry of a form this library does not know
  poison,               ///< special: the frame was lost to a memory error, and the page with it
  migration,            ///< special: the page is on its way from this frame to another
  device_private,       ///< special: the page lies in a device's own memory, at this frame
  device_exclusive,     ///< special: a device alone may use the page in this frame of RAM
  migration_or_exclusive,  ///< special: one of these two, of a page of RAM
  table_unreadable,     ///< unseen: this source could not read the page table
};

enum class Backend : std::uint8_t { pagemap, bpf, kmod };

/// Bits of Extent::bits, as pagemap tells them.
namespace page_bit {
inline constexpr std::uint8_t soft_dirty = 1;  ///< pagemap bit 55
inline constexpr std::uint8_t exclusive = 2;   ///< pagemap bit 56: mapped once
inline constexpr std::uint8_t uffd_wp = 4;     ///< pagemap bit 57
inline constexpr std::uint8_t file = 8;        ///< pagemap bit 61: file page or shared anonymous
/// One entry was read for each huge leaf. `exclusive` is then that of one of its pages; all
/// else holds for every page (pagemap_pmd_range() in fs/proc/task_mmu.c computes bit 56
/// for each page, the rest once for the leaf). Newer kernels (6.18) ask of one page for all of a
/// PMD leaf: there `exclusive` may be wrong of the others also without this bit; kpagecount tells.
inline constexpr std::uint8_t leaf_sampled = 16;
}  // namespace page_bit

/// How the processor caches what an entry maps. The first six are x86's memory types
/// (Documentation/arch/x86/pat.rst), the rest arm64's (arch/arm64/include/asm/memory.h).
enum class CacheAttribute : std::uint8_t {
  unknown,
  uc,
  uc_minus,
  wc,
  wt,
  wp,
  wb,
  device_ngnrne,
  device_ngnre,
  normal_nc,
  normal,         ///< write-back
  normal_tagged,  ///< write-back, with memory tags (MTE)
};
VMEM_EXPORT std::string_view to_string(CacheAttribute);

/// What the page-table entry says (Extent::pte). Only page tables tell, so pagemap's extents
/// have 0 here. Permissions are the effective ones: of all levels together.
namespace pte_bit {
inline constexpr std::uint16_t known = 1;  ///< the rest means something
inline constexpr std::uint16_t writable = 2;
inline constexpr std::uint16_t user = 4;  ///< clear for PROT_NONE
inline constexpr std::uint16_t executable = 8;
inline constexpr std::uint16_t global = 16;
/// The processor sets these two page by page, so an extent goes on where they change:
/// `*_varies` then says that not all pages are alike, and the bit itself is clear.
inline constexpr std::uint16_t accessed = 32;
inline constexpr std::uint16_t dirty = 64;
inline constexpr std::uint16_t accessed_varies = 128;
inline constexpr std::uint16_t dirty_varies = 256;
inline constexpr std::uint16_t usage = accessed | dirty | accessed_varies | dirty_varies;
inline constexpr unsigned cache_shift = 12;  ///< a CacheAttribute in the upper four bits
constexpr std::uint16_t cache(CacheAttribute c) {
  return static_cast<std::uint16_t>(static_cast<unsigned>(c) << cache_shift);
}
constexpr CacheAttribute cache(std::uint16_t pte) {
  return static_cast<CacheAttribute>(pte >> cache_shift);
}
}  // namespace pte_bit

struct Extent {
  VirtAddr va;                ///< of the first page; page aligned
  std::uint64_t bytes = 0;    ///< a multiple of the page size
  union {
    Pfn pfn = {};               ///< resident: of the first page; special: see names_frame()
    std::uint64_t swap_offset;  ///< swapped: of the first page, in pages of the swap area
  };
  PageState state = PageState::absent;
  Reason reason = Reason::none;
  /// page_bit. Page tables do not tell `exclusive` and `file`; see Translator::known_bits().
  std::uint8_t bits = 0;
  std::uint8_t leaf_shift = 0;  ///< log2 of the page-table leaf in bytes; 0: not known
  std::uint8_t swap_type = 0;   ///< swapped; special: the kernel's type of what names a frame
  Backend backend = Backend::pagemap;
  std::uint16_t pte = 0;        ///< pte_bit

  constexpr VirtAddr end() const { return va + bytes; }
};
static_assert(sizeof(Extent) == 32 && std::is_trivially_copyable_v<Extent>);

/// Whether an entry that maps nothing names a frame: Extent::pfn is then the first page's, and
/// grows by one for each page, as of a resident extent.
constexpr bool names_frame(const Extent& extent) {
  if (extent.state != PageState::special) return false;
  switch (extent.reason) {
    case Reason::migration_or_device:
    case Reason::poison:
    case Reason::migration:
    case Reason::device_private:
    case Reason::device_exclusive:
    case Reason::migration_or_exclusive:
      return true;
    default:
      return false;
  }
}

VMEM_EXPORT std::string_view to_string(PageState);
VMEM_EXPORT std::string_view to_string(Backend);
/// A sentence fragment for people; empty for Reason::none.
VMEM_EXPORT std::string_view to_string(Reason);
/// The same with the frame that the entry names: "poison: frame 0x433c was lost to a memory error".
VMEM_EXPORT std::string reason_of(const Extent&);
/// What an entry that is neither a page nor swap is: "poison", "migration", "device-private",
/// "device-exclusive", "migration-or-device-exclusive", "guard", "userfaultfd-marker",
/// "poison-marker", "marker". Empty: not known, or the state is neither special nor guard.
VMEM_EXPORT std::string_view entry_kind(const Extent&);

/// Receives extents in order; returns false to stop the walk.
using ExtentSink = FunctionRef<bool(const Extent&)>;

/// How much to read, and how fast.
struct WalkOptions {
  /// 1 or 2. With 2 a second thread shares the reading once a walk proves long. A sink that forks
  /// must then not return in the child: fork(2) copies no other thread, and the walk waits for it.
  unsigned threads = 1;
  /// Read the entry of every page, also in huge leaves: no leaf_sampled extents. (Of a hugetlb
  /// page a live kernel says all by one entry.)
  bool every_page = false;
  /// All page_bits are wanted. Where they are not, a source that knows fewer may serve.
  bool page_bits = true;
  /// [vvar] is wanted, too: where pagemap is blind to it, page tables are asked, which takes some
  /// milliseconds to open. Nobody but the kernel has a use for it. Without this it is `unseen`
  /// there, unless page tables are open for another mapping.
  bool kernel_mappings = true;
  /// Of a hugetlb page one entry is read, as of a live kernel's, also where a recorded system's
  /// are many: what the record says of the page's other frames, which no kernel can have put
  /// elsewhere (mm/hugetlb.c: it is one folio), is not looked at. Mappings of 64 MiB and more.
  bool whole_hugetlb = false;
  /// The size of the hugetlb pages that the range is mapped by. translate() sets it.
  std::optional<PageSize> hugetlb = std::nullopt;
  /// Asked now and then, from any of the threads, also while there is nothing to deliver;
  /// true ends the walk as if the sink had. Once true it must stay so.
  bool (*stop)() = nullptr;

  bool stopped() const { return stop != nullptr && stop(); }
};

/// One level of the way from the root of a process's page tables to what maps an address.
struct WalkStep {
  const char* level = "";  ///< the kernel's name: "pgd", "p4d", "pud", "pmd", "pte"
  PhysAddr table;  ///< of the table, not of the entry
  unsigned index = 0;  ///< of the entry in its table
  std::uint64_t raw = 0;  ///< the entry as it stands in memory
  unsigned shift = 0;  ///< log2 of the bytes that the entry maps
  bool leaf = false;  ///< maps memory (at this level the walk ends)
  std::string flags;  ///< decoded, comma separated: "present,writable,user,nx,cache=uc-"
};

/// A page-table walk, from the root. The last step is the leaf, or the entry that maps
/// nothing (none, swap, marker): the extent says what it means.
struct PageWalk {
  std::vector<WalkStep> steps;  ///< folded levels are left out
  Extent extent;  ///< one page
};

/// A source of page facts for one process: the library's only virtual interface.
class VMEM_EXPORT Translator {
 public:
  virtual ~Translator();
  virtual Backend backend() const = 0;

  /// The page_bits that this source tells; others are clear because they are not known.
  virtual std::uint8_t known_bits() const = 0;
  /// Whether it sees VM_PFNMAP mappings: then what is empty is `absent`, never `unseen`.
  virtual bool sees_pfnmap() const = 0;

  /// Tiles `range` (page aligned) with extents, in order. VMAs are not consulted: what is
  /// not mapped reads `absent`, and so does what this source is blind to; translate()
  /// tells these apart. Allocates nothing that grows with the range. Errors:
  /// process_changed when the address space went away, malformed for a truncated recording.
  virtual Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) = 0;

  /// Every level's entry for the page at `page`. Errors: as walk(), and not_supported where
  /// the source is not the page tables.
  virtual Result<PageWalk> page_walk(VirtAddr page);

  /// Which driver made the mapping at `address`: the symbol of its VMA's vm_operations_struct, as
  /// /proc/kallsyms has it ("special_mapping_vmops", "uio_physical_vm_ops [uio]"); on a kernel
  /// without CONFIG_KALLSYMS_ALL one of its functions ("function=special_mapping_close"). Empty: it
  /// has none, as anonymous memory. May take some 100 ms. Errors: not_supported where this source
  /// does not tell; not_found where no VMA is, or kallsyms does not show the symbol
  /// (kptr_restrict).
  virtual Result<std::string> vm_ops(VirtAddr address);

  /// The VMAs that end above `from`, ascending, with their VmFlags; as many as one look brings,
  /// none if there are no more. Flags whose names are not certain are left out. Errors:
  /// not_supported where this source does not tell.
  virtual Result<std::vector<FlaggedVma>> vm_flags(VirtAddr from);

  /// The source to walk some `bytes` of address space with: this one, or what it knows to be
  /// better for that.
  virtual Translator& for_walk(std::uint64_t bytes, const WalkOptions& options);
  /// The source that sees what this one is blind to; null if there is none. May take some
  /// milliseconds when asked first.
  virtual Translator* page_tables();
  /// Why page_tables() was null, where that is known.
  virtual const Error* why_blind() const;
};

/// Opens one source for `process`, which must outlive it. Errors: permission, no_user_memory,
/// no_process; not_supported where this machine or build does not have it.
VMEM_EXPORT Result<std::unique_ptr<Translator>> open_translator(const Process& process,
                                                                Backend backend);
/// Opens what serves best: pagemap, and behind it page tables (BPF, else the kernel module)
/// where pagemap is blind and for long walks that can do without its page_bits.
VMEM_EXPORT Result<std::unique_ptr<Translator>> open_translator(const Process& process);

/// VmFlags of the process, which must outlive the source as the translator must: what the
/// translator tells of them, else BPF, whatever backend the translator is. It is opened at the
/// first question. Null of a recorded system, which has smaps alone.
VMEM_EXPORT VmFlagsSource vm_flags_source(const Process& process, Translator& translator);

/// What this translator's reader is shown. A live system has proven it; a recorded tree
/// without a manifest tells it by its own first resident entries.
VMEM_EXPORT PfnAccess pfn_access(const Process& process, Translator& translator);

/// Receives each extent with the VMA it lies in (null: unmapped). The Vma is valid during
/// the call. Returns false to stop.
using VmaExtentSink = FunctionRef<bool(const Vma*, const Extent&)>;

/// Everything in `range`, VMA by VMA: extents never cross a VMA's border, gaps are
/// `unmapped`, blind VMAs `unseen`. `range` need not be aligned: it is widened to whole
/// pages. The VMAs are read again after their pages; what moved in between is read once
/// more, a bounded number of times, and is `changed` if it still moves. (A VMA that was
/// replaced and put back exactly as before in between goes unnoticed.)
/// Errors: process_changed if the process ended or exec'ed; what the sink got until then
/// is right.
VMEM_EXPORT Result<void> translate(const Process& process, Translator& translator,
                                   VmaInspector& inspector, VaRange range,
                                   const WalkOptions& options, VmaExtentSink sink);

/// The whole address space, from the first VMA to the last. Gaps are not reported.
VMEM_EXPORT Result<void> translate_all(const Process& process, Translator& translator,
                                       VmaInspector& inspector, const WalkOptions& options,
                                       VmaExtentSink sink);

/// One page. `vma` is empty and the state `unmapped` where no VMA covers the address.
struct Translation {
  std::optional<Vma> vma;
  Extent extent;  ///< one page, `va` rounded down to it
};
VMEM_EXPORT Result<Translation> translate(const Process& process, Translator& translator,
                                          VmaInspector& inspector, VirtAddr address);

}  // namespace vmem
