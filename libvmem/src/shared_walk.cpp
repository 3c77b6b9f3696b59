// SPDX-License-Identifier: MIT
#include "shared_walk.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <system_error>
#include <thread>

#include "errors.hpp"

namespace vmem {
namespace {

/// The calling thread delivers; while the next piece is not ready it reads one itself. The kernel
/// takes mmap_lock shared, so two readers do run at once.
class SharedWalk {
 public:
  SharedWalk(RunReader mine, RunReader other, VaRange range, const WalkOptions& options,
             const Pieces& pieces)
      : mine_(mine), other_(other), range_(range), options_(options), pieces_(pieces) {}

  Result<void> run(ExtentSink sink) {
    const auto runs = std::make_unique_for_overwrite<Extent[]>(pieces_.ahead * pieces_.runs);
    for (std::size_t i = 0; i < pieces_.ahead; ++i) ring_[i].runs = runs.get() + i * pieces_.runs;
    std::jthread helper;
    try {
      helper = std::jthread([this] { help(); });
    } catch (const std::system_error&) {
      return mine_(range_, sink);  // no second thread to be had: alone, then
    }
    const Stopper stopper{*this};  // before the join, also if the sink throws
    return deliver(sink);
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Stopper {
    SharedWalk& walk;
    ~Stopper() {
      {
        const std::scoped_lock lock(walk.mutex_);
        walk.stop_ = true;
      }
      walk.changed_.notify_all();
    }
  };
  struct Slot {
    enum class State : std::uint8_t { free, reading, done } state = State::free;
    VaRange range;
    VirtAddr reached;  ///< short of range.end where the runs did not fit
    Extent* runs = nullptr;  ///< Pieces::runs of them
    std::size_t count = 0;
    bool quick = false;  ///< a larger piece will not leave one of the two idle at the end
    Result<void> result;
  };

  /// With the lock held: gives out the next piece, if a slot is free for it.
  Slot* claim() {
    Slot& slot = ring_[claimed_ % pieces_.ahead];
    if (range_.empty() || slot.state != Slot::State::free) return nullptr;
    VirtAddr end = range_.end;
    if (range_.bytes() > stride_)
      end = {(range_.start.value + stride_) / pieces_.smallest * pieces_.smallest};
    slot.range = {range_.start, end};
    range_.start = slot.range.end;
    slot.state = Slot::State::reading;
    ++claimed_;
    return &slot;
  }

  /// Never throws: one of the two threads has nobody to catch it.
  void fill(Slot& slot, RunReader read) const {
    const auto start = Clock::now();
    slot.reached = slot.range.end;
    slot.count = 0;
    try {
      slot.result = read(slot.range, [&](const Extent& run) {
        if (slot.count == pieces_.runs) {
          slot.reached = run.va;
          return false;
        }
        slot.runs[slot.count++] = run;
        return true;
      });
    } catch (const std::bad_alloc&) {
      slot.result = failed(ENOMEM, "reading pages", {});
    }
    slot.quick = Clock::now() - start < std::chrono::microseconds(100);
  }

  /// With the lock held: a piece has been read. Many runs in it mean small pieces; few mean that
  /// larger ones are cheap. What did not fit goes back, unless the next piece is given out: then it
  /// is left to who delivers, alone.
  void settle(Slot& slot) {
    slot.state = Slot::State::done;
    if (slot.reached != slot.range.end) {
      stride_ = std::clamp(slot.reached - slot.range.start, pieces_.smallest,
                           std::max(stride_, pieces_.smallest));
      if (&slot == &ring_[(claimed_ - 1) % pieces_.ahead])
        range_.start = slot.range.end = slot.reached;
    } else if (slot.quick && slot.count < pieces_.runs / 8) {
      stride_ = std::min(stride_ * 2, std::uint64_t{1} << 40);
    }
  }

  void help() {
    std::unique_lock lock(mutex_);
    while (!stop_) {
      Slot* slot = claim();
      if (slot == nullptr) {
        if (range_.empty()) return;
        changed_.wait(lock);
        continue;
      }
      lock.unlock();
      fill(*slot, other_);
      lock.lock();
      settle(*slot);
      changed_.notify_all();
    }
  }

  Result<void> deliver(ExtentSink sink) {
    std::unique_lock lock(mutex_);
    for (std::size_t next = 0; next < claimed_ || !range_.empty(); ++next) {
      if (options_.stopped()) return {};
      Slot& slot = ring_[next % pieces_.ahead];
      while (next >= claimed_ || slot.state != Slot::State::done) {
        Slot* const mine = claim();
        if (mine == nullptr) {
          changed_.wait(lock);
          continue;
        }
        lock.unlock();
        fill(*mine, mine_);
        lock.lock();
        settle(*mine);
      }
      lock.unlock();
      if (options_.stopped()) return {};  // the piece may be short
      for (const Extent& run : std::span(slot.runs, slot.count)) {
        if (!sink(run)) return {};
      }
      if (!slot.result) return std::move(slot.result);
      bool open = true;
      if (slot.reached != slot.range.end) {
        auto rest = mine_({slot.reached, slot.range.end},
                          [&](const Extent& run) { return open = sink(run); });
        if (!rest || !open) return rest;
      }
      lock.lock();
      slot.state = Slot::State::free;
      changed_.notify_all();
    }
    return {};
  }

  const RunReader mine_, other_;
  VaRange range_;  ///< not given out yet
  const WalkOptions& options_;
  const Pieces pieces_;
  std::uint64_t stride_ = pieces_.first;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::size_t claimed_ = 0;
  bool stop_ = false;
  const std::unique_ptr<Slot[]> ring_ = std::make_unique<Slot[]>(pieces_.ahead);
};

}  // namespace

Result<void> walk_by_two(RunReader mine, RunReader other, VaRange range, const WalkOptions& options,
                         const Pieces& pieces, ExtentSink sink) {
  return SharedWalk{mine, other, range, options, pieces}.run(sink);
}

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

}  // namespace vmem
