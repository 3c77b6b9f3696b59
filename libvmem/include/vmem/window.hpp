// SPDX-License-Identifier: MIT
/// Whether a mapping lies where it must: windows of physical memory, checks of mappings
/// against them, and what was found.
///
/// A check is held against the extents of a mapping, in step with where the window says that
/// each page must be: its cost grows with the extents, not with the pages. What does not fit
/// is read again before it is reported. What could not be seen is `unverified`, never `pass`.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/maps.hpp"
#include "vmem/pages.hpp"
#include "vmem/physmap.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// Physical memory that a mapping may lie in.
struct Window {
  enum class Kind : std::uint8_t {
    physical,  ///< `ranges`
    ram,       ///< anywhere in `ranges`, which are all System RAM
    any,       ///< anywhere
  };
  Kind kind = Kind::any;
  /// Whole pages, ascending, disjoint. Offsets into the window count through them one after
  /// the other, as if what lies between were not there.
  std::vector<PaRange> ranges;
  bool device = false;  ///< memory of a device: System RAM in its place is `not-device`
  std::string text;     ///< as a user writes it: "pci:0000:03:00.0/bar2"

  /// The pages that hold [range.start, range.end), which must not be empty.
  VMEM_EXPORT static Window literal(PaRange range, PageSize page_size);
};

/// Cache attributes that a check allows, as bits 1 << CacheAttribute; 0: any.
using CacheSet = std::uint16_t;

/// The attributes that one word stands for: "uc" (uncached: UC and UC-, arm64's device memory),
/// "uc-" (UC- alone), "wc" (arm64: normal-nc), "wt", "wp", "wb" (arm64: normal and normal-tagged),
/// "any"; and what to_string() calls arm64's attributes, each for itself ("normal-nc",
/// "device-nGnRE"). Letters may have any case. Empty: no such word.
VMEM_EXPORT std::optional<CacheSet> cache_set(std::string_view word);

/// Which mappings a check is about.
struct Selector {
  enum class Form : std::uint8_t {
    address,  ///< the mapping that holds `address`
    name,     ///< a glob over the whole name in maps
    file,  ///< mappings that `text` (a glob over path or base name) selects, of that byte of the
           ///< file
  };
  Form form = Form::name;
  std::string text;
  VirtAddr address;
  std::uint64_t offset = 0;  ///< file: bytes into it

  /// `*` matches any text, slashes too, `?` one character, `[…]` one of a set. A text that begins
  /// with
  /// `[`, as the kernel's own names do, has no sets; one without a slash is held against
  /// the base name. " (deleted)" at the end of a name may be left out.
  VMEM_EXPORT bool selects(const Vma& vma) const;
};

/// Whether the whole of `text` matches the glob.
VMEM_EXPORT bool matches_glob(std::string_view glob, std::string_view text);

/// What a mapping must be.
struct Check {
  std::string name;
  Selector select;
  Window window;
  /// Of the mapping's first byte within the window, in bytes. Empty: where its file offset says,
  /// see window_offset().
  std::optional<std::uint64_t> offset;
  bool scatter = false;  ///< anywhere within the window, in any order
  bool sparse = false;  ///< pages may be missing
  bool optional = false;  ///< no mapping need be selected
  std::string perms;  ///< "rw-s"; '?' stands for either; empty: any
  CacheSet cache = 0;
  std::optional<PageSize> leaf;
  std::optional<unsigned> node;  ///< NUMA node
  std::vector<std::string> flags;  ///< VmFlags that must stand there; "!io": must not
};

/// Where in `window` the first byte of `vma` lies by its file offset: what the mapping's kind makes
/// of that column of maps. Sysfs PCI resources and /dev/mem show a physical address, UIO selects a
/// map by it, vfio a region (bits 40 and up) or, on older kernels, a physical address too.
/// UINT64_MAX: it names memory outside the window. Empty: it does not tell, as of a driver's
/// private mapping, where remap_pfn_range() replaces it by the first PFN (mm/memory.c).
VMEM_EXPORT std::optional<std::uint64_t> window_offset(const Window& window, const Vma& vma,
                                                       Classification what);

enum class FindingKind : std::uint8_t {
  outside_window,  ///< in memory, but not in the window
  wrong_address,  ///< in the window, but another place of it
  hole,  ///< no page
  wrong_perms,
  wrong_cache,
  wrong_leaf,
  wrong_node,
  wrong_flags,
  not_device,  ///< System RAM where a device was expected
  overlap,  ///< two mappings give one frame conflicting cache attributes
  unseen,  ///< could not be judged: hidden, unseen, or a fact that nobody tells
  changed,  ///< kept moving while it was read
};
VMEM_EXPORT std::string_view to_string(FindingKind);  ///< "outside-window", …
/// Whether it makes a check fail; the others make it unverified.
constexpr bool is_failure(FindingKind kind) { return kind < FindingKind::unseen; }

