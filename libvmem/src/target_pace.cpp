// SPDX-License-Identifier: MIT
#include "target_pace.hpp"

namespace vmem {
namespace {

constexpr std::int64_t spell = 250'000;  ///< of reading, in nanoseconds
/// Long enough for a woken thread to start running, also on an idle CPU of a virtual machine.
constexpr std::int64_t pause = 50'000;

/// So many looks a target counts as running that has run: it may only wait for this CPU.
constexpr unsigned lasting_looks = 16;

std::optional<std::int64_t> time_of(clockid_t clock) {
  timespec now{};
  if (clock_gettime(clock, &now) != 0) return {};
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

std::int64_t now() { return time_of(CLOCK_MONOTONIC).value_or(0); }

std::optional<clockid_t> cpu_clock(pid_t pid) {
  clockid_t clock{};
  if (clock_getcpuclockid(pid, &clock) != 0) return {};
  return clock;
}

}  // namespace

TargetPace::TargetPace(pid_t pid)
    : clock_(cpu_clock(pid)), cpu_time_(clock_ ? time_of(*clock_) : std::nullopt) {}

/// Lately; true where nothing tells.
bool TargetPace::has_run() {
  const auto time = clock_ ? time_of(*clock_) : std::nullopt;
  if (!time || time != cpu_time_)
    looks_left_ = lasting_looks;
  else if (looks_left_ != 0)
    --looks_left_;
  cpu_time_ = time;
  return looks_left_ != 0;
}

TargetPace::Turn TargetPace::turn() {
  if (now() < look_at_.load(std::memory_order_relaxed)) {
    if (!runs_.load(std::memory_order_relaxed)) return {*this, {}};
    return {*this, std::unique_lock(mutex_)};
  }
  std::unique_lock lock(mutex_);
  // Another thread may have looked meanwhile.
  const std::int64_t time = now();
  if (time >= look_at_.load(std::memory_order_relaxed)) {
    const bool runs = has_run();
    runs_.store(runs, std::memory_order_relaxed);
    if (runs && time - left_at_.load(std::memory_order_relaxed) < pause) {
      const timespec rest{.tv_sec = 0, .tv_nsec = pause};
      (void)nanosleep(&rest, nullptr);
    }
    look_at_.store(now() + spell, std::memory_order_relaxed);
  }
  if (!runs_.load(std::memory_order_relaxed)) lock.unlock();
  return {*this, std::move(lock)};
}

void TargetPace::Turn::end() {
  if (pace_ == nullptr) return;
  pace_->left_at_.store(now(), std::memory_order_relaxed);
  pace_ = nullptr;
  if (lock_.owns_lock()) lock_.unlock();
}

}  // namespace vmem
