// SPDX-License-Identifier: MIT
/// Memory that a device was told of (an RDMA memory region, a DPDK segment, any range of a
/// process), judged by what its pages are now. Nothing is attached to, pinned or faulted in.
///
/// The rules follow ib_umem_get() and ib_umem_find_best_pgsz() (drivers/infiniband/core/umem.c),
/// check_vma_flags() and FOLL_LONGTERM (mm/gup.c), copy_page_range() (mm/memory.c), and DPDK's EAL
/// (lib/eal/common/eal_memcfg.h, rte_fbarray.c).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/pages.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// What the device calls the memory.
enum class IovaRule : std::uint8_t {
  none,      ///< not told, or any number: nothing to compare
  physical,  ///< iova is the physical address (DPDK's PA mode)
  virt,      ///< iova is the virtual address (DPDK's VA mode)
};

enum class Severity : std::uint8_t { info, warning, error, unknown };
VMEM_EXPORT std::string_view to_string(Severity);

/// One range that a device may reach. Half-open, in bytes; it need not be page aligned.
struct Registration {
  VaRange range;
  std::uint64_t iova = 0;  ///< of range.start; see iova_rule
  IovaRule iova_rule = IovaRule::none;
  bool iova_known = false;       ///< iova was told, whether or not it is compared
  /// The IOVA holds for so many bytes from range.start; 0: for all.
  std::uint64_t iova_bytes = 0;
  /// How bad it is that no IOVA was told; empty: nothing is wrong with that.
  std::optional<Severity> no_iova;
  bool device_writes = true;     ///< the device may write to it
  /// Registered through the kernel, which pins its pages (ib_umem_get()) and counts them
  /// against RLIMIT_MEMLOCK: what get_user_pages() refuses is an error.
  bool through_kernel = true;
  bool pinned = false;           ///< it is registered now: its frames must be pinned
  bool copied_at_fork = false;  ///< the kernel copies it for the child of a fork: no hazard
  std::uint8_t dma_mask_bits = 0;///< the device reaches addresses below 1 << bits; 0: all
  std::uint64_t page_size = 0;   ///< it must lie in pages at least this large; 0: any
  std::optional<unsigned> node;  ///< NUMA node of the device, or as the application says
  std::string key;               ///< lkey, name, ...: for people; may be empty
  std::string device;            ///< may be empty
};

enum class AuditFindingKind : std::uint8_t {
  unmapped,         ///< no VMA
  not_resident,     ///< no page
  swapped,
  not_registrable,  ///< get_user_pages() refuses: VM_PFNMAP, VM_IO, guard, secretmem, read-only
  iova_mismatch,    ///< the device reaches other memory than the process
  no_iova,          ///< the device has no address for it
  dma_mask,         ///< beyond what the device can address
  page_size,        ///< mapped by smaller pages than the registration says
  no_longterm_pin,  ///< shared, of a file system that must know of writes: Linux 6.5 refuses
  beyond_eof,       ///< past the end of the mapped file: touching it is SIGBUS
  fork_hazard,      ///< private, writable, without MADV_DONTFORK or MADV_WIPEONFORK
  shared_cow,       ///< the next write of the process moves the page away from the device
  ksm,              ///< merged with equal pages: as shared_cow
  zero_page,        ///< the kernel's zero page: as shared_cow
  hwpoison,
  spans_nodes,
  remote_node,
  movable,          ///< ZONE_MOVABLE: a long-term pin migrates it first
  cma,              ///< a CMA area: as movable
  fragmented,       ///< more entries in the device's tables than the range needs
  over_memlock,     ///< beyond RLIMIT_MEMLOCK
  unlinked,         ///< the huge page's file is gone: no other process can map it any more
  unpinned,         ///< registered, yet no frame of it is pinned
  // Not known, each with Severity::unknown: never taken for good.
  hidden,           ///< PFNs are not shown to this reader
  unseen,           ///< no source sees this VMA, or its line of maps was left out
  changed,          ///< kept moving
  special_entry,    ///< a marker or migration entry
  flags_unknown,    ///< VmFlags cannot be read
  frames_unknown,   ///< /proc/kpageflags cannot be read
  file_unknown,     ///< the mapped file's size or file system cannot be read
  limits_unknown,   ///< limits or status of the process cannot be read
  iova_unknown,     ///< the device was told an address, and nothing tells which
  node_unknown,     ///< the NUMA node of a frame cannot be told
  zone_unknown,     ///< which frames are ZONE_MOVABLE or CMA cannot be told
};
VMEM_EXPORT std::string_view to_string(AuditFindingKind);  ///< "not-resident"
/// What to do about it; never empty.
VMEM_EXPORT std::string_view advice(AuditFindingKind);

