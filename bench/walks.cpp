// SPDX-License-Identifier: MIT
/// All PFNs of a range, against the plain loop over the same range.
#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "pairing.hpp"
#include "plain.h"

namespace vmem::bench {
namespace {

/// Takes extents; comes to the same sums as the plain loop.
struct Sum {
  plain_sum sum{};
  PageSize page_size;
  std::uint64_t extents = 0;
  bool operator()(const Extent& e) {
    ++extents;
    const std::uint64_t pages = page_size.pages(e.bytes);
    if (e.state == PageState::resident) {
      sum.present += pages;
      // Of two factors of which one is even: halved before the product can overflow.
      const std::uint64_t gaps = pages % 2 == 0 ? pages / 2 * (pages - 1) : (pages - 1) / 2 * pages;
      sum.pfns += pages * e.pfn.value + gaps;
    } else if (e.state == PageState::swapped) {
      sum.swapped += pages;
    }
    return true;
  }
};

enum class How : std::uint8_t {
  walk,
  walk_two_threads,
  walk_bpf,
  walk_bpf_warm,  ///< some walks after the plain loop
  translate,
  translate_bpf
};
bool by_page_tables(How how) {
  return how == How::walk_bpf || how == How::walk_bpf_warm || how == How::translate_bpf;
}

void all_pfns(benchmark::State& state, const std::string& workload, How how) {
  Subject* const s = subject(state, workload);
  if (s == nullptr) return;
  const Fd plain_fd{open(s->path("pagemap").c_str(), O_RDONLY | O_CLOEXEC)};
  const Memory memory = s->target.memory();
  const VaRange range{{memory.start}, {memory.end}};
  const PageSize page_size = s->process.root().page_size();
  Sum ours{{}, page_size};
  plain_sum plain{};

  Translator* source = s->translator.get();
  std::unique_ptr<Translator> by_bpf;
  if (by_page_tables(how)) {
    auto opened = open_translator(s->process, Backend::bpf);
    if (!opened) return state.SkipWithError(to_string(opened.error()).c_str());
    by_bpf = std::move(*opened);
    source = by_bpf.get();
  }
  const auto library = [&]() -> std::string {
    ours = {{}, page_size};
    Result<void> result;
    if (how == How::translate || how == How::translate_bpf) {
      VmaInspector inspector{s->process};
      result = translate(s->process, *source, inspector, range, {},
                         [&](const Vma*, const Extent& e) { return ours(e); });
    } else {
      result = source->walk(range, {.threads = how == How::walk_two_threads ? 2U : 1U}, ours);
    }
    return result ? "" : to_string(result.error());
  };
  const auto loop = [&]() -> std::string {
    const int result =
        plain_pagemap(plain_fd.get(), memory.start, memory.end, page_size.bytes(), &plain);
    return result == 0 ? "" : std::string("plain loop: ") + std::strerror(errno);
  };
  measure(state, {.ours = library,
                  .plain = loop,
                  .agree = [&] { return std::memcmp(&ours.sum, &plain, sizeof plain) == 0; },
                  .warm_up = how == How::walk_bpf_warm ? 5 : 0});
  state.counters["pages"] = static_cast<double>(plain.present);
  state.counters["extents"] = static_cast<double>(ours.extents);
}

/// What a second thread brings on this machine, whoever reads: the plain loop in two halves.
void plain_in_halves(benchmark::State& state, const std::string& workload) {
  Subject* const s = subject(state, workload);
  if (s == nullptr) return;
  const Fd fd{open(s->path("pagemap").c_str(), O_RDONLY | O_CLOEXEC)};
  const Memory memory = s->target.memory();
  const PageSize page_size = s->process.root().page_size();
  const std::uint64_t middle =
      page_size.floor({memory.start + (memory.end - memory.start) / 2}).value;
  plain_sum low{};
  plain_sum high{};
  plain_sum whole{};
  const auto loop = [&](std::uint64_t start, std::uint64_t end, plain_sum& sum) {
    return plain_pagemap(fd.get(), start, end, page_size.bytes(), &sum) == 0;
  };
  const auto halves = [&]() -> std::string {
    bool good = false;
    {
      const std::jthread other{[&] { good = loop(memory.start, middle, low); }};
      if (!loop(middle, memory.end, high)) return "plain loop failed";
    }
    return good ? "" : "plain loop failed";
  };
  const auto one = [&]() -> std::string {
    return loop(memory.start, memory.end, whole) ? "" : "plain loop failed";
  };
  measure(state, {halves, one, [&] { return low.pfns + high.pfns == whole.pfns; }});
}

}  // namespace

void register_walks() {
  const auto add = [](const std::string& workload, const char* name, How how, int usual) {
    benchmark::RegisterBenchmark((workload + "/" + name).c_str(),
                                 [=](benchmark::State& state) { all_pfns(state, workload, how); })
        ->UseManualTime()
        ->Iterations(pairs(usual))
        ->Unit(benchmark::kMillisecond);
  };
  add("anon", "walk, 1 thread", How::walk, 15);
  add("anon", "walk, 2 threads", How::walk_two_threads, 15);
  benchmark::RegisterBenchmark("anon/plain loop, 2 threads",
                               [](benchmark::State& state) { plain_in_halves(state, "anon"); })
      ->UseManualTime()
      ->Iterations(pairs(15))
      ->Unit(benchmark::kMillisecond);
  add("anon", "translate", How::translate, 15);
  add("anon", "walk, bpf", How::walk_bpf, 15);
  add("anon", "walk, bpf, warm", How::walk_bpf_warm, 15);
  add("anon", "translate, bpf", How::translate_bpf, 15);
  add("thp", "walk", How::walk, 15);
  add("thp", "walk, bpf", How::walk_bpf, 15);
  add("shm", "walk, 1 thread", How::walk, 15);
  add("shm", "walk, 2 threads", How::walk_two_threads, 15);
  add("shm", "walk, bpf", How::walk_bpf, 15);
  add("hugetlb", "walk", How::walk, 15);
  add("hugetlb", "walk, bpf", How::walk_bpf, 15);
  add("file", "walk", How::walk, 15);
  add("file", "walk, bpf", How::walk_bpf, 15);
  // The plain loop takes seconds here, and the ratio is far from 1.
  add("sparse-worst", "walk", How::walk, 1);
  add("sparse-worst", "walk, bpf", How::walk_bpf, 1);
  add("sparse-clustered", "translate", How::translate, 1);
  add("sparse-clustered", "walk", How::walk, 1);
  add("sparse-clustered", "walk, bpf", How::walk_bpf, 1);
  add("sparse-untouched", "translate", How::translate, 1);
  add("sparse-untouched", "walk", How::walk, 1);
  add("sparse-untouched", "walk, bpf", How::walk_bpf, 1);
  add("vmas", "walk, neighbours merged", How::walk, 15);
  add("vmas", "walk, bpf", How::walk_bpf, 15);
  add("vmas", "translate", How::translate, 15);
  add("vmas", "translate, bpf", How::translate_bpf, 15);
}

}  // namespace vmem::bench
