// SPDX-License-Identifier: MIT
/// The VMAs of a process: reading /proc/PID/maps, finding one, and saying what each is.
/// Source of the text form: show_map_vma() in fs/proc/task_mmu.c.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/function_ref.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// One line of /proc/PID/maps.
struct Vma {
  VaRange range;              ///< half-open, page aligned
  bool readable = false;
  bool writable = false;
  bool executable = false;
  bool shared = false;
  std::uint64_t offset = 0;   ///< bytes into the file; for some devices a physical address
  std::uint32_t dev_major = 0;
  std::uint32_t dev_minor = 0;
  std::uint64_t inode = 0;    ///< 0: no file
  /// The name as it is: the kernel's "\012" for a newline is undone (a name that really
  /// holds the four characters "\012" cannot be told apart; the kernel does not escape
  /// the backslash). " (deleted)" is kept: a file may be called that. Empty: no name.
  std::string path;

  friend bool operator==(const Vma&, const Vma&) = default;
};

/// "rw-p"
VMEM_EXPORT std::string permissions(const Vma& vma);

/// Parses one line without its newline. False: not a maps line (`vma` is unspecified).
VMEM_EXPORT bool parse_maps_line(std::string_view line, Vma& vma);

/// Calls `sink` for every line, in order, until it returns false. The Vma is reused:
/// nothing is allocated per line beyond what the longest name takes. Errors: malformed,
/// with the line's number.
VMEM_EXPORT Result<void> parse_maps(std::string_view text, FunctionRef<bool(const Vma&)> sink);

/// Reads maps as a stream: memory does not grow with the number of VMAs.
class VMEM_EXPORT VmaReader {
 public:
  /// A line that the kernel would not print is an error (malformed, with the line's number), or
  /// left out and told where Process::skip_odd_lines() was called before.
  static Result<VmaReader> open(const Process& process);
  VmaReader(VmaReader&&) noexcept;
  VmaReader& operator=(VmaReader&&) noexcept;
  ~VmaReader();

  /// The next VMA in ascending order; false at the end. A process that ends while it is
  /// read also looks like the end: see Process::check_alive and translate().
  Result<bool> next(Vma& vma);

  /// Whether next() can answer from what it has read already.
  bool buffered() const;

 private:
  struct State;
  explicit VmaReader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// All VMAs, ascending. Memory grows with their number; prefer VmaReader.
VMEM_EXPORT Result<std::vector<Vma>> read_vmas(const Process& process);

/// The VMA that holds `address`, empty if none does. One PROCMAP_QUERY where the kernel
/// has it (6.11), else the text up to that address. `kernel_page_size`, if given, gets the
/// VMA's page size (larger than the base page for hugetlb) where the ioctl tells it.
VMEM_EXPORT Result<std::optional<Vma>> find_vma(
    const Process& process, VirtAddr address, std::optional<PageSize>* kernel_page_size = nullptr);

/// The VmFlags line of smaps: two-letter codes, in the kernel's order. Codes that this
/// library does not know are kept like all others.
class VMEM_EXPORT VmFlags {
 public:
  VmFlags() = default;
  explicit VmFlags(std::string_view codes) : codes_(codes) {}
  bool has(std::string_view code) const;
  std::string_view text() const { return codes_; }  ///< "rd wr mr"

 private:
  std::string codes_;
};

/// A VMA and its flags; empty: not known.
struct FlaggedVma {
  VaRange range;
  std::optional<VmFlags> flags;
};
/// Tells VmFlags without smaps: all VMAs that end above an address, ascending, or the first of
/// them; none: there are no more. An error: it does not tell, and need not be asked again.
using VmFlagsSource = std::function<Result<std::vector<FlaggedVma>>(VirtAddr)>;

/// What smaps says of one VMA.
struct SmapsEntry {
  VaRange range;
  std::optional<VmFlags> flags;             ///< absent on kernels without VmFlags
  std::optional<PageSize> kernel_page_size;
  // Sums in bytes, of whole kB as the kernel prints them; absent where it does not.
  std::optional<std::uint64_t> rss;
  std::optional<std::uint64_t> pss;
  std::optional<std::uint64_t> uss;   ///< Private_Clean and Private_Dirty
  std::optional<std::uint64_t> swap;  ///< with what shared memory has there
  std::optional<std::uint64_t> pss_dirty;
  std::optional<std::uint64_t> referenced;
  std::optional<std::uint64_t> lazyfree;
  std::optional<std::uint64_t> swap_pss;
  std::optional<std::uint64_t> locked;
  /// Whether a huge page of some size may be put here (THPeligible); since 6.8 sizes below the
  /// PMD's count, too.
  std::optional<bool> thp_eligible;
  /// By leaves of a PMD's size: AnonHugePages, ShmemPmdMapped and FilePmdMapped. Neither hugetlb
  /// nor the huge zero page is in it.
  std::optional<std::uint64_t> pmd_mapped;
};

/// Reads smaps as a stream, for ascending questions. smaps costs a walk of every page
/// up to the VMA asked for, so nothing is read before the first question.
class VMEM_EXPORT SmapsReader {
 public:
  explicit SmapsReader(const Process& process);
  SmapsReader(SmapsReader&&) noexcept;
  SmapsReader& operator=(SmapsReader&&) noexcept;
  ~SmapsReader();

  /// The entry that holds `address`; empty if there is none, or if more than `most` entries
  /// would have to be passed to reach it. A question below the last one starts again from
  /// the beginning.
  Result<std::optional<SmapsEntry>> find(VirtAddr address, std::size_t most = SIZE_MAX);