/// Where a finding was made: a run of pages.
struct Evidence {
  VirtAddr va;
  std::uint64_t bytes = 0;
  std::optional<Pfn> pfn;                  ///< of the first page
  std::optional<std::uint64_t> expected;   ///< iova_mismatch: the iova; nodes: the wanted node
  std::optional<std::uint64_t> actual;     ///< iova_mismatch: PA or VA; nodes: the node it is on
};

/// One kind of trouble in one registration.
struct AuditFinding {
  static constexpr std::size_t kept_runs = 8;
  AuditFindingKind kind = AuditFindingKind::unmapped;
  Severity severity = Severity::error;
  std::string_view flag;        ///< what tells: "pf", "io", "dc", "kpageflags ksm"; static
  std::uint64_t bytes = 0;      ///< in all runs together
  std::uint64_t runs = 0;
  std::vector<Evidence> where;  ///< the first kept_runs of them, in order
  VirtAddr end;                 ///< of the last run
};

/// What one registration is made of.
struct Audit {
  std::uint64_t resident_bytes = 0;  ///< within the range
  bool complete = true;  ///< every page's frame is known: the next four mean something
  std::uint64_t extents = 0;  ///< runs of consecutive frames
  std::uint64_t largest_extent = 0;  ///< bytes
  std::uint64_t best_page_size = 0;  ///< of the machine's leaf sizes, as ib_umem_find_best_pgsz()
  std::uint64_t entries = 0;  ///< pages of that size that cover the range
  std::uint64_t ideal_page_size = 0;  ///< the largest that fits into the range
  std::uint64_t ideal_entries = 0;
  std::vector<std::pair<unsigned, std::uint64_t>> nodes;  ///< node, bytes; ascending
  /// Bytes whose node is not known, of what is or may be in memory. Of a registration that has a
  /// node, and of a machine that should tell, that is a finding (node_unknown) as well.
  std::uint64_t node_unknown_bytes = 0;
  // What a recorded system does not hold, or a kernel does not show to anybody, without a finding.
  bool movable_known = true;  ///< whether movable would have been found
  bool cma_known = true;  ///< whether cma would have been found
  bool limits_known = true;  ///< whether over_memlock would have been found
  /// Of a registration that must be pinned: whether each frame in memory was asked about (only
  /// the kernel module tells). False: that it is not pinned could not have been found.
  bool pins_checked = false;
  std::vector<AuditFinding> findings;

  /// The worst finding: error before unknown before warning before info; empty: none at all.
  VMEM_EXPORT std::optional<Severity> worst() const;
};

/// Limits on locked memory of one process; empty: not known.
struct LockLimits {
  std::optional<std::uint64_t> memlock;  ///< RLIMIT_MEMLOCK in bytes; UINT64_MAX: unlimited
  std::optional<std::uint64_t> pinned;  ///< VmPin, bytes
  std::optional<std::uint64_t> locked;  ///< VmLck, bytes
  std::optional<bool> ipc_lock;  ///< CAP_IPC_LOCK is effective: there is no limit
};
/// From limits and status of the process. What these do not say stays empty.
VMEM_EXPORT LockLimits read_lock_limits(const Process& process);

struct AuditOptions {
  /// Ask what registering would meet: absent and swapped pages are then brought in by it (info).
  bool planned = false;
  /// pinned_bytes() of what earlier calls audited: a long list may be audited in parts, and the
  /// limit on locked memory holds for all of them.
  std::uint64_t pinned_before = 0;
  WalkOptions walk = {.every_page = true, .whole_hugetlb = true};
};

