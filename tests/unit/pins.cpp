// SPDX-License-Identifier: MIT
// Which frames are told to be unpinned, by what a module says that answers for compound pages.
#include <map>
#include <utility>
#include <vector>

#include "registration_facts.hpp"
#include "support/catch.hpp"

using namespace vmem;

namespace {

constexpr std::uint64_t leaf = 512;

/// A machine of compound pages: first frame to (order, pinned). What is in none is a page of its
/// own, not pinned.
struct Machine {
  std::map<std::uint64_t, std::pair<unsigned, bool>> compounds;
  std::map<std::uint64_t, std::uint32_t> flags = {};  ///< of frames that differ
  std::uint64_t refuse_at = UINT64_MAX;
  std::uint64_t questions = 0;

  vmem_frame frame(std::uint64_t pfn) const {
    vmem_frame f{.flags = VMEM_FRAME_ONLINE, .refcount = 1, .mapcount = 1, .order = 0};
    const auto after = compounds.upper_bound(pfn);
    if (after != compounds.begin()) {
      const auto& [first, what] = *std::prev(after);
      if (pfn - first < std::uint64_t{1} << what.first) {
        f.order = what.first;
        if (what.second) f.flags |= VMEM_FRAME_MAYBE_PINNED;
      }
    }
    if (const auto own = flags.find(pfn); own != flags.end()) f.flags = own->second;
    return f;
  }

  using Runs = std::vector<std::pair<std::uint64_t, std::uint64_t>>;
  Runs unpinned(std::uint64_t first, std::uint64_t frames, std::uint64_t of,
                PinAnswer expected = PinAnswer::whole) {
    Runs runs;
    const auto ask = [&](Pfn from, std::span<vmem_frame> answers) -> std::uint64_t {
      ++questions;
      if (from.value >= refuse_at) return 0;
      for (std::size_t i = 0; i < answers.size(); ++i) answers[i] = frame(from.value + i);
      return answers.size();
    };
    const PinAnswer answer =
        unpinned_frames({first}, frames, of, ask, [&](Pfn at, std::uint64_t count) {
          if (!runs.empty() && runs.back().first + runs.back().second == at.value)
            runs.back().second += count;
          else
            runs.emplace_back(at.value, count);
        });
    CHECK(answer == expected);
    return runs;
  }
};
using Runs = Machine::Runs;

}  // namespace

TEST_CASE("pins: a range that begins inside a huge page asks each page, and answers for it alone") {
  Machine machine{.compounds = {{1024, {9, true}}, {1536, {9, false}}, {2048, {9, true}}}};
  CHECK(machine.unpinned(1024, 3 * leaf, leaf) == Runs{{1536, leaf}});
  CHECK(machine.questions == 3);
  CHECK(machine.unpinned(1024 + 100, 2 * leaf, leaf) == Runs{{1536, leaf}});
  CHECK(machine.unpinned(1536 + 300, leaf, leaf) == Runs{{1536 + 300, leaf - 300}});
  // The last page's first half only.
  CHECK(machine.unpinned(1024 + 511, 2, leaf) == Runs{{1536, 1}});
  CHECK(machine.unpinned(1536 + 511, 2, leaf) == Runs{{1536 + 511, 1}});
}

TEST_CASE("pins: of a leaf that was split meanwhile, each page is asked for itself") {
  Machine machine{.compounds = {{1026, {0, true}}, {1028, {2, true}}, {1536, {9, true}}}};
  CHECK(machine.unpinned(1024, 2 * leaf, leaf) == Runs{{1024, 2}, {1027, 1}, {1032, leaf - 8}});
  // A leaf larger than the compound page: no answer goes beyond what was asked.
  Machine halves{.compounds = {{1024, {8, false}}, {1280, {8, true}}}};
  CHECK(halves.unpinned(1024, leaf, leaf) == Runs{{1024, 256}});
}

TEST_CASE("pins: small mappings of compound pages and of single pages") {
  Machine machine{.compounds = {{16, {4, true}}, {32, {4, false}}, {50, {0, true}}}};
  CHECK(machine.unpinned(20, 40, 1) == Runs{{32, 18}, {51, 9}});
  Machine many{.compounds = {{4096, {9, true}}}};
  CHECK(many.unpinned(0, 8192, 1) == Runs{{0, 4096}, {4608, 8192 - 4608}});
}

TEST_CASE("pins: a frame of which nothing is known is neither pinned nor unpinned") {
  Machine machine{.compounds = {{512, {9, true}}},
                  .flags = {{1, 0}, {3, VMEM_FRAME_ONLINE | VMEM_FRAME_CHANGING}}};
  CHECK(machine.unpinned(0, 5, 1, PinAnswer::partly) == Runs{{0, 1}, {2, 1}, {4, 1}});
  machine.flags = {{512, 0}};
  CHECK(machine.unpinned(512, leaf, leaf, PinAnswer::partly).empty());
  machine.flags.clear();
  machine.refuse_at = 600;
  CHECK(machine.unpinned(0, 1200, 1, PinAnswer::refused) == Runs{{0, 512}});
}
