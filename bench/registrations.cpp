// SPDX-License-Identifier: MIT
/// Audits of a recorded system, which is where nothing but the library and reading files costs:
/// 64 GiB registered at once, of hugetlb pages that lie anywhere; 100,000 registrations.
#include <benchmark/benchmark.h>

#include <fstream>
#include <string>
#include <vector>

#include "recorded_tree.hpp"
#include "vmem/registration.hpp"

namespace vmem::bench {
namespace {

constexpr std::uint64_t page = 4096, huge = std::uint64_t{2} << 20, gib = std::uint64_t{1} << 30;
constexpr std::uint64_t base = 0x7f0000000000;
constexpr std::uint64_t entry_present = 1ULL << 63, entry_file = 1ULL << 61,
                        entry_exclusive = 1ULL << 56;

std::string mapping(std::uint64_t bytes, const std::string& rest) {
  char line[64];
  std::snprintf(line, sizeof line, "%llx-%llx ", static_cast<unsigned long long>(base),
                static_cast<unsigned long long>(base + bytes));
  return line + rest;
}

/// A recorded process with one mapping of `bytes`; block i of `block` bytes lies at frame(i).
class Tree : public RecordedTree {
 public:
  template <class Frame>
  Tree(const std::string& maps_rest, const std::string& smaps_rest, std::uint64_t bytes,
       std::uint64_t block, std::uint64_t flags, Frame frame) {
    const std::string line = mapping(bytes, maps_rest);
    file("proc/1/maps") << line << "\n";
    file("proc/1/smaps") << line << "\n" << smaps_rest;
    file("proc/1/mountinfo")
        << "30 20 0:30 / /dev/hugepages rw - hugetlbfs hugetlbfs rw,pagesize=2M\n";
    file("proc/meminfo") << "HardwareCorrupted:     0 kB\n";
    file("proc/1/limits") << "Max locked memory  unlimited  unlimited  bytes\n";
    file("proc/1/status") << "VmPin:  0 kB\n";
    std::ofstream pagemap = file("proc/1/pagemap");
    pagemap.seekp(static_cast<std::streamoff>(base / page * 8));
    std::vector<std::uint64_t> entries(block / page);
    std::uint64_t last = 0;
    for (std::uint64_t i = 0; i < bytes / block; ++i) {
      const std::uint64_t first = frame(i);
      for (std::uint64_t j = 0; j < entries.size(); ++j)
        entries[j] =
            entry_present | entry_exclusive | (block == huge ? entry_file : 0) | (first + j);
      pagemap.write(reinterpret_cast<const char*>(entries.data()),
                    static_cast<std::streamsize>(block / page * 8));
      last = std::max(last, first + entries.size());
    }
    std::ofstream kpageflags = file("proc/kpageflags");
    const std::vector<std::uint64_t> some(512, flags);
    for (std::uint64_t at = 0; at < last; at += some.size())
      kpageflags.write(reinterpret_cast<const char*>(some.data()), 4096);
    pagemap.close();
    kpageflags.close();
    open();
  }
};

void judge(benchmark::State& state, const Tree& tree, const std::vector<Registration>& all) {
  const auto process = tree.root().process(1);
  if (!process) return state.SkipWithError("no recorded process");
  for (auto _ : state) {
    auto translator = open_translator(*process);
    if (!translator) return state.SkipWithError("no translator");
    AuditOptions options;
    options.walk.threads = 2;
    const auto audits = audit(*process, **translator, all, options);
    if (!audits) return state.SkipWithError(to_string(audits.error()).c_str());
    for (const Audit& a : *audits) {
      if (!a.complete || (a.worst() && *a.worst() != Severity::info))
        return state.SkipWithError("not clean");
    }
  }
  state.counters["registrations"] = static_cast<double>(all.size());
}

/// Neighbours in memory are swapped, so that no two pages of 2 MiB follow each other.
void one_large(benchmark::State& state) {
  const Tree tree{"rw-s 00000000 00:1e 77                     /dev/hugepages/map_0",
                  "KernelPageSize:     2048 kB\nVmFlags: rd wr sh mr mw me ms de ht \n",
                  64 * gib,
                  huge,
                  0x20000,
                  [](std::uint64_t i) { return (1 + (i ^ 1)) * (huge / page); }};
  judge(state, tree, {Registration{.range = {{base}, {base + 64 * gib}}}});
}
BENCHMARK(one_large)->Name("regaudit/64GiB-of-2MiB-pages")->Unit(benchmark::kMillisecond);

/// Buffers of 64 KiB, each in frames of its own.
void many_small(benchmark::State& state) {
  constexpr std::uint64_t bytes = 64 << 10, count = 100'000;
  const Tree tree{"rw-p 00000000 00:00 0 ",
                  "KernelPageSize:        4 kB\nVmFlags: rd wr mr mw me ac dc \n",
                  bytes * count,
                  bytes,
                  0x1000,
                  [](std::uint64_t i) { return (1 + (i ^ 1)) * (bytes / page); }};
  std::vector<Registration> all;
  for (std::uint64_t i = 0; i < count; ++i)
    all.push_back({.range = {{base + i * bytes}, {base + (i + 1) * bytes}}});
  judge(state, tree, all);
}
BENCHMARK(many_small)->Name("regaudit/100000-registrations")->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace vmem::bench
