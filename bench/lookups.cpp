// SPDX-License-Identifier: MIT
/// Maps, single addresses, and frame facts.
#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "pairing.hpp"
#include "plain.h"
#include "vmem/frames.hpp"
#include "vmem/maps.hpp"

namespace vmem::bench {
namespace {

std::string text_of(const Error& error) { return to_string(error); }
Fd open_file(const std::string& path) { return Fd{open(path.c_str(), O_RDONLY | O_CLOEXEC)}; }

/// Reading and parsing all VMAs against reading the bytes.
void maps(benchmark::State& state, const std::string& workload) {
  Subject* const s = subject(state, workload);
  if (s == nullptr) return;
  const std::string path = s->path("maps");
  std::uint64_t vmas = 0;
  std::int64_t bytes = 0;
  const auto library = [&]() -> std::string {
    vmas = 0;
    auto reader = VmaReader::open(s->process);
    if (!reader) return text_of(reader.error());
    for (Vma vma;;) {
      auto more = reader->next(vma);
      if (!more) return text_of(more.error());
      if (!*more) return "";
      ++vmas;
    }
  };
  const auto raw = [&]() -> std::string {
    const Fd fd = open_file(path);
    bytes = plain_read_all(fd.get());
    return bytes > 0 ? "" : std::string("maps: ") + std::strerror(errno);
  };
  measure(state, {library, raw, [] { return true; }});
  state.counters["vmas"] = static_cast<double>(vmas);
}

/// The VMA of an address against the bytes of maps: the least that a reader of the text pays.
void one_vma(benchmark::State& state, const std::string& workload) {
  Subject* const s = subject(state, workload);
  if (s == nullptr) return;
  const std::string path = s->path("maps");
  const VirtAddr address{s->target.memory().end - 1};
  std::string error;
  const auto library = [&]() -> std::string {
    auto vma = find_vma(s->process, address);
    if (!vma) return text_of(vma.error());
    return *vma && (*vma)->range.contains(address) ? "" : "find_vma: a wrong answer";
  };
  const auto raw = [&]() -> std::string {
    const Fd fd = open_file(path);
    return plain_read_all(fd.get()) > 0 ? "" : std::string("maps: ") + std::strerror(errno);
  };
  measure(state, {library, raw, [] { return true; }});
}

/// One address with its VMA, against opening pagemap for one entry.
void one_address(benchmark::State& state, const std::string& workload) {
  Subject* const s = subject(state, workload);
  if (s == nullptr) return;
  constexpr std::uint64_t times = 100;
  const std::string path = s->path("pagemap");
  const PageSize page_size = s->process.root().page_size();
  const VirtAddr address{s->target.memory().end - 1};
  VmaInspector inspector{s->process};
  std::uint64_t ours = 0;
  std::uint64_t plain = 0;
  const auto library = [&]() -> std::string {
    for (std::uint64_t i = 0; i < times; ++i) {
      auto translation = translate(s->process, *s->translator, inspector, address);
      if (!translation) return text_of(translation.error());
      if (translation->extent.state != PageState::resident) return "translate: not resident";
      ours = translation->extent.pfn.value;
    }
    return "";
  };
  const auto entry = [&]() -> std::string {
    for (std::uint64_t i = 0; i < times; ++i) {
      plain = plain_lookup(path.c_str(), address.value, page_size.bytes()) &
              ((std::uint64_t{1} << 55) - 1);
    }
    return "";
  };
  measure(state, {library, entry, [&] { return ours == plain; }, times});
}

/// Frame facts by run, against one pread for each frame and file.
void frame_facts(benchmark::State& state, const std::string& workload) {
  Subject* const s = subject(state, workload);
  if (s == nullptr) return;
  constexpr std::uint64_t most = 1 << 18;
  const SysRoot& root = s->process.root();
  const Memory memory = s->target.memory();
  std::vector<Extent> runs;
  std::vector<std::uint64_t> pfns;
  auto walked = s->translator->walk({{memory.start}, {memory.end}}, {}, [&](const Extent& e) {
    if (e.state != PageState::resident) return true;
    runs.push_back(e);
    for (std::uint64_t i = 0; i < root.page_size().pages(e.bytes); ++i)
      pfns.push_back(e.pfn.value + i);
    return pfns.size() < most;
  });
  auto reader = FrameReader::open(root);
  if (!walked || !reader) {
    return state.SkipWithError(text_of(!walked ? walked.error() : reader.error()).c_str());
  }
  std::vector<Fd> files;
  std::vector<int> fds;
  std::vector<std::uint8_t> facts_of;
  const auto file = [&](const char* path, std::uint8_t fact) {
    Fd fd = open_file(path);
    if (!fd.valid()) return;
    fds.push_back(fd.get());
    facts_of.push_back(fact);
    files.push_back(std::move(fd));
  };
  file("/proc/kpagecount", FrameFacts::has_mapcount);
  file("/proc/kpageflags", FrameFacts::has_flags);
  file("/proc/kpagecgroup", FrameFacts::has_memcg);

  std::uint64_t mapcounts = 0;
  std::uint8_t known = 0;
  std::vector<std::uint64_t> sums(fds.size());
  const auto library = [&]() -> std::string {
    mapcounts = 0;
    for (const Extent& run : runs) {
      auto read = reader->read(run.pfn, root.page_size().pages(run.bytes),
                               [&](Pfn, std::uint64_t frames, const FrameFacts& facts) {
                                 mapcounts += facts.mapcount * frames;
                                 known = facts.known;
                                 return true;
                               });
      if (!read) return text_of(read.error());
    }
    return "";
  };
  const auto single = [&]() -> std::string {
    const int result = plain_frames(fds.data(), fds.size(), pfns.data(), pfns.size(), sums.data());
    return result == 0 ? "" : std::string("frame files: ") + std::strerror(errno);
  };
  // Flags change by themselves; who is mapped how often does not, in a target at rest.
  const auto agree = [&] {
    std::uint8_t all = 0;
    for (const std::uint8_t fact : facts_of) all |= fact;
    return known == all &&
           (facts_of.empty() || facts_of[0] != FrameFacts::has_mapcount || sums[0] == mapcounts);
  };
  measure(state, {library, single, agree, pfns.size()});
  state.counters["frames"] = static_cast<double>(pfns.size());
  state.counters["runs"] = static_cast<double>(runs.size());
}

}  // namespace

void register_lookups() {
  const auto add = [](const char* name, auto function, const std::string& workload, int usual,
                      benchmark::TimeUnit unit) {
    benchmark::RegisterBenchmark((workload + "/" + name).c_str(),
                                 [=](benchmark::State& state) { function(state, workload); })
        ->UseManualTime()
        ->Iterations(pairs(usual))
        ->Unit(unit);
  };
  add("maps, read and parsed", maps, "vmas", 25, benchmark::kMillisecond);
  add("find_vma", one_vma, "vmas", 25, benchmark::kMicrosecond);
  add("one address", one_address, "vmas", 25, benchmark::kMicrosecond);
  add("one address", one_address, "small", 25, benchmark::kMicrosecond);
  add("frame facts", frame_facts, "anon", 5, benchmark::kNanosecond);
}

}  // namespace vmem::bench
