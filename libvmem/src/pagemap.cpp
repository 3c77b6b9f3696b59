// SPDX-License-Identifier: MIT
/// The pagemap backend: one walk by one or two readers.
#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <ctime>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <system_error>
#include <thread>

#include "backends.hpp"
#include "errors.hpp"
#include "extent_builder.hpp"
#include "pagemap_reader.hpp"
#include "target_pace.hpp"

namespace vmem {
namespace {

/// Two readers take turns at pieces of a range, which are delivered in order. The calling
/// thread delivers; while the next piece is not ready it reads one itself. The kernel takes
/// mmap_lock shared, so two preads do run at once.
class SharedWalk {
 public:
  SharedWalk(const Process& process, const Fd& fd, PagemapReader& reader,
             const WalkOptions& options, VaRange range)
      : process_(process), fd_(fd), reader_(reader), options_(options), range_(range) {}

  Result<void> run(ExtentSink sink) {
    const auto runs = std::make_unique_for_overwrite<Extent[]>(slots * capacity);
    for (std::size_t i = 0; i < slots; ++i) ring_[i].runs = runs.get() + i * capacity;
    std::jthread helper;
    try {
      helper = std::jthread([this] { help(); });
    } catch (const std::system_error&) {
      return reader_.read(range_, sink);  // no second thread to be had: alone, then
    }
    const Stopper stopper{*this};  // before the join, also if the sink throws
    return deliver(sink);
  }

 private:
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
  // Runs held for a piece: few, since one reader leaves them in its cache for the other to fetch.
  static constexpr std::size_t capacity = 512;
  // Many, so that hardly ever one of the two must sleep: waking up costs as much as a piece.
  static constexpr std::size_t slots = 64;

  struct Slot {
    enum class State : std::uint8_t { free, reading, done } state = State::free;
    VaRange range;
    VirtAddr reached;  ///< short of range.end where the runs did not fit
    Extent* runs = nullptr;  ///< `capacity` of them
    std::size_t count = 0;
    Result<void> result;
  };

  /// With the lock held: gives out the next piece, if a slot is free for it.
  Slot* claim() {
    Slot& slot = ring_[claimed_ % slots];
    if (range_.empty() || slot.state != Slot::State::free) return nullptr;
    VirtAddr end = range_.end;
    if (range_.bytes() > stride_) end = {(range_.start.value + stride_) / piece_ * piece_};
    slot.range = {range_.start, end};
    range_.start = slot.range.end;
    slot.state = Slot::State::reading;
    ++claimed_;
    return &slot;
  }

  /// Never throws: one of the two threads has nobody to catch it.
  static void fill(Slot& slot, PagemapReader& reader) {
    slot.reached = slot.range.end;
    slot.count = 0;
    try {
      slot.result = reader.read(slot.range, [&](const Extent& run) {
        if (slot.count == capacity) {
          slot.reached = run.va;
          return false;
        }
        slot.runs[slot.count++] = run;
        return true;
      });
    } catch (const std::bad_alloc&) {
      slot.result = failed(ENOMEM, "reading pagemap", {});
    }
  }

  /// With the lock held: a piece has been read. Many runs in it mean small pieces; few mean that
  /// larger ones are cheap. What did not fit goes back, unless the next piece is given out: then it
  /// is left to who delivers, alone.
  void settle(Slot& slot) {
    slot.state = Slot::State::done;
    if (slot.reached != slot.range.end) {
      stride_ = std::clamp(slot.reached - slot.range.start, piece_, std::max(stride_, piece_));
      if (&slot == &ring_[(claimed_ - 1) % slots]) range_.start = slot.range.end = slot.reached;
    } else if (slot.count < capacity / 8) {
      stride_ = std::min(stride_ * 2, std::uint64_t{1} << 40);
    }
  }

  void help() {
    PagemapReader reader{process_, fd_, options_};
    std::unique_lock lock(mutex_);
    while (!stop_) {
      Slot* slot = claim();
      if (slot == nullptr) {
        if (range_.empty()) return;
        changed_.wait(lock);
        continue;
      }
      lock.unlock();
      fill(*slot, reader);
      lock.lock();
      settle(*slot);
      changed_.notify_all();
    }
  }

  Result<void> deliver(ExtentSink sink) {
    std::unique_lock lock(mutex_);
    for (std::size_t next = 0; next < claimed_ || !range_.empty(); ++next) {
      if (options_.stopped()) return {};
      Slot& slot = ring_[next % slots];
      while (next >= claimed_ || slot.state != Slot::State::done) {
        Slot* const mine = claim();
        if (mine == nullptr) {
          changed_.wait(lock);
          continue;
        }
        lock.unlock();
        fill(*mine, reader_);
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
        auto rest = reader_.read({slot.reached, slot.range.end},
                                 [&](const Extent& run) { return open = sink(run); });
        if (!rest || !open) return rest;
      }
      lock.lock();
      slot.state = Slot::State::free;
      changed_.notify_all();
    }
    return {};
  }

  const Process& process_;
  const Fd& fd_;
  PagemapReader& reader_;
  const WalkOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  VaRange range_;  ///< not given out yet
  /// The smallest piece: whole huge leaves, and no more runs than a slot holds.
  const std::uint64_t piece_ =
      std::max(capacity * process_.root().page_size().bytes(), reader_.leaf_bytes());
  std::uint64_t stride_ = reader_.dense() ? piece_ : reader_.stride();
  std::size_t claimed_ = 0;
  bool stop_ = false;
  Slot ring_[slots];
};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

class PagemapTranslator final : public Translator {
 public:
  PagemapTranslator(const Process& process, Fd fd) : process_(process), fd_(std::move(fd)) {}

  Backend backend() const override { return Backend::pagemap; }
  std::uint8_t known_bits() const override { return 0xff; }
  bool sees_pfnmap() const override { return false; }

  Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) override {
    ExtentBuilder builder{process_.root().page_size(), sink};
    auto result = read(range, options, builder);
    builder.flush();  // what was read before a failure is right
    return result;
  }

 private:
  Result<void> read(VaRange range, const WalkOptions& options, ExtentBuilder& builder) {
    bool open = true;
    const auto add = [&](const Extent& run) { return open = builder.add(run); };
    PagemapReader reader{process_, fd_, options};
    if (options.threads > 1) {
      // A thread pays from some milliseconds of work on; how much there is shows only by
      // doing some of it.
      constexpr double alone = 2e-3;  // seconds of our own, not of whoever else is running
      const double start = cpu_seconds();
      const std::uint64_t chunk = reader.chunk_bytes();
      while (open && !options.stopped() && range.bytes() > 2 * reader.stride() &&
             cpu_seconds() - start < alone) {
        const VirtAddr end{(range.start.value + reader.stride()) / chunk * chunk};
        if (end <= range.start) break;
        if (auto read = reader.read({range.start, end}, add); !read) return read;
        range.start = end;
      }
      // Two readers of a target that runs would only wait for each other, and one that has the lock
      // and no CPU keeps the target waiting.
      if (open && range.bytes() > 2 * reader.stride() && !TargetPace::runs(process_)) {
        return SharedWalk{process_, fd_, reader, options, range}.run(add);
      }
    }
    return open ? reader.read(range, add) : Result<void>{};
  }

  const Process& process_;
  Fd fd_;
};

}  // namespace

Result<std::unique_ptr<Translator>> open_pagemap(const Process& process) {
  auto fd = process.open_file("pagemap");
  if (!fd) return std::unexpected(std::move(fd.error()));
  return std::make_unique<PagemapTranslator>(process, std::move(*fd));
}

}  // namespace vmem
