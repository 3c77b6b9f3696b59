// SPDX-License-Identifier: MIT
/// The fast path against the naive twin, on random recorded systems.
#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/naive_twin.hpp"
#include "support/random_system.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t page_sizes[] = {4096, 16384, 65536};
constexpr WalkOptions ways[] = {{1, false}, {2, false}, {1, true}, {2, true}};

/// The part of the address space that the recorded pagemap covers.
VaRange covered(const TwinProcess& process) {
  VaRange all{{0}, {0}};
  for (const TwinVma& vma : process.vmas) {
    if (vma.sight == TwinVma::Sight::gate) continue;
    if (all.empty()) all.start = {vma.start};
    all.end = {vma.end};
  }
  return all;
}

VaRange random_range(std::mt19937_64& random, const TwinProcess& process) {
  const VaRange all = covered(process);
  const auto point = [&]() -> std::uint64_t {
    const TwinVma& vma = process.vmas[random() % process.vmas.size()];
    // Borders and what lies next to them, else anywhere in a VMA, else anywhere.
    switch (random() % 4) {
      case 0:
        return (random() % 2 != 0 ? vma.start : vma.end) + random() % 3 - 1;
      case 1:
        return vma.start + random() % (vma.end - vma.start);
      case 2:
        return random() % (all.bytes() + process.page_size * 4) + all.start.value;
      default:
        return random() % 50 * process.page_size;
    }
  };
  std::uint64_t a = point(), b = point();
  if (a > b) std::swap(a, b);
  return {{a}, {a == b ? b + 1 : b}};
}

class Subject {
 public:
  explicit Subject(const RandomSystem& made)
      : tree_(made.system),
        process_(tree_.process(1)),
        twin_(tree_.directory().path(), made.twin),
        inspector_(process_) {
    auto opened = open_translator(process_, Backend::pagemap);
    if (!opened) FAIL(to_string(opened.error()));
    translator_ = std::move(*opened);
  }

  std::string check_walk(VaRange range, const WalkOptions& options) {
    std::vector<Extent> extents;
    const auto result = translator_->walk(range, options, [&](const Extent& extent) {
      extents.push_back(extent);
      return true;
    });
    return result ? twin_.check_walk(range, extents) : to_string(result.error());
  }

  std::string check_translate(VaRange range, const WalkOptions& options) {
    return twin_.check_translate(range, translate_range(process_, range, options));
  }

  std::string check_all(const WalkOptions& options) {
    return twin_.check_translate({{0}, {~std::uint64_t{0}}}, translate_whole(process_, options),
                                 false);
  }

  std::string check_one(VirtAddr address) {
    const auto one = translate(process_, *translator_, inspector_, address);
    return one ? twin_.check_one(address, *one) : to_string(one.error());
  }

 private:
  Recorded tree_;
  Process process_;
  NaiveTwin twin_;
  VmaInspector inspector_;
  std::unique_ptr<Translator> translator_;
};

void check_everything(std::mt19937_64& random, const RandomSystem& made, int ranges) {
  Subject subject(made);
  for (const WalkOptions& way : ways) {
    CAPTURE(way.threads, way.every_page);
    CHECK(subject.check_all(way) == "");
    if (made.twin.vmas.empty()) continue;
    const VaRange all = covered(made.twin);
    if (!all.empty()) CHECK(subject.check_walk(all, way) == "");
    for (int i = 0; i < ranges; ++i) {
      const VaRange range = random_range(random, made.twin);
      CAPTURE(range.start.value, range.end.value);
      CHECK(subject.check_translate(range, way) == "");
    }
  }
  if (made.twin.vmas.empty()) return;
  for (int i = 0; i < ranges * 3; ++i) {
    const VirtAddr address = random_range(random, made.twin).start;
    CAPTURE(address.value);
    CHECK(subject.check_one(address) == "");
  }
}

}  // namespace

TEST_CASE("thousands of small random systems") {
  for (std::uint64_t seed = 1; seed <= 3000; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    RandomOptions options;
    options.page_size = page_sizes[seed % 3];
    options.vmas = 1 + random() % 12;
    options.pages_per_vma = seed % 10 == 0 ? 3000 : 200;
    if (seed % 100 == 0) options.largest_gap = 1 << 20;
    check_everything(random, random_system(random, options), 4);
  }
}

TEST_CASE("random systems larger than every buffer") {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed * 1000);
    RandomOptions options;
    options.page_size = page_sizes[seed % 3];
    options.vmas = 4;
    options.pages_per_vma = 60'000;
    options.pages_per_run = seed % 2 != 0 ? 3 : 20'000;
    check_everything(random, random_system(random, options), 2);
  }
}

TEST_CASE("random systems so long that a second thread takes part") {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed * 77);
    RandomOptions options;
    options.vmas = 1;
    options.pages_per_vma = 1;
    options.pages_per_run = seed == 1 ? 2 : 300;
    RandomSystem made;
    // One VMA of two million pages, its entries those of many small systems in a row.
    made.system.manifest = "vmem-tree 1\npage_size 4096\npfn_access full\n";
    constexpr std::uint64_t start = 0x7f0000000000, pages = 2'000'000;
    made.twin.vmas.push_back({start, start + pages * 4096, TwinVma::Sight::ordinary});
    ProcessModel process;
    process.pid = 1;
    process.maps = "7f0000000000-7f01e8480000 rw-p 00000000 00:00 0 \n";
    for (std::uint64_t at = 0; at < pages;) {
      EntryRun run{.va = start + at * 4096,
                   .pages = 1 + random() % options.pages_per_run,
                   .first = entry::present | (random() >> 30),
                   .step = 1};
      run.pages = std::min(run.pages, pages - at);
      at += run.pages + random() % 3;
      process.entries.push_back(run);
    }
    made.system.processes.push_back(std::move(process));
    Subject subject(made);
    for (const WalkOptions& way : ways) {
      CAPTURE(way.threads);
      CHECK(subject.check_all(way) == "");
      CHECK(subject.check_walk({{start + 4096 * 7}, {start + (pages - 3) * 4096}}, way) == "");
    }
  }
}

TEST_CASE("the fixtures of the real machines, against the twin") {
  const std::pair<const char*, int> fixtures[] = {
      {"x86-64", 1042}, {"swapped", 77}, {"hidden", 300}};
  for (const auto& [name, pid] : fixtures) {
    CAPTURE(name);
    const Recorded tree{std::string(name)};
    const Process process = tree.process(pid);
    TwinProcess known{
        .pid = pid, .page_size = 4096, .proven = std::string(name) != "hidden", .vmas = {}};
    const auto vmas = read_vmas(process);
    REQUIRE(vmas);
    for (const Vma& vma : *vmas) {
      const bool blind = vma.path.starts_with("[vvar");
      known.vmas.push_back({vma.range.start.value, vma.range.end.value,
                            vma.path == "[vsyscall]" ? TwinVma::Sight::gate
                            : blind                  ? TwinVma::Sight::pfnmap
                                                     : TwinVma::Sight::ordinary});
    }
    NaiveTwin twin(tree.directory().path(), known);
    for (const WalkOptions& way : ways)
      CHECK(twin.check_translate({{0}, {~std::uint64_t{0}}}, translate_whole(process, way),
                                 false) == "");
  }
}
