// SPDX-License-Identifier: MIT
/// The pagemap backend: one walk by one or two readers.
#include <algorithm>
#include <memory>

#include "backends.hpp"
#include "errors.hpp"
#include "extent_builder.hpp"
#include "pagemap_reader.hpp"
#include "shared_walk.hpp"

namespace vmem {
namespace {

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
      const double start = thread_seconds();
      const std::uint64_t chunk = reader.chunk_bytes();
      while (open && !options.stopped() && range.bytes() > 2 * reader.stride() &&
             thread_seconds() - start < alone) {
        const VirtAddr end{(range.start.value + reader.stride()) / chunk * chunk};
        if (end <= range.start) break;
        if (auto read = reader.read({range.start, end}, add); !read) return read;
        range.start = end;
      }
      if (open && range.bytes() > 2 * reader.stride()) {
        PagemapReader second{process_, fd_, options};
        const auto by = [](PagemapReader& r) {
          return [&r](VaRange part, ExtentSink sink) { return r.read(part, sink); };
        };
        const auto mine = by(reader);
        const auto other = by(second);
        // Few runs for a piece, since one reader leaves them in its cache for the other to fetch;
        // many pieces, so that hardly ever one of the two must sleep: waking up costs as much as a
        // piece. The smallest holds whole huge leaves, and no more runs than are held.
        constexpr std::size_t runs = 512;
        const std::uint64_t smallest =
            std::max(runs * process_.root().page_size().bytes(), reader.leaf_bytes());
        return walk_by_two(mine, other, range, options,
                           {.smallest = smallest,
                            .first = reader.dense() ? smallest : reader.stride(),
                            .runs = runs,
                            .ahead = 64},
                           add);
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
