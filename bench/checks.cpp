// SPDX-License-Identifier: MIT
/// Judging mappings: what the sweep itself costs, on page tables of the benchmark's making, so that
/// nothing is read. A 1 TiB mapping of 2 MiB leaves, all in one run and each for itself; 10,000
/// checks of 1,000 mappings. And the 1 TiB of a recorded system, which is opened and read each
/// time.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "recorded_tree.hpp"
#include "vmem/window.hpp"

namespace vmem::bench {
namespace {

constexpr std::uint64_t page = 4096, huge = std::uint64_t{2} << 20, tib = std::uint64_t{1} << 40;
constexpr std::uint64_t base = tib;

/// Extents as they are.
class Extents : public Translator {
 public:
  std::vector<Extent> all;
  Backend backend() const override { return Backend::bpf; }
  std::uint8_t known_bits() const override { return 0; }
  bool sees_pfnmap() const override { return true; }
  Result<void> walk(VaRange range, const WalkOptions&, ExtentSink sink) override {
    for (const Extent& extent : all) {
      if (extent.end() > range.start && extent.va < range.end && !sink(extent)) break;
    }
    return {};
  }
};

/// A recorded system of one process with these mappings.
class Tree : public RecordedTree {
 public:
  explicit Tree(const std::string& maps) {
    file("proc/1/maps") << maps;
    open();
  }
};

void judge(benchmark::State& state, const Tree& tree, Extents& extents,
           const std::vector<Check>& checks, std::size_t checks_of_each) {
  const auto process = tree.root().process(1);
  const auto vmas = process ? read_vmas(*process) : std::unexpected(process.error());
  if (!vmas) return state.SkipWithError("no recorded process");
  std::vector<MappingCheck> all;
  for (std::size_t i = 0; i < vmas->size(); ++i) {
    for (std::size_t c = 0; c < checks_of_each; ++c)
      all.push_back({&checks[(i * checks_of_each + c) % checks.size()], &(*vmas)[i]});
  }
  for (auto _ : state) {
    VmaInspector inspector{*process};
    WindowSources sources{tree.root()};
    const auto results = check_mappings(*process, extents, inspector, sources, all, {});
    for (const CheckResult& result : results) {
      if (result.verdict != Verdict::pass) return state.SkipWithError("a check does not pass");
    }
  }
  state.counters["checks"] = static_cast<double>(all.size());
  state.counters["extents"] = static_cast<double>(extents.all.size());
}

Extent leaf(std::uint64_t va, std::uint64_t pa, std::uint64_t bytes) {
  Extent e{.va = {va}, .bytes = bytes, .state = PageState::resident};
  e.pfn = {pa / page};
  e.leaf_shift = 21;
  e.pte = static_cast<std::uint16_t>(pte_bit::known | pte_bit::cache(CacheAttribute::uc_minus));
  return e;
}

Check window_check(std::uint64_t start, std::uint64_t bytes) {
  Check check;
  check.window = Window::literal({{start}, {start + bytes}}, PageSize{page});
  check.leaf = PageSize{huge};
  check.cache = *cache_set("uc");
  return check;
}

const std::string tib_maps =
    "100000000000-110000000000 rw-s 00000000 00:05 10                     /dev/big\n";
constexpr std::uint64_t tib_va = 0x100000000000;

void one_run(benchmark::State& state) {
  const Tree tree{tib_maps};
  Extents extents;
  extents.all.push_back(leaf(tib_va, base, tib));
  judge(state, tree, extents, {window_check(base, tib)}, 1);
}
BENCHMARK(one_run)->Name("mapcheck/1TiB-one-run")->Unit(benchmark::kMillisecond);

void each_leaf(benchmark::State& state) {
  const Tree tree{tib_maps};
  Extents extents;
  // Neighbours in memory are swapped, so that no two leaves follow each other.
  for (std::uint64_t i = 0; i < tib / huge; ++i)
    extents.all.push_back(leaf(tib_va + i * huge, base + (i ^ 1) * huge, huge));
  Check check = window_check(base, tib);
  check.scatter = true;
  judge(state, tree, extents, {check}, 1);
}
BENCHMARK(each_leaf)->Name("mapcheck/1TiB-each-leaf")->Unit(benchmark::kMillisecond);

/// The tree is opened, parsed and judged.
void recorded(benchmark::State& state, std::uint64_t apart, bool scatter) {
  Tree tree{tib_maps};
  {
    auto file = tree.file("proc/1/extents");
    file << "vmem-extents 1 kmod\n" << std::hex;
    const std::uint64_t step = apart != 0 ? huge : tib;
    for (std::uint64_t i = 0; i < tib / step; ++i) {
      file << tib_va + i * step << " 0x" << step / page << " pfn=0x"
           << (base + (i ^ apart) * step) / page << " leaf=2097152 cache=uc-\n";
    }
    file << "end\n";
  }
  Check check = window_check(base, tib);
  check.scatter = scatter;
  for (auto _ : state) {
    const auto process = tree.root().process(1);
    const auto vmas = process ? read_vmas(*process) : std::unexpected(process.error());
    if (!vmas) return state.SkipWithError("no recorded process");
    const auto translator = open_translator(*process);
    if (!translator) return state.SkipWithError("no recorded extents");
    const std::vector<MappingCheck> asked{{&check, &vmas->front()}};
    VmaInspector inspector{*process};
    WindowSources sources{tree.root()};
    const auto results = check_mappings(*process, **translator, inspector, sources, asked, {});
    if (results.size() != 1 || results.front().verdict != Verdict::pass)
      return state.SkipWithError("a check does not pass");
  }
}
void recorded_window(benchmark::State& state) { recorded(state, 0, false); }
void recorded_leaves(benchmark::State& state) { recorded(state, 1, true); }
BENCHMARK(recorded_window)->Name("mapcheck/1TiB-recorded")->Unit(benchmark::kMillisecond);
BENCHMARK(recorded_leaves)->Name("mapcheck/1TiB-recorded-scatter")->Unit(benchmark::kMillisecond);

void many_checks(benchmark::State& state) {
  std::string maps;
  Extents extents;
  std::vector<Check> checks;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const std::uint64_t va = tib_va + i * 2 * huge;
    char line[128];
    std::snprintf(line, sizeof line, "%llx-%llx rw-s 00000000 00:05 10  /dev/window%llu\n",
                  static_cast<unsigned long long>(va), static_cast<unsigned long long>(va + huge),
                  static_cast<unsigned long long>(i));
    maps += line;
    extents.all.push_back(leaf(va, base + i * huge, huge));
    for (int c = 0; c < 10; ++c) checks.push_back(window_check(base + i * huge, huge));
  }
  const Tree tree{maps};
  judge(state, tree, extents, checks, 10);
}
BENCHMARK(many_checks)->Name("mapcheck/10000-checks")->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace vmem::bench