/// A run of pages with one fault. Where the fault is of the frames' place, they are consecutive
/// (or, see `descends`, the other way round).
struct Finding {
  FindingKind kind = FindingKind::unseen;
  VirtAddr va;
  std::uint64_t bytes = 0;
  std::optional<PhysAddr> expected;  ///< of the first page; it ascends with the pages
  std::optional<PhysAddr> actual;  ///< of the first page
  bool descends = false;  ///< `actual` falls from page to page
  std::string detail;

  friend bool operator==(const Finding&, const Finding&) = default;
};

enum class Verdict : std::uint8_t { pass, fail, unverified };
VMEM_EXPORT std::string_view to_string(Verdict);

/// Frames as one mapping caches them.
struct CachedRun {
  PaRange range;
  VirtAddr va;
  CacheAttribute cache = CacheAttribute::unknown;
};

struct CheckResult {
  Verdict verdict = Verdict::unverified;
  std::uint64_t pages_checked = 0;  ///< whose place was seen; holes count unless they are allowed
  std::uint64_t pages_ok = 0;  ///< of these, with nothing to be said against them
  std::vector<Finding> findings;  ///< by address, `most_findings` at most
  std::uint64_t more_findings = 0;  ///< beyond these
  std::optional<Backend> backend;  ///< where the pages' facts came from
  std::vector<CachedRun> cached;  ///< for find_overlaps()

  /// Adds a finding that is not of the pages' sweep; the verdict follows.
  VMEM_EXPORT void add(Finding finding);
};
inline constexpr std::size_t most_findings = 10000;

/// Windows by name, and the facts of physical memory that checks take. Each source is read
/// once, when it is first needed.
class VMEM_EXPORT WindowSources {
 public:
  explicit WindowSources(const SysRoot& root);
  WindowSources(WindowSources&&) noexcept;
  ~WindowSources();

  /// BAR `index` of `device` ("0000:03:00.0"; "03:00.0" is domain 0), by its line in sysfs
  /// `resource`: 6 is the expansion ROM, further ones are SR-IOV resources and bridge windows.
  /// Errors: not_found (no such device or line; what says so names a BAR that is not assigned, or
  /// the upper half of a 64-bit one), not_supported (I/O ports).
  Result<Window> pci_bar(std::string_view device, unsigned index);
  /// /sys/class/uio/uioN/maps/mapM. Errors: not_found; not_supported if its address is not a
  /// physical one (UIO_MEM_LOGICAL, UIO_MEM_VIRTUAL show the kernel's).
  Result<Window> uio_map(unsigned device, unsigned index);
  /// The memory of /dev/`name`, see read_published_memory(). Errors: as that; not_supported where
  /// the device's offsets do not go along with its addresses.
  Result<Window> published(std::string_view name);
  /// Every region of that name (in any case, where none has it exactly), nested ones included.
  /// Errors: not_found; permission where /proc/iomem shows zeros.
  Result<Window> iomem(std::string_view name);
  /// System RAM. Errors: as iomem().
  Result<Window> ram();

  /// The check that a device mapping must pass, from what it is: the window, and how the kernel
  /// caches it. not_supported where nothing can be derived: `what` says why, and
  /// `path`, where it is not the mapping's, what is known beyond that (a dma-buf's exporter).
  Result<Check> derive(const Process& process, const Vma& vma, Classification what);

  const Result<Iomem>& iomem_regions();
  const Result<NumaMap>& nodes();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// One mapping held against one check.
struct MappingCheck {
  const Check* check = nullptr;
  const Vma* vma = nullptr;
};

/// Judges mappings of one process, ascending by address (several checks of a mapping stand next
/// to each other): one result for each. Page tables are read where a check asks for what pagemap
/// does not tell. A process that ends or remaps meanwhile makes its checks unverified.
VMEM_EXPORT std::vector<CheckResult> check_mappings(const Process& process, Translator& translator,
                                                    VmaInspector& inspector, WindowSources& sources,
                                                    std::span<const MappingCheck> checks,
                                                    const WalkOptions& options);

/// A result and whose it is.
struct ResultOf {
  CheckResult* result = nullptr;
  pid_t pid = 0;
  VaRange vma;
};

/// Adds an `overlap` to the results whose mappings give one frame conflicting cache attributes.
/// UC and UC- do not conflict, nor do arm64's kinds of device memory.
VMEM_EXPORT void find_overlaps(std::span<const ResultOf> results);

}  // namespace vmem
