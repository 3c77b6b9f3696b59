// SPDX-License-Identifier: MIT
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <ctime>
#include <mutex>
#include <optional>
#include <utility>

#include "vmem/sysroot.hpp"

namespace vmem {

/// Lets a running target have its mmap_lock now and then.
///
/// The kernel reads page tables with the target's mmap_lock held for reading, 2 MiB at a time. A
/// thread of the target that waits for it (mmap(), munmap(), page faults that make tables) is woken
/// at each release, but a reader that goes on at once has the lock again before that thread runs:
/// rwsem_down_write_slowpath() in kernel/locking/rwsem.c hands it over after 4 ms at the earliest
/// (RWSEM_WAIT_TIMEOUT), and one mmap() was seen to wait 16 to 33 ms. So readers of a target that
/// runs go one after the other, and every quarter of a millisecond they pause, unless they had left
/// the lock alone just before. Whether it runs tells its CPU clock: a target that sleeps waits for
/// nothing, and costs 0.2 us each quarter of a millisecond.
///
/// Of one process, and shared by all who read it. Thread-safe.
class TargetPace {
 public:
  explicit TargetPace(pid_t pid);

  /// Held during a call that keeps the lock for ten microseconds or more.
  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept
        : pace_(std::exchange(other.pace_, nullptr)), lock_(std::move(other.lock_)) {}
    Turn& operator=(Turn&&) = delete;
    ~Turn() { end(); }
    void end();

   private:
    friend class TargetPace;
    Turn(TargetPace& pace, std::unique_lock<std::mutex> lock)
        : pace_(&pace), lock_(std::move(lock)) {}
    TargetPace* pace_ = nullptr;
    std::unique_lock<std::mutex> lock_;  ///< not held while the target does not run
  };

  /// May pause, and wait for another reader's turn. Of a recorded process it does nothing.
  static Turn turn(const Process& process) {
    return process.pace_ ? process.pace_->turn() : Turn{};
  }

  /// As of the last turn.
  static bool runs(const Process& process) {
    return process.pace_ && process.pace_->runs_.load(std::memory_order_relaxed);
  }

 private:
  Turn turn();
  bool has_run();

  const std::optional<clockid_t> clock_;  ///< empty: nothing tells whether it runs
  std::mutex mutex_;
  // Nanoseconds of CLOCK_MONOTONIC.
  std::atomic<std::int64_t> look_at_{0};  ///< when to look again
  std::atomic<std::int64_t> left_at_{0};  ///< when the last turn ended
  std::atomic<bool> runs_{false};
  std::optional<std::int64_t> cpu_time_;  ///< at the last look, in nanoseconds
  unsigned looks_left_ = 0;  ///< for which it still counts as running
};

}  // namespace vmem
