// SPDX-License-Identifier: MIT
/// Which kind of entry it is that names a frame and maps nothing. The kernel's swap types do not
/// tell: their numbers depend on its configuration (include/linux/swap.h). The frame does: a frame
/// lost to a memory error is marked so, and a device's memory is no System RAM.
#pragma once

#include <optional>
#include <utility>

#include "vmem/frames.hpp"
#include "vmem/pages.hpp"
#include "vmem/physmap.hpp"

namespace vmem {

class EntryKinds {
 public:
  /// Nothing is opened before the first entry that names a frame.
  explicit EntryKinds(SysRoot root) : root_(std::move(root)) {}

  /// Hands on `extent`, cut where its pages prove to be of different kinds, with the reason that is
  /// certain. What is no Reason::migration_or_device goes on as it is.
  void tell(const Extent& extent, ExtentSink sink);

 private:
  Reason kind_of(const Extent& extent, Pfn frame, const FrameFacts& facts);
  bool in_poisoned_hugetlb(Pfn frame, std::uint64_t flags);
  bool is_device_memory(Pfn frame);
  std::optional<std::uint64_t> flags_of(Pfn frame);
  FrameReader* frames();

  SysRoot root_;
  bool opened_ = false;
  std::optional<FrameReader> frames_;
  bool iomem_read_ = false;
  std::optional<Iomem> iomem_;
};

}  // namespace vmem
