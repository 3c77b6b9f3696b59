// SPDX-License-Identifier: MIT
/// The program that copies page tables (bpf/vmem.bpf.c): loading it, running it, and why it cannot
/// be had.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bpf/skeleton.h"
#include "page_table.hpp"
#include "vmem/error.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// Why the kernel refused to load the program.
Error why_not_loaded(const SysRoot& root, int os_errno);

/// What stays the same until the next boot, and must be proven before any table is read by it.
struct DirectMap {
  std::uint64_t base = 0;  ///< kernel address of physical address 0
  page_table::Format format;
};

/// One run reads into one program's memory: a program serves one user at a time.
class BpfProgram {
 public:
  /// Errors: not_supported, permission, io; the hint says what stood in the way.
  static Result<std::unique_ptr<BpfProgram>> load(const SysRoot& root);
  BpfProgram(const BpfProgram&) = delete;
  BpfProgram& operator=(const BpfProgram&) = delete;
  ~BpfProgram();

  /// A link for the VMAs of a task or of all tasks of a process.
  Result<Fd> link(pid_t pid, vmem_filter filter) const;
  Result<Fd> iterate(const Fd& link) const;

  /// Tables are read from now on where `map` says, and in RAM only.
  void use(const DirectMap& map);
  const DirectMap& direct_map() const { return direct_map_; }

  /// One read() of the iterator, which answers for a part of `range` from its start. run() tells
  /// what it has found.
  Result<void> read(const Fd& iterator, VaRange range, bool continued);
  /// Kernel addresses of slab objects that belong to the iterator's task. No page table is read.
  Result<std::vector<std::uint64_t>> read_pointers(const Fd& iterator);
  /// The 64-bit variable of the kernel at `address`.
  Result<std::uint64_t> read_symbol(const Fd& iterator, std::uint64_t address);

  /// vm_ops of the VMA that covers `address`, and its functions (see vmem_mode_vm_ops); empty:
  /// there is no such VMA. No page table is read.
  Result<std::vector<std::uint64_t>> read_vm_ops(const Fd& iterator, VirtAddr address);

  /// One read() of the iterator for vmas(): those that end above `from`, as many as fit. They have
  /// a place of their own: what a run has brought stays, and run() with a KeptRun.
  Result<void> read_vmas(const Fd& iterator, VirtAddr from, bool continued);

  /// Puts run() back as it was.
  class KeptRun {
   public:
    explicit KeptRun(BpfProgram& program) : program_(program), run_(program.run()) {}
    KeptRun(const KeptRun&) = delete;
    KeptRun& operator=(const KeptRun&) = delete;
    ~KeptRun() { *program_.program_.run = run_; }

   private:
    BpfProgram& program_;
    const vmem_run run_;
  };

  const vmem_run& run() const { return *program_.run; }
  std::span<const vmem_record> records() const { return {program_.records, run().records}; }
  std::span<const vmem_cover> covers() const { return {program_.covers, run().covers}; }
  std::span<const vmem_vma> vmas() const { return {program_.vmas, run().vmas}; }
  std::span<const std::uint64_t> table(const vmem_record& record) const {
    return {program_.tables + std::size_t{record.slot} * VMEM_ENTRIES, VMEM_ENTRIES};
  }

  /// Ascending, not touching: System RAM of /proc/iomem.
  const std::vector<PaRange>& ram() const { return ram_; }
  /// Reads that list again, for memory may have been added since. Whether it is another one now.
  bool refresh_ram(const SysRoot& root);

  /// Its memory is shared with the process that loaded it: after a fork only one of the two may use
  /// it.
  bool ours() const;

 private:
  BpfProgram() = default;
  Result<void> read(const Fd& iterator);
  void use(std::vector<PaRange> ram);
  vmem_program program_{};
  std::vector<PaRange> ram_;
  DirectMap direct_map_;
  pid_t owner_ = 0;
};

}  // namespace vmem
