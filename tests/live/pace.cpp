// SPDX-License-Identifier: MIT
// A target that runs is given its mmap_lock back now and then; one that sleeps is not waited for.
#include <sys/mman.h>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "target_pace.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t pages = 1 << 15;

/// Maps `pages`, then maps and unmaps one page for ever.
Child busy_child(std::uint64_t& start) {
  void* const at = mmap(nullptr, pages * base_page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::runtime_error("mapping memory");
  start = reinterpret_cast<std::uint64_t>(at);
  Child child = fork_child([at](const std::function<void()>& ready) {
    madvise(at, pages * base_page, MADV_NOHUGEPAGE);
    for (std::uint64_t i = 0; i < pages; ++i) static_cast<volatile char*>(at)[i * base_page] = 1;
    ready();
    for (;;) {
      void* const page = mmap(nullptr, base_page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      munmap(page, base_page);
    }
  });
  munmap(at, pages * base_page);
  return child;
}

Process opened(pid_t pid) {
  const auto root = SysRoot::live();
  REQUIRE(root);
  auto process = root->process(pid);
  REQUIRE(process);
  return std::move(*process);
}

/// Takes turns until the target counts as (not) running; false if it does not come to that.
bool becomes(const Process& process, bool running) {
  for (const auto end = Clock::now() + std::chrono::seconds(30); Clock::now() < end;) {
    {
      const auto turn = TargetPace::turn(process);
    }
    if (TargetPace::runs(process) == running) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(300));
  }
  return false;
}

}  // namespace

TEST_CASE("whether a target runs is told by its CPU time") {
  std::uint64_t start = 0;
  const Child child = busy_child(start);
  const Process process = opened(child.pid());
  CHECK(becomes(process, true));
  REQUIRE(kill(child.pid(), SIGSTOP) == 0);
  CHECK(becomes(process, false));
  REQUIRE(kill(child.pid(), SIGCONT) == 0);
  CHECK(becomes(process, true));
}

TEST_CASE("a target that runs, is stopped and runs again is read whole, by one reader or two") {
  std::uint64_t start = 0;
  const Child child = busy_child(start);
  const Process process = opened(child.pid());
  const VaRange range{{start}, {start + pages * base_page}};
  const auto walked = [&](unsigned threads) {
    auto translator = open_translator(process, Backend::pagemap);
    REQUIRE(translator);
    std::uint64_t resident = 0, next = start;
    const auto sink = [&](const Extent& e) {
      if (e.state == PageState::resident || e.state == PageState::hidden) resident += e.bytes;
      CHECK(e.va.value == next);
      next = e.end().value;
      return true;
    };
    REQUIRE((*translator)->walk(range, {.threads = threads}, sink));
    CHECK(resident == pages * base_page);
    CHECK(next == range.end.value);
  };
  walked(1);
  walked(2);
  REQUIRE(kill(child.pid(), SIGSTOP) == 0);
  walked(2);
  REQUIRE(kill(child.pid(), SIGCONT) == 0);
  walked(2);
}
