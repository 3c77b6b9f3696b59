// SPDX-License-Identifier: MIT
/// What an audit asks of the machine and of a VMA, besides page tables and frame flags.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kmod/uapi/vmem.h"
#include "vmem/function_ref.hpp"
#include "vmem/maps.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// What every page of a VMA has in common.
struct VmaView {
  VaRange range;
  bool private_writable = false;
  bool flags_known = false;
  bool copied_at_fork =
      false;  ///< fork(2) shares its pages with the child until one of both writes
  bool mergeable = false;  ///< VM_MERGEABLE: nothing else is ever merged
  bool hugetlb = false;
  bool pfnmap = false;
  bool unlinked = false;
  const char* refused = nullptr;    ///< why get_user_pages() refuses, whatever the access
  const char* no_write = nullptr;   ///< why it refuses a device that writes
  bool shared = false;
  bool has_file = false;
  bool tracked_file = false;   ///< shared and writable, of a file system that tracks writes
  bool unknown_mount = false;  ///< a file of which mountinfo could not tell the file system
  bool device_memory = false;  ///< of no node's RAM: a driver's, or DAX
  std::optional<VirtAddr> file_end;  ///< the first page that the file does not reach
};
VmaView view_of(const Vma& vma, VmaInspector& inspector);

/// What this kernel does, of what changed over time and cannot be tried from outside. Empty: its
/// release does not tell, for vendors carry changes back.
struct PinRules {
  std::optional<bool> refuses_files;  ///< writable_file_mapping_allowed(), 6.5
  std::optional<bool> always_writes;  ///< ib_umem_get() writes by force even to read, until 6.2

  explicit PinRules(const std::string& release);
};

/// Half-open, in frames.
struct FrameRange {
  Pfn start, end;
};

/// Whether a fact of the machine could be read.
enum class Told : std::uint8_t {
  yes,
  nowhere,  ///< it was not recorded, or this kernel shows it to nobody
  failed,   ///< it is there and could not be read
};

/// Frames that a long-term pin makes the kernel migrate: ZONE_MOVABLE by /proc/zoneinfo and the
/// memory blocks' valid_zones (zones' spans may overlap), CMA by debugfs.
class PinZones {
 public:
  explicit PinZones(SysRoot root);

  Told movable_told() const { return movable_told_; }
  Told cma_told() const { return cma_told_; }
  /// The first run of frames within [first, end) in ZONE_MOVABLE.
  std::optional<FrameRange> movable(FrameRange frames) const;
  /// The same of a CMA area.
  std::optional<FrameRange> cma(FrameRange frames) const;

 private:
  bool block_is_movable(std::uint64_t block) const;
  void read_zones();
  void read_cma();
  SysRoot root_;
  Told movable_told_ = Told::yes, cma_told_ = Told::yes;
  std::vector<FrameRange> movable_, cma_;
  std::uint64_t block_frames_ = 0;  ///< of a memory block; 0: not known
};

/// Whether no frame of the machine is poisoned (HardwareCorrupted in /proc/meminfo).
bool nothing_poisoned(const SysRoot& root);

/// What the kernel module says of the frames from `first` on, into `frames`. Returns how many it
/// filled; 0: it refused.
using FrameQuestion = FunctionRef<std::uint64_t(Pfn first, std::span<vmem_frame> frames)>;

enum class PinAnswer : std::uint8_t {
  whole,    ///< each frame was told of
  partly,   ///< of some frames nothing is known
  refused,  ///< the module gave up
};

/// Calls `sink(first, frames)` for runs within [first, first + frames) that are not pinned.
/// The kernel counts pins for each compound page (folio), so one question answers for the rest of
/// the compound page that the asked frame lies in, and for nothing beyond it. `leaf` frames, a
/// power of two, make a page-table leaf: where that is more than 1, frames are asked one by one.
PinAnswer unpinned_frames(Pfn first, std::uint64_t frames, std::uint64_t leaf, FrameQuestion ask,
                          FunctionRef<void(Pfn, std::uint64_t)> sink);

/// Whether frames are pinned: only the module tells.
class PinReader {
 public:
  /// Not valid() where there is no /dev/vmem.
  explicit PinReader(const SysRoot& root);
  bool valid() const { return device_.valid(); }

  /// unpinned_frames() of this machine.
  PinAnswer unpinned(Pfn first, std::uint64_t frames, std::uint64_t leaf,
                     FunctionRef<void(Pfn, std::uint64_t)> sink) const;

 private:
  Fd device_;
};

}  // namespace vmem