/// Bytes of whole pages that the kernel pins for those that are registered through it, each by
/// itself; UINT64_MAX for what 64 bits do not hold.
VMEM_EXPORT std::uint64_t pinned_bytes(std::span<const Registration> registrations,
                                       PageSize page_size);

/// Judges registrations of one process, in any order, overlapping or not; the answers are in the
/// order of the questions. The process is walked once, whatever the number of registrations.
/// Errors: as translate(); what cannot be known is a finding and no error. What a line of maps may
/// tell of that was left out (Process::skip_odd_lines()) is `unseen`, with left_out_flag.
VMEM_EXPORT Result<std::vector<Audit>> audit(const Process& process, Translator& translator,
                                             std::span<const Registration> registrations,
                                             const AuditOptions& options);
/// The same with the caller's inspector, which says afterwards what it could not read.
VMEM_EXPORT Result<std::vector<Audit>> audit(const Process& process, Translator& translator,
                                             VmaInspector& inspector,
                                             std::span<const Registration> registrations,
                                             const AuditOptions& options);
inline constexpr std::string_view left_out_flag = "a line of maps was left out";

// -- DPDK ------------------------------------------------------------------------------------

struct DpdkSegment {
  VaRange range;
  std::uint64_t iova = 0;  ///< ~0: it has none (RTE_BAD_IOVA)
  std::uint64_t page_size = 0;  ///< hugepage_sz
  std::int32_t socket = 0;
  std::uint32_t list = 0;  ///< index into DpdkMemory::lists
  std::uint32_t index = 0;  ///< within the list
  friend bool operator==(const DpdkSegment&, const DpdkSegment&) = default;
};

struct DpdkList {
  std::string name;  ///< "memseg-2048k-0-0"
  VaRange range;  ///< reserved addresses
  std::uint64_t page_size = 0;
  std::int32_t socket = 0;
  bool external = false;  ///< memory of the application's (rte_malloc_heap_memory_add)
};

struct DpdkMemzone {
  std::string name;
  VaRange range;
  std::uint64_t iova = 0;
  std::uint64_t page_size = 0;
  std::int32_t socket = 0;
  std::uint32_t flags = 0;  ///< RTE_MEMZONE_*
  bool iova_contiguous() const { return (flags & 0x100000) != 0; }
};

struct DpdkMemory {
  std::string version;  ///< "22.11.11"
  std::uint64_t config_address = 0;  ///< where every process of it maps `config`
  std::uint8_t dma_mask_bits = 0;
  bool legacy = false;  ///< --legacy-mem
  bool single_file_segments = false;
  /// The shared files do not say it: VA where most segments have iova == va.
  IovaRule mode = IovaRule::none;
  /// Told by the primary's telemetry socket, which names no lists and reserved addresses, options
  /// or memzones with their IOVAs: these are empty, or what the segments say.
  bool by_telemetry = false;
  std::vector<DpdkList> lists;  ///< those in use
  std::vector<DpdkSegment> segments;  ///< by list, then by index
  std::vector<DpdkMemzone> memzones;
};

/// Reads the runtime directory `directory` (relative to `tree`) of a DPDK primary. Errors:
/// not_found, malformed (with the file and the offset; also what cannot be at once, as two lists
/// of one name, or a memzone outside of all lists), not_supported for a version whose layout is
/// not known.
VMEM_EXPORT Result<DpdkMemory> read_dpdk(const SysRoot& tree, const std::string& directory);

/// The version that `config` names, and nothing else. Errors: as read_dpdk().
VMEM_EXPORT Result<std::string> read_dpdk_version(const SysRoot& tree,
                                                  const std::string& directory);

/// How IOVAs are made, as far as the segments say it: see DpdkMemory::mode.
VMEM_EXPORT IovaRule iova_mode(const DpdkMemory& memory);

/// What to ask about each segment, and about each memzone. A memzone that need not be contiguous
/// has the IOVA of its first page; the rest has those of its segments.
VMEM_EXPORT std::vector<Registration> registrations_of(const DpdkMemory& memory);
VMEM_EXPORT std::vector<Registration> memzones_of(const DpdkMemory& memory);

}  // namespace vmem
