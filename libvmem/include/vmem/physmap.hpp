// SPDX-License-Identifier: MIT
/// What lies at a physical address: /proc/iomem, NUMA nodes, PCI BARs, UIO maps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// One line of /proc/iomem. The kernel's bounds are inclusive; these are half-open.
struct IomemRegion {
  PaRange range;
  std::string name;
  unsigned depth = 0;  ///< nesting: 0 is outermost

  /// "System RAM", or what a driver has added to it: "System RAM (kmem)", "System RAM
  /// (virtio_mem)".
  VMEM_EXPORT bool is_ram() const;
};

class VMEM_EXPORT Iomem {
 public:
  /// Errors: not_found, permission where every address reads zero (without CAP_SYS_ADMIN
  /// the kernel prints zeros: that is unknown, not an empty machine), malformed.
  static Result<Iomem> read(const SysRoot& root);
  static Result<Iomem> parse(std::string_view text);

  /// In the order of the file: parents before children.
  const std::vector<IomemRegion>& regions() const { return regions_; }

  /// The innermost region that holds `address`; null if none does.
  const IomemRegion* find(PhysAddr address) const;

  /// The end of the run of equal answers that holds `address`.
  PhysAddr run_end(PhysAddr address) const;

 private:
  /// From here to the next piece find() has one answer: an index into regions_, or `none`.
  struct Piece {
    PhysAddr start;
    std::size_t region;
  };
  static constexpr std::size_t none = SIZE_MAX;
  std::vector<Piece>::const_iterator after(PhysAddr address) const;
  void cut();

  std::vector<IomemRegion> regions_;
  std::vector<Piece> pieces_;  ///< ascending
};

/// NUMA nodes of frames.
class VMEM_EXPORT NumaMap {
 public:
  /// From /sys/devices/system/node: its memory blocks; where there are none and one node
  /// only, the RAM of /proc/iomem (IomemRegion::is_ram). Errors: not_found where neither tells.
  static Result<NumaMap> read(const SysRoot& root);

  /// The node of the RAM at `address`; empty for what is not known to be RAM of a node.
  std::optional<unsigned> node(PhysAddr address) const;

  /// The end of the run of equal answers that holds `address`: node() is the same for
  /// every address in [address, run_end(address)).
  PhysAddr run_end(PhysAddr address) const;

 private:
  struct Span {
    PaRange range;
    unsigned node;
  };
  std::vector<Span> spans_;  ///< ascending, disjoint, neighbours of one node merged
};

/// A PCI base address register (or expansion ROM), from sysfs `resource`, line `index`.
struct PciBar {
  std::string device;  ///< "0000:03:00.0"
  unsigned index = 0;  ///< 0-5 BARs, 6 ROM, 7.. SR-IOV and bridge windows
  PaRange range;
  std::uint64_t flags = 0;  ///< IORESOURCE_* (include/linux/ioport.h)
  bool is_memory() const { return (flags & 0x200) != 0; }
  bool is_64_bit() const { return (flags & 0x100000) != 0; }  ///< the next line is its upper half
  /// An unassigned BAR has no flags, or keeps its size at address 0 with IORESOURCE_UNSET set.
  bool is_assigned() const { return flags != 0 && (flags & 0x20000000) == 0; }
};

/// Every line of one device, unassigned ones among them. Errors: not_found, malformed.
VMEM_EXPORT Result<std::vector<PciBar>> read_pci_device(const SysRoot& root,
                                                        const std::string& device);

/// Every assigned BAR of every device, by device and index. Unassigned ones are left out.
VMEM_EXPORT Result<std::vector<PciBar>> read_pci_bars(const SysRoot& root);

/// /sys/class/uio/uioN/maps/mapM
struct UioMap {
  unsigned device = 0;  ///< N of /dev/uioN
  unsigned index = 0;  ///< M
  std::string name;
  PaRange range;  ///< addr, addr + size
  std::uint64_t offset = 0;  ///< of the memory within the first page
};

VMEM_EXPORT Result<std::vector<UioMap>> read_uio_maps(const SysRoot& root);

/// Memory of a device whose driver publishes in sysfs where it lies.
struct PublishedMemory {
  std::string source;  ///< the folder in sysfs: "/sys/class/u-dma-buf/udmabuf0"
  std::vector<PaRange> ranges;  ///< in the order of the device's offsets
};

/// The memory of /dev/`name`, of which the driver says the address by that name: u-dma-buf (class
/// u-dma-buf or, in older ones, udmabuf) and uiomem by phys_addr and size, device DAX by resource
/// and size or by its mappings. Errors: not_found (no such device in these); else what stood in
/// the way of reading it; malformed.
VMEM_EXPORT Result<PublishedMemory> read_published_memory(const SysRoot& root,
                                                          std::string_view name);

/// Who has made a dma-buf, by the inode of its file: "system" (a DMA heap's name), "udmabuf", or
/// a driver's name. From /sys/kernel/dmabuf/buffers, else from debugfs (dma_buf/bufinfo). Errors:
/// not_found (neither names that buffer); permission, not_supported where neither can be read.
VMEM_EXPORT Result<std::string> read_dma_buf_exporter(const SysRoot& root, std::uint64_t inode);

}  // namespace vmem
