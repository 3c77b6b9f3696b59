// SPDX-License-Identifier: MIT
// Processes that end, replace their address space, or remap while they are read. Whatever the
// moment, an answer is one of the truths, `changed`, or an error that says what became of it.
#include <linux/perf_event.h>
#include <sys/syscall.h>

#include <atomic>

#include "live/children.hpp"
#include "live/oracle.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// Large enough that a walk of it is still under way when it is disturbed.
constexpr std::uint64_t large_pages = std::uint64_t{1} << 28;

/// Where the children map. Reserved here and kept, so that nothing else is there in a child,
/// whatever a sanitizer does with addresses.
const std::uint64_t place = [] {
  void* const at = mmap(nullptr, large_pages * base_page, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::runtime_error("reserving addresses");
  return reinterpret_cast<std::uint64_t>(at);
}();

/// In a child: gives the reservation back, to begin with nothing.
void clear_place() { munmap(reinterpret_cast<void*>(place), large_pages * base_page); }

char* map_at(std::uint64_t at, std::uint64_t pages, int prot = PROT_READ | PROT_WRITE) {
  void* const got = mmap(reinterpret_cast<void*>(at), pages * base_page, prot,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (got == MAP_FAILED) _exit(1);
  return static_cast<char*>(got);
}

/// Walks `range` until something ends it; every extent goes to `check`.
Result<void> walk_all(const Process& process, VaRange range, unsigned threads,
                      const std::function<void(const Vma*, const Extent&)>& check) {
  auto translator = open_translator(process, Backend::pagemap);
  if (!translator) return std::unexpected(translator.error());
  VmaInspector inspector(process);
  return translate(process, **translator, inspector, range, {.threads = threads},
                   [&](const Vma* vma, const Extent& e) {
                     check(vma, e);
                     return true;
                   });
}

bool ended(const Error& e) {
  return e.code == Errc::process_changed || e.code == Errc::no_process ||
         e.code == Errc::no_user_memory;
}

/// One page written every 64: nothing for PAGEMAP_SCAN to skip, so reading takes long.
Child sparse_child(std::uint64_t pages) {
  return fork_child([pages](const std::function<void()>& ready) {
    clear_place();
    char* const at = map_at(place, pages);
    (void)madvise(at, pages * base_page, MADV_NOHUGEPAGE);
    for (std::uint64_t i = 0; i < pages; i += 64) at[i * base_page] = 1;
    ready();
    wait_for_ever();
  });
}

/// What was told of a sparse child before it went away is right: page 0 of every 64 is in
/// memory, the others are not.
bool is_sparse(const Extent& e) {
  const std::uint64_t first = (e.va.value - place) / base_page;
  if (e.state == PageState::resident || e.state == PageState::hidden) {
    return first % 64 == 0 && e.bytes == base_page;
  }
  return e.state == PageState::absent && first % 64 == 1 && e.bytes == 63 * base_page;
}

}  // namespace

TEST_CASE("above the last user address nothing is mapped, and no process has ended") {
  Child child = sparse_child(1);
  const Process process = process_of(child.pid());
  const auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  constexpr std::uint64_t last = std::uint64_t{1} << 57;  // with 5 levels, of the kernel's half too
  for (const unsigned threads : {1U, 2U}) {
    for (const std::uint64_t start : {place, last / 2, last - base_page}) {
      std::uint64_t at = start, resident = 0;
      REQUIRE((*translator)->walk({{start}, {last}}, {.threads = threads}, [&](const Extent& e) {
        CHECK(e.va.value == at);
        at = e.end().value;
        resident += e.state == PageState::resident ? 1 : 0;
        return true;
      }));
      CHECK(at == last);
      CHECK((resident != 0) == (start == place));
    }
  }
  child.end();
  const auto gone =
      (*translator)->walk({{last - base_page}, {last}}, {}, [](const Extent&) { return true; });
  REQUIRE_FALSE(gone);
  CHECK(gone.error().code == Errc::process_changed);
}

TEST_CASE("a process that ends during a walk is an error, and what came before is right") {
  for (const unsigned threads : {1U, 2U}) {
    for (const unsigned stop_after : {0U, 1U, 100U, 20'000U}) {
      INFO("threads " << threads << ", killed after extent " << stop_after);
      Child child = sparse_child(1 << 21);
      const Process process = process_of(child.pid());
      const VaRange range{{place}, {place + (std::uint64_t{1} << 21) * base_page}};
      unsigned extents = 0;
      bool right = true;
      std::string wrong;
      const auto end_child = [&] {
        kill(child.pid(), SIGKILL);
        (void)waitpid(child.pid(), nullptr, WNOWAIT | WEXITED);
        siginfo_t info{};
        (void)waitid(P_PID, static_cast<id_t>(child.pid()), &info, WEXITED | WNOWAIT);
      };
      if (stop_after == 0) end_child();
      std::uint64_t at = place;
      const auto result = walk_all(process, range, threads, [&](const Vma*, const Extent& e) {
        const bool good = e.va.value == at && (is_sparse(e) || e.state == PageState::changed);
        if (right && !good) wrong = "expected at " + hex(at) + ", got " + describe(e);
        right = right && good;
        at = e.end().value;
        if (++extents == stop_after) end_child();
      });
      INFO(wrong << " after " << extents << " extents");
      CHECK(right);
      REQUIRE_FALSE(result);
      INFO(to_string(result.error()));
      CHECK(ended(result.error()));
      CHECK(at < range.end.value);
      CHECK_FALSE(process.check_alive());
    }
  }
}

TEST_CASE("a process that replaces itself by exec is an error") {
  for (const unsigned threads : {1U, 2U}) {
    for (const unsigned stop_after : {0U, 1U, 20'000U}) {
      INFO("threads " << threads << ", exec after extent " << stop_after);
      constexpr std::uint64_t pages = 1 << 21;
      const Child child = fork_child([](const std::function<void()>& ready) {
        clear_place();
        char* const at = map_at(place, pages);
        (void)madvise(at, pages * base_page, MADV_NOHUGEPAGE);
        for (std::uint64_t i = 0; i < pages; i += 64) at[i * base_page] = 1;
        sigset_t usr1;
        sigemptyset(&usr1);
        sigaddset(&usr1, SIGUSR1);
        sigprocmask(SIG_BLOCK, &usr1, nullptr);
        ready();
        int number = 0;
        sigwait(&usr1, &number);
        execl("/bin/sleep", "sleep", "600", nullptr);
        _exit(1);
      });
      const Process process = process_of(child.pid());
      auto translator = open_translator(process, Backend::pagemap);
      REQUIRE(translator);
      VmaInspector inspector(process);
      const auto exec_child = [&] {
        kill(child.pid(), SIGUSR1);
        while (first_line("/proc/" + std::to_string(child.pid()) + "/comm") != "sleep") {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
      };
      if (stop_after == 0) exec_child();
      unsigned extents = 0;
      bool right = true;
      const auto result = translate(
          process, **translator, inspector, {{place}, {place + pages * base_page}},
          {.threads = threads}, [&](const Vma* vma, const Extent& e) {
            right = right && vma != nullptr && (is_sparse(e) || e.state == PageState::changed);
            if (++extents == stop_after) exec_child();
            return true;
          });
      CHECK(right);
      REQUIRE_FALSE(result);
      INFO(to_string(result.error()));
      CHECK(result.error().code == Errc::process_changed);
    }
  }
}

TEST_CASE("a mapping that alternates between two states is told as one of them, or as changed") {
  // One state: writable, long, populated. The other: read-only, short, never touched. The
  // lengths go through 1000 values each: a VMA that is gone and comes back just as it was,
  // with other pages in between, looks unchanged to every reader of maps.
  constexpr std::uint64_t lengths = 1000;
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    *map_at(place, lengths) = 1;
    ready();
    for (std::uint64_t turn = 0;; ++turn) {
      munmap(reinterpret_cast<void*>(place), 2 * lengths * base_page);
      map_at(place, 1 + turn % lengths, PROT_READ);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
      munmap(reinterpret_cast<void*>(place), 2 * lengths * base_page);
      const std::uint64_t pages = lengths + 1 + turn % lengths;
      char* const at = map_at(place, pages);
      (void)madvise(at, 64 * base_page, MADV_POPULATE_WRITE);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
  const Process process = process_of(child.pid());
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  std::map<std::string, unsigned> seen;
  const VaRange range{{place}, {place + 2 * lengths * base_page}};
  const auto deadline = Clock::now() + std::chrono::seconds(8);
  while (Clock::now() < deadline) {
    std::uint64_t at = place;
    const auto result = translate(
        process, **translator, inspector, range, {}, [&](const Vma* vma, const Extent& e) {
          INFO(describe(e) << (vma == nullptr ? "" : " " + permissions(*vma)));
          CHECK(e.va.value == at);
          at = e.end().value;
          if (e.state == PageState::changed) {
            ++seen["changed"];
          } else if (vma == nullptr) {
            CHECK(e.state == PageState::unmapped);
            ++seen["unmapped"];
          } else if (vma->writable) {
            CHECK(vma->range.start.value == place);
            CHECK(vma->range.bytes() >= lengths * base_page);
            // Not populated for a moment after it was mapped, and never beyond page 64.
            const bool populated = e.state == PageState::resident || e.state == PageState::hidden;
            CHECK((populated || e.state == PageState::absent));
            if (populated) CHECK(e.end().value <= place + 64 * base_page);
            ++seen[populated ? "long, populated" : "long, absent"];
          } else {
            CHECK(vma->range.start.value == place);
            CHECK(vma->range.bytes() <= lengths * base_page);
            CHECK(e.state == PageState::absent);
            ++seen["short"];
          }
          return true;
        });
    REQUIRE(result);
    CHECK(at == range.end.value);
  }
  for (const auto& [what, count] : seen) {
    INFO(what << ": " << count << " extents");
    CHECK(count > 0);
  }
  CHECK(seen["long, populated"] > 0);
  CHECK(seen["short"] > 0);
}

TEST_CASE("a mapping that gives way to a larger one that pagemap is blind to leaves no hole") {
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_DUMMY;
  attributes.exclude_kernel = 1;
  const int ring =
      static_cast<int>(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
  if (ring < 0) return skip_or_fail("bpf", "perf_event_open");
  constexpr std::uint64_t ring_pages = 9, before = 4, pages = 16;
  const VaRange asked{{place + before * base_page}, {place + (before + pages) * base_page}};
  const Process process = process_of(getpid());

  /// By pagemap; the mapping changes once it was read for the first time.
  struct Remapping final : Translator {
    std::unique_ptr<Translator> pagemap;
    std::function<void()> remap;
    VaRange asked;
    Backend backend() const override { return pagemap->backend(); }
    std::uint8_t known_bits() const override { return pagemap->known_bits(); }
    bool sees_pfnmap() const override { return false; }
    Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) override {
      auto walked = pagemap->walk(range, options, sink);
      if (remap && !intersect(range, asked).empty()) std::exchange(remap, nullptr)();
      return walked;
    }
  } translator;
  auto opened = open_translator(process, Backend::pagemap);
  REQUIRE(opened);
  translator.pagemap = std::move(*opened);
  translator.asked = asked;
  bool mapped = false;
  map_at(asked.start.value, pages);
  translator.remap = [&] {
    mapped = mmap(reinterpret_cast<void*>(place), ring_pages * base_page, PROT_READ,
                  MAP_SHARED | MAP_FIXED, ring, 0) != MAP_FAILED;
  };
  VmaInspector inspector(process);
  bool blind = false, seen = false;
  const auto walked =
      translate_all(process, translator, inspector, {}, [&](const Vma* vma, const Extent& e) {
        if (vma->path != "anon_inode:[perf_event]" || vma->range.start.value != place) return true;
        INFO(describe(e));
        seen = true;
        // Older kernels let pagemap see it.
        const auto flags = inspector.flags(*vma);
        blind = flags && flags->has("pf");
        if (blind) CHECK(e.state == PageState::unseen);
        return true;
      });
  map_at(place, before + pages, PROT_NONE);
  close(ring);
  REQUIRE(walked);
  if (!mapped) return skip_or_fail("bpf", "no perf ring");
  CHECK(seen);
  if (!blind) return skip_or_fail("bpf", "a perf ring is not VM_PFNMAP here");
}

TEST_CASE("VMAs that come and go beside a still one do not disturb its answer") {
  constexpr std::uint64_t pages = 512;
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    std::memset(map_at(place, pages), 1, pages * base_page);
    ready();
    for (std::uint64_t i = 0;; ++i) {
      const std::uint64_t at = place + (pages + 1 + i % 64 * 2) * base_page;
      *map_at(at, 1) = 1;
      if (i >= 32)
        munmap(reinterpret_cast<void*>(place + (pages + 1 + (i - 32) % 64 * 2) * base_page),
               base_page);
    }
  });
  const Process process = process_of(child.pid());
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  std::vector<std::uint64_t> frames;
  unsigned answers = 0;
  const auto deadline = Clock::now() + std::chrono::seconds(4);
  while (Clock::now() < deadline) {
    std::vector<std::uint64_t> now;
    const auto result =
        translate(process, **translator, inspector, {{place}, {place + (pages + 256) * base_page}},
                  {}, [&](const Vma* vma, const Extent& e) {
                    if (e.va.value < place + pages * base_page) {
                      INFO(describe(e));
                      CHECK(vma != nullptr);
                      CHECK((e.state == PageState::resident || e.state == PageState::hidden));
                      for (std::uint64_t i = 0; i < e.bytes / base_page; ++i) {
                        now.push_back(e.state == PageState::resident ? e.pfn.value + i : 0);
                      }
                    }
                    return true;
                  });
    REQUIRE(result);
    REQUIRE(now.size() == pages);
    if (frames.empty()) frames = now;
    // The kernel may migrate a page now and then; not many.
    unsigned different = 0;
    for (std::size_t i = 0; i < pages; ++i) different += frames[i] != now[i];
    CHECK(different < pages / 8);
    frames = now;
    ++answers;
  }
  CHECK(answers > 10);
}

TEST_CASE("one address of a mapping that alternates has one of its two answers") {
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    *map_at(place, 1) = 1;
    ready();
    for (;;) {
      munmap(reinterpret_cast<void*>(place), base_page);
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      *map_at(place, 1) = 1;
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
  });
  const Process process = process_of(child.pid());
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  std::map<PageState, unsigned> seen;
  const auto deadline = Clock::now() + std::chrono::seconds(4);
  while (Clock::now() < deadline) {
    const auto t = translate(process, **translator, inspector, VirtAddr{place + 5});
    REQUIRE(t);
    INFO(describe(t->extent));
    ++seen[t->extent.state];
    switch (t->extent.state) {
      case PageState::resident:
      case PageState::hidden:
      case PageState::absent:
        CHECK(t->vma);
        break;
      case PageState::unmapped:
        CHECK_FALSE(t->vma);
        break;
      default:
        CHECK(t->extent.state == PageState::changed);
    }
  }
  CHECK(seen[PageState::unmapped] > 0);
  CHECK(seen[PageState::resident] + seen[PageState::hidden] > 0);
}

TEST_CASE("a huge reserved range can be walked while its process is killed") {
  Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    map_at(place, large_pages, PROT_NONE);
    ready();
    wait_for_ever();
  });
  const Process process = process_of(child.pid());
  std::atomic<bool> done = false;
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    kill(child.pid(), SIGKILL);
    done = true;
  });
  std::uint64_t pages = 0;
  const auto deadline = Clock::now() + std::chrono::seconds(60);
  for (;;) {
    const auto result = walk_all(
        process, {{place}, {place + large_pages * base_page}}, 2, [&](const Vma*, const Extent& e) {
          CHECK((e.state == PageState::absent || e.state == PageState::changed));
          pages += e.bytes / base_page;
        });
    if (!result) {
      INFO(to_string(result.error()));
      CHECK(ended(result.error()));
      break;
    }
    REQUIRE(Clock::now() < deadline);
  }
  killer.join();
  CHECK(done);
}
