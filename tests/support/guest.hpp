// SPDX-License-Identifier: MIT
/// A guest of scripts/vmtest: its modules, its devices, its physical memory, and what its kernel
/// itself says of mappings. Nothing here calls the library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace vmem::test {

/// What every test of tests/vm begins with: false, and the test skipped, outside a guest.
/// `if (!in_guest()) return;`
bool in_guest();

/// "fast", "pc", "pti", "iommu", "smp" or "lockdown": tests/vm/README.md.
std::string guest_machine();

/// "5.10", "6.1", "6.12" or "newest", as scripts/vmtest calls it.
std::string guest_kernel();

/// A kernel module, loaded until this goes.
class Module {
 public:
  /// 0 or an errno, as finit_module(2) says.
  static int load(const std::string& name, const std::string& parameters = "");
  /// 0 or an errno, as delete_module(2) says. Does not wait until it is unused.
  static int unload(const std::string& name);

  /// Fails the test if it cannot be loaded.
  explicit Module(std::string name, const std::string& parameters = "");
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

 private:
  std::string name_;
};

/// mmap() of a file, until this goes.
class MappedFile {
 public:
  MappedFile(const std::string& path, std::uint64_t offset, std::size_t bytes, int protection,
             int flags, int open_flags = 0);
  /// Read and write, shared, from the start; the descriptor stays the caller's.
  MappedFile(int fd, std::size_t bytes);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  /// 0, or what mmap() or open() failed with.
  int error() const { return error_; }
  std::uint64_t address() const { return reinterpret_cast<std::uintptr_t>(at_); }
  std::size_t bytes() const { return bytes_; }
  /// The word at `offset`. Empty where touching it faults.
  std::optional<std::uint64_t> word(std::size_t offset) const;
  void set_word(std::size_t offset, std::uint64_t value);

 private:
  char* at_ = nullptr;
  std::size_t bytes_ = 0;
  int error_ = 0;
};

/// Read and write, shared: how drivers' windows are mapped.
MappedFile map_device(const std::string& path, std::uint64_t offset, std::size_t bytes);

/// Consecutive frames of a window or a mapping; without `physical`: a hole.
struct Run {
  std::uint64_t offset = 0, bytes = 0;
  std::optional<std::uint64_t> physical;
  std::string cache;
  bool operator==(const Run&) const = default;
};
std::string describe(const std::vector<Run>& runs);

/// What /sys/kernel/debug/mem_mmap/N/truth says.
std::vector<Run> truth(int window);

/// The part that a mapping of `bytes` at `offset` shows, with offsets from its own start.
std::vector<Run> part(const std::vector<Run>& runs, std::uint64_t offset, std::uint64_t bytes);

/// The calls of remap_pfn_range() that make up `runs`: no holes, no attribute.
std::vector<Run> calls_of(const std::vector<Run>& runs);

/// Records every remap_pfn_range() by a kprobe: the frames and bytes that a driver asks for.
class RemapRecord {
 public:
  RemapRecord();
  ~RemapRecord();
  RemapRecord(const RemapRecord&) = delete;
  RemapRecord& operator=(const RemapRecord&) = delete;

  /// The calls since the last time, as runs in the order of the calls: `offset` counts up from 0
  /// and knows nothing of holes, `cache` is empty.
  std::vector<Run> take();
};

/// Ranges of /sys/kernel/debug/x86/pat_memtype_list that hold `physical`: the attributes that x86
/// kernels have reserved for it, in the names of truth().
std::vector<std::string> reserved_caches(std::uint64_t physical);

/// Physical memory through /dev/mem.
class PhysicalMemory {
 public:
  /// Fails the test where it cannot be mapped.
  PhysicalMemory(std::uint64_t physical, std::size_t bytes);
  /// Every page gets a word of its own: its address, and `salt`.
  void stamp(std::uint64_t salt);
  static std::uint64_t stamp_of(std::uint64_t physical, std::uint64_t salt);

 private:
  std::uint64_t physical_;
  MappedFile mapping_;
};

/// A line of maps that covers `address`, and its VmFlags.
std::string maps_line(std::uint64_t address);

/// The sysfs folder of the first PCI device with these identities; empty if there is none.
std::string pci_device(std::uint16_t vendor, std::uint16_t device);

/// A PCI device (its sysfs folder), given to a driver until this goes, whatever devices the
/// driver says it is for. `module` is loaded; it may have another name than its driver.
class BoundDevice {
 public:
  BoundDevice(const std::string& device, const std::string& driver, const std::string& module);
  ~BoundDevice();
  BoundDevice(const BoundDevice&) = delete;
  BoundDevice& operator=(const BoundDevice&) = delete;
  bool bound() const { return bound_; }

 private:
  std::string device_;
  bool bound_ = false;
};

/// A BAR as the device's `resource` file says: start and bytes.
std::optional<Run> pci_bar(const std::string& device, int bar);

}  // namespace vmem::test
