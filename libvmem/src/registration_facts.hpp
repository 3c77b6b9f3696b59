// SPDX-License-Identifier: MIT
/// What an audit asks of the machine besides page tables and frame flags.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "vmem/function_ref.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// Half-open, in frames.
struct FrameRange {
  Pfn start, end;
};

/// Frames that a long-term pin makes the kernel migrate: ZONE_MOVABLE by /proc/zoneinfo and the
/// memory blocks' valid_zones (zones' spans may overlap), CMA by debugfs.
class PinZones {
 public:
  explicit PinZones(const SysRoot& root);

  /// The first run of frames within [first, end) in ZONE_MOVABLE.
  std::optional<FrameRange> movable(FrameRange frames) const;
  /// The same of a CMA area.
  std::optional<FrameRange> cma(FrameRange frames) const;

 private:
  bool block_is_movable(std::uint64_t block) const;
  SysRoot root_;
  std::vector<FrameRange> movable_, cma_;
  std::uint64_t block_frames_ = 0;  ///< of a memory block; 0: not known
};

/// Whether no frame of the machine is poisoned (HardwareCorrupted in /proc/meminfo).
bool nothing_poisoned(const SysRoot& root);

/// Whether frames are pinned: only the module tells.
class PinReader {
 public:
  /// Not valid() where there is no /dev/vmem.
  explicit PinReader(const SysRoot& root);
  bool valid() const { return device_.valid(); }

  /// Calls `sink(first, frames)` for runs of frames within [first, first + frames) that are RAM
  /// and not pinned; one of every `stride` frames is asked. False: the device refused.
  bool unpinned(Pfn first, std::uint64_t frames, std::uint64_t stride,
                FunctionRef<void(Pfn, std::uint64_t)> sink) const;

 private:
  Fd device_;
};

}  // namespace vmem