  /// The first line so far that is none of smaps: the entry that it begins, or stands in, is left
  /// out. Null: none.
  const Error* odd_line() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

enum class VmaClass : std::uint8_t { file, anonymous, device, hugepage, special };

enum class VmaKind : std::uint8_t {
  heap,
  stack,
  anon,
  shm,
  memfd,
  sysv,
  file,
  dax,
  hugetlb,
  device_pfnmap,
  device_mixed,
  pci_bar,
  uio,
  vfio,
  devmem,
  gpu,
  dma_buf,
  io_uring,
  perf,
  packet,
  bpf,
  aio,
  secretmem,
  kvm,
  rdma,
  uprobes,
  vectors,
  vdso,
  vvar,
  vsyscall,
  guard,
  reserve,
  unknown,
};

VMEM_EXPORT std::string_view to_string(VmaClass);
VMEM_EXPORT std::string_view to_string(VmaKind);  ///< "device-pfnmap", "pci-bar", ...

/// What is known of a VMA beyond its line in maps. Empty means not known, never "no".
struct VmaFacts {
  /// Type of the mounted filesystem with the VMA's device number, from mountinfo:
  /// "ext4", "hugetlbfs". Empty string: the mounts were read, none has that number, and it is a
  /// block device's or the kernel's own (memfd, SysV, anonymous shared memory).
  std::optional<std::string_view> filesystem;
  bool dax = false;  ///< that mount has a dax option
  std::optional<bool> device_node;  ///< the mapped file is a character device
  std::optional<VmFlags> flags;
  bool pfnmap = false;  ///< VM_PFNMAP for certain, whatever is known of flags
  std::optional<PageSize> kernel_page_size;  ///< larger than the base page: hugetlb
  std::optional<bool> thread_stack;  ///< a thread's stack pointer lies in it
  std::optional<bool> packet_socket;  ///< the mapped socket is AF_PACKET
};

struct Classification {
  VmaClass vma_class = VmaClass::special;
  VmaKind kind = VmaKind::unknown;
  friend bool operator==(const Classification&, const Classification&) = default;
};

/// What a VMA is, from its line and the facts at hand; a pure table. Where a fact that
/// would decide is missing the answer is coarser (anon for a thread's stack, unknown for
/// a device mapping), never a guess. `page_size` is the machine's base page.
VMEM_EXPORT Classification classify(const Vma& vma, const VmaFacts& facts, PageSize page_size);

/// Gathers facts for one process. Each source (mountinfo, smaps, threads' stack
/// pointers, sockets) is read once, and only when a VMA's line leaves that question open.
class VMEM_EXPORT VmaInspector {
 public:
  explicit VmaInspector(const Process& process);
  /// The same with a source of flags that does not hold the process up, as vm_flags_source() of
  /// pages.hpp gives. It is asked where smaps might take long: the kernel walks every page of a VMA
  /// for smaps, and the process's mmap() waits meanwhile, some 27 ms for each GiB of small pages.
  /// What the source does not know is still taken from smaps.
  VmaInspector(const Process& process, VmFlagsSource flags);
  VmaInspector(VmaInspector&&) noexcept;
  VmaInspector& operator=(VmaInspector&&) noexcept;
  ~VmaInspector();

  /// Class and kind with every fact that it takes. Ask in ascending order: flags come
  /// from a stream.
  Classification classify(const Vma& vma);

  /// VmFlags of just this VMA; empty where they cannot be read, where the VMA is another one by
  /// now, or if smaps would have to pass more than `most` VMAs.
  std::optional<VmFlags> flags(const Vma& vma, std::size_t most = SIZE_MAX);

  /// The entry of smaps for just this VMA; empty where there is none or smaps cannot be read.
  /// Costs as flags() does.
  std::optional<SmapsEntry> smaps(const Vma& vma);

  /// Why an answer so far is coarser than it might be, or missing: the first file of /proc, or line
  /// of it, that could not be read (mountinfo, smaps, net/packet, task). Null: none. That the
  /// reader may not see a thread's stack pointer is no such reason; then the stack is `anon`.
  const Error* missing() const;

  /// Whether smaps was read of a process that it may have held up.
  bool smaps_stalled() const;
  /// Whether flags() will ask smaps: of a small process, of a recorded one, and where there is no
  /// other source. May open the source.
  bool flags_from_smaps();

  /// Whether the VMA may show memory of tmpfs or of the kernel's own shmem files: then its
  /// swapped pages stand in no page table.
  bool may_be_shmem(const Vma& vma);

  /// The type of the file system that the VMA's file is on ("ext4"), as mountinfo says: "" for
  /// files of the kernel's own mounts and for memory without a file. Empty: it cannot be read.
  std::optional<std::string> filesystem(const Vma& vma);

  /// The page size of a hugetlb VMA; empty for any other. The error-free "not known" is
  /// also empty: smaps and PROCMAP_QUERY were both refused.
  std::optional<PageSize> hugetlb_page_size(const Vma& vma);

  /// Whether pagemap is blind to this VMA (VM_PFNMAP) at this moment. Ask where it showed nothing.
  /// From Linux 6.7 on PAGEMAP_SCAN tells, in a microsecond and whatever the VMA is; before, and
  /// of recorded systems, VmFlags do.
  enum class Blindness : std::uint8_t {
    sighted,  ///< ordinary memory: nothing shown means nothing there
    pfnmap,  ///< VM_PFNMAP
    gate,  ///< [vsyscall]: not in the process's own page tables
    unproven,  ///< could be VM_PFNMAP, and its flags cannot be read
    gone,  ///< another VMA is there by now, or none
  };
  Blindness blindness(const Vma& vma);
  /// Whether a driver may make the VMA VM_PFNMAP after some of its pages were shown: it has a file,
  /// and not one of an ordinary file system. Cheap.
  bool may_turn_blind(const Vma& vma);

 private:
  Blindness confirm_blindness(const Vma& vma);
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace vmem
