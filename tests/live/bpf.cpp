// SPDX-License-Identifier: MIT
// Page tables through BPF against pagemap: every kind of memory page by page, what pagemap cannot
// see, processes that move, and what must be refused.
#include <linux/capability.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <set>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/recorded.hpp"
#if VMEM_BPF
#include "bpf_program.hpp"
#include "direct_map.hpp"
#endif

using namespace vmem;
using namespace vmem::test;

namespace {

/// Whether the backend works here; says why not.
bool bpf_works() {
  static const std::string why = [] {
    const auto translator = open_translator(process_of(getpid()), Backend::bpf);
    if (translator) return std::string();
    const Error& e = translator.error();
    return to_string(e) + (e.hint != nullptr ? std::string(" (") + e.hint + ")" : "");
  }();
  if (!why.empty()) skip_or_fail("bpf", why);
  return why.empty();
}

std::unique_ptr<Translator> open_bpf(const Process& process) {
  auto translator = open_translator(process, Backend::bpf);
  if (!translator) FAIL(to_string(translator.error()));
  return std::move(*translator);
}

std::vector<Answer> read_by(const Process& process, Translator& translator) {
  return library_read(process, translator, {.every_page = true});
}

/// The extent of [va, end of it) as one that starts at `va`.
Extent from(const Extent& e, std::uint64_t va) {
  Extent rest = e;
  const std::uint64_t pages = (va - e.va.value) / base_page;
  rest.va = {va};
  rest.bytes -= va - e.va.value;
  if (e.state == PageState::resident || names_frame(e)) rest.pfn = e.pfn + pages;
  if (e.state == PageState::swapped) rest.swap_offset += pages;
  return rest;
}

bool equal_pages(const Extent& a, const Extent& b, unsigned bits) {
  if (a.state != b.state || a.reason != b.reason || ((a.bits ^ b.bits) & bits) != 0) return false;
  if (a.leaf_shift != 0 && b.leaf_shift != 0 && a.leaf_shift != b.leaf_shift) return false;
  if (a.state == PageState::resident) return a.pfn == b.pfn;
  if (a.state == PageState::swapped)
    return a.swap_offset == b.swap_offset && a.swap_type == b.swap_type;
  return true;
}

struct Agreement {
  std::vector<std::string> faults;
  std::uint64_t pages = 0, resident = 0, moved = 0, newly_seen = 0;
};

/// Page by page: `bpf`, read between the two readings by pagemap, says what these say. A page on
/// which the two differ has moved and proves nothing.
Agreement agree(const std::vector<Answer>& before, const std::vector<Answer>& bpf,
                const std::vector<Answer>& after) {
  Agreement result;
  if (before.size() != bpf.size() || after.size() != bpf.size()) {
    result.faults.push_back("VMAs: " + std::to_string(before.size()) + " " +
                            std::to_string(bpf.size()) + " " + std::to_string(after.size()));
    return result;
  }
  constexpr unsigned known = page_bit::soft_dirty | page_bit::uffd_wp;
  for (std::size_t i = 0; i < bpf.size(); ++i) {
    check_tiling(bpf[i], result.faults);
    std::size_t x = 0, y = 0;
    for (const Extent& extent : bpf[i].extents) {
      if (extent.backend != Backend::bpf) result.faults.push_back("backend of " + describe(extent));
      if (extent.state == PageState::resident && (extent.pte & pte_bit::known) == 0)
        result.faults.push_back("no pte in " + describe(extent));
      for (std::uint64_t va = extent.va.value; va < extent.end().value;) {
        while (before[i].extents.at(x).end().value <= va) ++x;
        while (after[i].extents.at(y).end().value <= va) ++y;
        const Extent& first = before[i].extents[x];
        const Extent& second = after[i].extents[y];
        const std::uint64_t end =
            std::min({extent.end().value, first.end().value, second.end().value});
        const std::uint64_t pages = (end - va) / base_page;
        result.pages += pages;
        const Extent ours = from(extent, va);
        if (first.state == PageState::unseen && bpf[i].vma.path != "[vsyscall]") {
          if (ours.state == PageState::resident) result.newly_seen += pages;
          if (ours.state != PageState::resident && ours.state != PageState::absent)
            result.faults.push_back("a page unseen by pagemap: " + describe(ours));
        } else if (equal_pages(from(first, va), ours, known)) {
          result.resident += ours.state == PageState::resident ? pages : 0;
        } else if (!equal_pages(from(first, va), from(second, va), known)) {
          result.moved += pages;
        } else {
          result.faults.push_back(bpf[i].vma.path + ": pagemap " + describe(from(first, va)) +
                                  "; bpf " + describe(ours));
        }
        va = end;
      }
    }
  }
  return result;
}

std::string first_faults(const Agreement& a) {
  std::string text = std::to_string(a.faults.size()) + " faults";
  for (std::size_t i = 0; i < std::min<std::size_t>(a.faults.size(), 12); ++i)
    text += "\n" + a.faults[i];
  return text;
}

Agreement compare_backends(const Process& process) {
  auto pagemap = open_translator(process, Backend::pagemap);
  REQUIRE(pagemap);
  const auto bpf = open_bpf(process);
  const auto before = read_by(process, **pagemap);
  const auto ours = read_by(process, *bpf);
  const auto after = read_by(process, **pagemap);
  return agree(before, ours, after);
}

/// Where children map what moves; kept free here.
const std::uint64_t place = [] {
  void* const at = mmap(nullptr, std::size_t{1} << 36, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::runtime_error("reserving addresses");
  return (reinterpret_cast<std::uint64_t>(at) + (1 << 21)) & ~((std::uint64_t{1} << 21) - 1);
}();

char* map_at(std::uint64_t at, std::uint64_t pages, int flags = 0) {
  void* const got = mmap(reinterpret_cast<void*>(at), pages * base_page, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flags, -1, 0);
  if (got == MAP_FAILED) _exit(1);
  return static_cast<char*>(got);
}

/// The frame of each page, by plain pread of pagemap.
std::vector<std::uint64_t> frames_of(pid_t pid, std::uint64_t start, std::uint64_t pages) {
  const int fd = open(("/proc/" + std::to_string(pid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC);
  std::vector<std::uint64_t> entries(pages);
  const auto n = pread(fd, entries.data(), pages * 8, static_cast<off_t>(start / base_page * 8));
  close(fd);
  if (n != static_cast<ssize_t>(pages * 8)) throw std::runtime_error("pagemap");
  for (std::uint64_t& entry : entries) entry = entry >> 63 != 0 ? entry << 9 >> 9 : 0;
  return entries;
}

}  // namespace

TEST_CASE("every kind of memory: page tables and pagemap agree, page by page") {
  if (!bpf_works()) return;
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const Process process = process_of(child.pid());
  for (int i = 0; i < 3; ++i) {
    const Agreement a = compare_backends(process);
    INFO(first_faults(a));
    CHECK(a.faults.empty());
    CHECK(a.pages > 16'000'000);
    CHECK(a.resident > 2000);
    CHECK(a.moved * 50 < a.resident);
    CHECK(a.newly_seen > 0);
  }
}

TEST_CASE("what pagemap cannot see is resident, and never unseen") {
  if (!bpf_works()) return;
  const KindsChild child({"vdso", "perf-ring"});
  for (const std::string& skip : child.skips()) skip_or_fail("bpf", "memory kind " + skip);
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto bpf = open_bpf(process);
  CHECK(bpf->sees_pfnmap());
  CHECK(bpf->known_bits() == (page_bit::soft_dirty | page_bit::uffd_wp));
  unsigned pfnmap = 0;
  const auto smaps = plain_smaps(child.pid());
  const auto answers = read_by(process, *bpf);
  REQUIRE(answers.size() == smaps.size());
  for (std::size_t i = 0; i < answers.size(); ++i) {
    if (answers[i].vma.path == "[vsyscall]") continue;
    unsigned resident = 0;
    for (const Extent& e : answers[i].extents) {
      INFO(answers[i].vma.path << ": " << describe(e));
      CHECK(e.state != PageState::unseen);
      CHECK(e.state != PageState::changed);
      resident += e.state == PageState::resident;
    }
    if (!smaps[i].has("pf")) continue;
    ++pfnmap;
    // memory-kinds touches its ring. [vvar] comes page by page, when the time is asked for.
    if (answers[i].vma.path.find("perf_event") != std::string::npos) CHECK(resident > 0);
  }
  CHECK(pfnmap > 0);
  (void)Clock::now();
  unsigned shown = 0;
  const Process self = process_of(getpid());
  for (const Answer& answer : read_by(self, *open_bpf(self))) {
    for (const Extent& e : answer.extents) {
      shown += answer.vma.path.starts_with("[vvar") && e.state == PageState::resident;
    }
  }
  CHECK(shown > 0);
}

TEST_CASE("page tables are not opened for [vvar] alone where it is not asked for") {
  if (!bpf_works()) return;
  const Process process = process_of(getpid());
  const auto unseen = [&](Translator& translator, bool wanted) {
    bool any = false;
    for (const Answer& answer : library_read(process, translator, {.kernel_mappings = wanted})) {
      for (const Extent& e : answer.extents)
        any = any || (e.state == PageState::unseen && answer.vma.path.starts_with("[vvar"));
    }
    return any;
  };
  const auto fresh = [&](bool wanted) {
    auto translator = open_translator(process);
    REQUIRE(translator);
    return unseen(**translator, wanted);
  };
  auto pagemap = open_translator(process, Backend::pagemap);
  REQUIRE(pagemap);
  const bool blind = unseen(**pagemap, true);  // not so on 7.x
  CHECK_FALSE(fresh(true));
  CHECK(fresh(false) == blind);

  // They are open, then, when the walk comes to [vvar], which lies above.
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_DUMMY;
  const auto ring =
      static_cast<int>(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
  if (ring < 0) return skip_or_fail("bpf", "perf_event_open");
  void* const at = mmap(nullptr, 2 * base_page, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
  REQUIRE(at != MAP_FAILED);
  bool ring_blind = false;
  for (const Answer& answer : library_read(process, **pagemap, {})) {
    if (answer.vma.range.start.value != reinterpret_cast<std::uintptr_t>(at)) continue;
    for (const Extent& e : answer.extents) ring_blind = e.state == PageState::unseen;
  }
  CHECK(fresh(false) == (blind && !ring_blind));
  munmap(at, 2 * base_page);
  close(ring);
}

TEST_CASE("two mappings of one perf ring lie on the same frames, and on none of another ring's") {
  if (!bpf_works()) return;
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.size = sizeof attributes;
  attributes.config = PERF_COUNT_SW_DUMMY;
  attributes.exclude_kernel = 1;
  const auto ring = [&] {
    return static_cast<int>(
        syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC));
  };
  const int one = ring(), other = ring();
  if (one < 0 || other < 0) return skip_or_fail("bpf", "perf_event_open");
  constexpr std::size_t pages = 9;
  const auto map = [&](int fd) {
    char* const at = static_cast<char*>(
        mmap(nullptr, pages * base_page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    REQUIRE(at != MAP_FAILED);
    for (std::size_t i = 0; i < pages; ++i) (void)*static_cast<volatile char*>(at + i * base_page);
    return at;
  };
  char* const first = map(one);
  char* const again = map(one);
  char* const second = map(other);
  const Process process = process_of(getpid());
  const auto bpf = open_bpf(process);
  const auto frames = [&](const char* at) {
    std::vector<std::uint64_t> all;
    const auto start = reinterpret_cast<std::uint64_t>(at);
    REQUIRE(bpf->walk({{start}, {start + pages * base_page}}, {}, [&](const Extent& e) {
      INFO(describe(e));
      CHECK(e.state == PageState::resident);
      CHECK(pte_bit::cache(e.pte) == CacheAttribute::wb);
      for (std::uint64_t i = 0; i < e.bytes / base_page; ++i) all.push_back(e.pfn.value + i);
      return true;
    }));
    return all;
  };
  const auto a = frames(first), b = frames(again), c = frames(second);
  REQUIRE(a.size() == pages);
  CHECK(a == b);
  const std::set<std::uint64_t> distinct(a.begin(), a.end());
  CHECK(distinct.size() == pages);
  for (const std::uint64_t frame : c) CHECK_FALSE(distinct.contains(frame));
  munmap(first, pages * base_page);
  munmap(again, pages * base_page);
  munmap(second, pages * base_page);
  close(one);
  close(other);
}

TEST_CASE("a page-table walk names every level, and ends where the extent says") {
  if (!bpf_works()) return;
  const KindsChild child({"anon", "thp"});
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto bpf = open_bpf(process);
  auto pagemap = open_translator(process, Backend::pagemap);
  REQUIRE(pagemap);
  CHECK_FALSE((*pagemap)->page_walk({0x1000}));
  for (const Mapping& m : child.mappings()) {
    INFO(m.name);
    const auto walk = bpf->page_walk({m.start});
    REQUIRE(walk);
    REQUIRE(walk->steps.size() >= 3);
    CHECK(std::string(walk->steps[0].level) == "pgd");
    CHECK(walk->extent.va.value == m.start);
    CHECK(walk->extent.bytes == base_page);
    CHECK(walk->extent.pfn.value == frames_of(child.pid(), m.start, 1)[0]);
    for (std::size_t i = 0; i < walk->steps.size(); ++i) {
      const WalkStep& step = walk->steps[i];
      CHECK(step.index == (m.start >> step.shift) % 512);
      CHECK(step.leaf == (i + 1 == walk->steps.size()));
      CHECK_FALSE(step.flags.empty());
      if (i > 0) CHECK((walk->steps[i - 1].raw & 0x000ffffffffff000) == step.table.value);
    }
    CHECK(walk->steps.back().shift == walk->extent.leaf_shift);
  }
  // Nothing is mapped there, so that nothing is walked.
  const auto nowhere = bpf->page_walk({0x1000});
  REQUIRE(nowhere);
  CHECK(nowhere->steps.empty());
  CHECK(nowhere->extent.state == PageState::absent);
}

TEST_CASE("ranges of any size and place tile, and walks may be nested") {
  if (!bpf_works()) return;
  const KindsChild child({"anon", "sparse", "thp"});
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto bpf = open_bpf(process);
  const auto all = read_by(process, *bpf);
  std::uint64_t seed = 1;
  const auto random = [&](std::uint64_t below) {
    seed = seed * 6364136223846793005 + 1442695040888963407;
    return (seed >> 20) % below;
  };
  for (int i = 0; i < 300; ++i) {
    const Answer& answer = all[random(all.size() - 1)];  // not [vsyscall], the last
    const std::uint64_t start =
        answer.vma.range.start.value + random(answer.vma.range.bytes() / base_page) * base_page;
    const std::uint64_t end = start + (1 + random(3000)) * base_page;
    std::uint64_t at = start;
    const auto result = bpf->walk({{start}, {end}}, {}, [&](const Extent& e) {
      CHECK(e.va.value == at);
      at = e.end().value;
      if (answer.vma.range.contains(e.va)) {
        const Extent whole = from(extent_at(all, e.va.value), e.va.value);
        INFO(describe(e) << " of " << describe(whole));
        CHECK(equal_pages(whole, e, 255));
      }
      if (i % 50 == 0) {
        // In the middle of a walk, another one on the same translator.
        std::uint64_t bytes = 0;
        CHECK(bpf->walk(answer.vma.range, {}, [&](const Extent& inner) {
          bytes += inner.bytes;
          return true;
        }));
        CHECK(bytes == answer.vma.range.bytes());
      }
      return true;
    });
    REQUIRE(result);
    CHECK(at == end);
  }
}

TEST_CASE("our own process, and its child after a fork") {
  if (!bpf_works()) return;
  const Process self = process_of(getpid());
  const auto bpf = open_bpf(self);
  static char page[2 * base_page];
  page[base_page] = 1;
  const auto va = reinterpret_cast<std::uint64_t>(&page[base_page]) / base_page * base_page;
  const auto frame = [](Translator& t, std::uint64_t at) {
    std::uint64_t pfn = 0;
    const auto result = t.walk({{at}, {at + base_page}}, {}, [&](const Extent& e) {
      pfn = e.state == PageState::resident ? e.pfn.value : 0;
      return true;
    });
    return result ? pfn : ~std::uint64_t{0};
  };
  CHECK(frame(*bpf, va) == frames_of(getpid(), va, 1)[0]);
  const pid_t pid = fork();
  if (pid == 0) {
    // The program and its memory are the parent's.
    const bool refused = frame(*bpf, va) == ~std::uint64_t{0} && !bpf->vm_flags({va});
    page[base_page] = 2;
    const auto root = SysRoot::live();
    const auto own = root->self();
    auto translator = open_translator(*own, Backend::bpf);
    const bool right = translator && frame(**translator, va) == frames_of(getpid(), va, 1)[0];
    _exit(refused && right ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  CHECK(status == 0);
  CHECK(frame(*bpf, va) == frames_of(getpid(), va, 1)[0]);
}

#if VMEM_BPF
TEST_CASE("a wrong base of the direct map, or a wrong number of levels, is refused") {
  if (!bpf_works()) return;
  const auto root = SysRoot::live();
  REQUIRE(root);
  auto program = BpfProgram::load(*root);
  REQUIRE(program);
  REQUIRE(prove_direct_map(*root, **program));
  const DirectMap right = (*program)->direct_map();
  const auto proven = proves(*root, **program, right);
  REQUIRE(proven);
  CHECK(*proven);
  for (const std::int64_t shift : {std::int64_t{1} << 30, -(std::int64_t{1} << 30),
                                   std::int64_t{1} << 39, std::int64_t{4096}}) {
    DirectMap wrong = right;
    wrong.base += static_cast<std::uint64_t>(shift);
    const auto result = proves(*root, **program, wrong);
    REQUIRE(result);
    CHECK_FALSE(*result);
  }
  DirectMap wrong = right;
  wrong.format.levels = right.format.levels == 4 ? 5 : 4;
  const auto levels = proves(*root, **program, wrong);
  REQUIRE(levels);
  CHECK_FALSE(*levels);
  wrong = right;
  wrong.format.encryption_mask = std::uint64_t{0xff} << 20;
  const auto mask = proves(*root, **program, wrong);
  REQUIRE(mask);
  CHECK_FALSE(*mask);
  // The ways to find it, as far as this machine has them, lead to the same.
  auto link = (*program)->link(getpid(), vmem_filter_task);
  REQUIRE(link);
  auto iterator = (*program)->iterate(*link);
  REQUIRE(iterator);
  const auto pointers = (*program)->read_pointers(*iterator);
  REQUIRE(pointers);
  unsigned ways = 0;
  if (const auto flags = root->open_file("proc/kpageflags")) {
    const auto bases = calibrate(*flags, (*program)->ram(), *pointers);
    REQUIRE(bases.size() == 1);
    CHECK(bases[0] == right.base);
    ++ways;
  }
  if (const auto kcore = root->open_file("proc/kcore")) {
    const auto read = read_kcore(*kcore);
    REQUIRE(read);
    CHECK(read->bases == std::vector<std::uint64_t>{right.base});
    ++ways;
  }
  const auto kallsyms = root->read_file("proc/kallsyms", std::size_t{64} << 20);
  if (const auto symbol = kallsyms ? find_symbol(*kallsyms, "page_offset_base") : std::nullopt) {
    auto again = (*program)->iterate(*link);
    REQUIRE(again);
    const auto base = (*program)->read_symbol(*again, *symbol);
    REQUIRE(base);
    CHECK(*base == right.base);
    ++ways;
  }
  CHECK(ways > 0);
}

TEST_CASE("the list of RAM is read again where it has grown") {
  if (!bpf_works()) return;
  const auto live = SysRoot::live();
  REQUIRE(live);
  // As the list was before memory came.
  SystemModel system = one_process("");
  system.files["proc/iomem"] = "00001000-00001fff : System RAM\n";
  const Recorded before{system};
  const auto program = BpfProgram::load(before.root());
  REQUIRE(program);
  CHECK((*program)->ram() == std::vector<PaRange>{{{0x1000}, {0x2000}}});
  CHECK_FALSE(prove_direct_map(*live, **program));  // nothing of ours lies there
  CHECK((*program)->refresh_ram(*live));
  CHECK((*program)->ram() == (*BpfProgram::load(*live))->ram());
  CHECK(prove_direct_map(*live, **program));
  CHECK_FALSE((*program)->refresh_ram(*live));
  // A list that cannot be read is none to go by.
  CHECK_FALSE((*program)->refresh_ram(Recorded(one_process("")).root()));
}

TEST_CASE("a signal that comes while the program is loaded does not stop it") {
  if (!bpf_works()) return;
  const auto root = SysRoot::live();
  REQUIRE(root);
  auto* const before = std::signal(SIGALRM, [](int) {});
  for (int i = 0; i < 80; ++i) {
    itimerval once{};
    once.it_value.tv_usec = 100 + i * 100;
    REQUIRE(setitimer(ITIMER_REAL, &once, nullptr) == 0);
    const auto program = BpfProgram::load(*root);
    if (!program) FAIL(to_string(program.error()) << " after " << once.it_value.tv_usec << " us");
  }
  const itimerval off{};
  setitimer(ITIMER_REAL, &off, nullptr);
  std::signal(SIGALRM, before);
}
#endif

TEST_CASE("a storm of mmap and munmap: locked pages never have another frame than theirs") {
  if (!bpf_works()) return;
  // Locked pages, each the only lasting one of its PTE table; around them mappings come and go, so
  // that tables are freed and made all the time.
  constexpr std::uint64_t islands = 64, distance = std::uint64_t{1} << 21;
  const Child child = fork_child([](const std::function<void()>& ready) {
    std::atomic<bool> go = false;
    const auto storm = [&](unsigned which) {
      while (!go) std::this_thread::yield();
      for (unsigned seed = which;;) {
        seed = seed * 1103515245 + 12345;
        // Each of the two in tables of its own, with an island or without.
        const std::uint64_t slot =
            (seed >> 8) % islands * 4 % (2 * islands) + which * 2 + (seed >> 30) % 2;
        const std::uint64_t at = place + slot * distance + base_page * 2;
        const std::uint64_t pages = 1 + (seed >> 4) % 400;
        char* const got = map_at(at, pages);
        for (std::uint64_t i = 0; i < pages; i += 7) got[i * base_page] = 1;
        munmap(got, pages * base_page);
      }
    };
    // Before there is room where its stack could go.
    std::thread other(storm, 1U);
    munmap(reinterpret_cast<void*>(place), 2 * islands * distance);
    for (std::uint64_t i = 0; i < islands; ++i) {
      char* const at = map_at(place + 2 * i * distance, 1);
      *at = 1;
      mlock(at, base_page);
    }
    ready();
    go = true;
    storm(0);
  });
  const Process process = process_of(child.pid());
  std::vector<std::uint64_t> frames;
  for (std::uint64_t i = 0; i < islands; ++i)
    frames.push_back(frames_of(child.pid(), place + 2 * i * distance, 1)[0]);
  const auto bpf = open_bpf(process);
  std::uint64_t seen = 0, changed = 0, passes = 0;
  const auto deadline = Clock::now() + std::chrono::seconds(5);
  while (Clock::now() < deadline) {
    std::uint64_t at = place;
    const auto result =
        bpf->walk({{place}, {place + 2 * islands * distance}}, {}, [&](const Extent& e) {
          if (e.va.value != at) FAIL("gap");
          at = e.end().value;
          for (std::uint64_t i = (e.va.value - place + 2 * distance - 1) / (2 * distance);
               place + 2 * i * distance < at && i < islands; ++i) {
            const std::uint64_t va = place + 2 * i * distance;
            if (e.state == PageState::changed) {
              ++changed;
              continue;
            }
            ++seen;
            INFO("island " << i << ": " << describe(e));
            REQUIRE(e.state == PageState::resident);
            REQUIRE(e.pfn.value + (va - e.va.value) / base_page == frames[i]);
          }
          return true;
        });
    REQUIRE(result);
    ++passes;
  }
  CHECK(passes > 100);
  CHECK(changed * 100 < seen + 100);
  for (std::uint64_t i = 0; i < islands; ++i)
    CHECK(frames_of(child.pid(), place + 2 * i * distance, 1)[0] == frames[i]);
}

TEST_CASE(
    "pages that come and go, and their tables with them, are told with their frames or as absent") {
  if (!bpf_works()) return;
  // Two VMAs in each GiB, a page of a file in each. When both are gone so are the tables of three
  // levels.
  constexpr std::uint64_t slots = 24, distance = std::uint64_t{1} << 30,
                          second = std::uint64_t{4} << 20;
  const int fd = memfd_create("storm", MFD_CLOEXEC);
  REQUIRE(fd >= 0);
  REQUIRE(ftruncate(fd, 2 * slots * base_page) == 0);
  char* const file = static_cast<char*>(
      mmap(nullptr, 2 * slots * base_page, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  REQUIRE(file != MAP_FAILED);
  for (std::uint64_t i = 0; i < 2 * slots; ++i) file[i * base_page] = 1;
  const auto file_frames = [&] {
    return frames_of(getpid(), reinterpret_cast<std::uint64_t>(file), 2 * slots);
  };
  const auto frames = file_frames();
  const Child child = fork_child([&](const std::function<void()>& ready) {
    std::atomic<bool> go = false;
    const auto storm = [&](unsigned which) {
      while (!go) std::this_thread::yield();
      for (std::uint64_t i = which;; i += 2) {
        const std::uint64_t slot = i % slots;
        for (const std::uint64_t half : {std::uint64_t{0}, std::uint64_t{1}}) {
          void* const at = mmap(reinterpret_cast<void*>(place + slot * distance + half * second),
                                base_page, PROT_READ, MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd,
                                static_cast<off_t>((2 * slot + half) * base_page));
          if (at == MAP_FAILED) _exit(1);
        }
        const std::uint64_t gone = (slot + slots - 6) % slots;
        for (const std::uint64_t half : {std::uint64_t{0}, std::uint64_t{1}}) {
          munmap(reinterpret_cast<void*>(place + gone * distance + half * second), base_page);
        }
      }
    };
    std::thread other(storm, 1U);
    munmap(reinterpret_cast<void*>(place), slots * distance);
    ready();
    go = true;
    storm(0);
  });
  const Process process = process_of(child.pid());
  const auto bpf = open_bpf(process);
  std::uint64_t resident = 0, changed = 0, passes = 0;
  const auto deadline = Clock::now() + std::chrono::seconds(4);
  while (Clock::now() < deadline) {
    REQUIRE(bpf->walk({{place}, {place + slots * distance}}, {}, [&](const Extent& e) {
      INFO(describe(e));
      changed += e.state == PageState::changed;
      if (e.state == PageState::absent || e.state == PageState::changed) return true;
      const std::uint64_t slot = (e.va.value - place) / distance;
      const std::uint64_t offset = (e.va.value - place) % distance;
      if (offset != 0 && offset != second) return true;  // a sanitizer's
      REQUIRE(e.state == PageState::resident);
      REQUIRE(e.bytes == base_page);
      REQUIRE(e.pfn.value == frames[2 * slot + (offset == 0 ? 0 : 1)]);
      ++resident;
      return true;
    }));
    ++passes;
  }
  CHECK(passes > 100);
  CHECK(resident > passes);
  CHECK(changed * 20 < resident + 20);
  CHECK(file_frames() == frames);
  munmap(file, 2 * slots * base_page);
  close(fd);
}

TEST_CASE("many VMAs, read in many runs while their neighbours come and go") {
  if (!bpf_works()) return;
  constexpr std::uint64_t vmas = 20'000;
  const Child child = fork_child([](const std::function<void()>& ready) {
    munmap(reinterpret_cast<void*>(place), std::size_t{1} << 35);
    for (std::uint64_t i = 0; i < vmas; ++i) {
      char* const at = map_at(place + 4 * i * base_page, 1);
      *at = 1;
      mlock(at, base_page);
    }
    ready();
    for (std::uint64_t i = 0;; i = (i * 5 + 1) % vmas) {
      char* const at = map_at(place + (4 * i + 2) * base_page, 1);
      *at = 1;
      munmap(at, base_page);
    }
  });
  const Process process = process_of(child.pid());
  const auto frames = frames_of(child.pid(), place, 4 * vmas);
  const auto bpf = open_bpf(process);
  for (int pass = 0; pass < 20; ++pass) {
    std::uint64_t right = 0, wrong = 0;
    REQUIRE(bpf->walk({{place}, {place + 4 * vmas * base_page}}, {}, [&](const Extent& e) {
      for (std::uint64_t va = e.va.value; va < e.end().value; va += base_page) {
        const std::uint64_t page = (va - place) / base_page;
        if (page % 4 != 0) continue;
        const bool good = e.state == PageState::resident &&
                          e.pfn.value + (va - e.va.value) / base_page == frames[page];
        ++(good ? right : wrong);
      }
      return true;
    }));
    CHECK(wrong == 0);
    CHECK(right == vmas);
  }
}

TEST_CASE("a process that ends or replaces its program while its page tables are read") {
  if (!bpf_works()) return;
  for (const bool exec : {false, true}) {
    for (int round = 0; round < 10; ++round) {
      std::array<int, 2> go{};
      REQUIRE(pipe2(go.data(), O_CLOEXEC) == 0);
      Child child = fork_child([&](const std::function<void()>& ready) {
        munmap(reinterpret_cast<void*>(place), std::size_t{1} << 35);
        char* const at = map_at(place, 1 << 18, MAP_NORESERVE);
        for (std::uint64_t i = 0; i < 1 << 18; i += 512) at[i * base_page] = 1;
        ready();
        char c = 0;
        (void)!read(go[0], &c, 1);
        if (exec) execl("/bin/sleep", "sleep", "1000", nullptr);
        _exit(0);
      });
      const Process process = process_of(child.pid());
      const auto bpf = open_bpf(process);
      Result<void> result;
      std::uint64_t walks = 0;
      const auto deadline = Clock::now() + std::chrono::seconds(20);
      std::thread ender([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(3 + round));
        (void)!write(go[1], "x", 1);
      });
      do {
        std::uint64_t pages = 0;
        result = bpf->walk({{place}, {place + (std::uint64_t{1} << 30)}}, {}, [&](const Extent& e) {
          pages += e.state == PageState::resident ? e.bytes / base_page : 0;
          return true;
        });
        if (result) CHECK(pages == 512);
        ++walks;
      } while (result && Clock::now() < deadline);
      ender.join();
      close(go[0]);
      close(go[1]);
      REQUIRE_FALSE(result);
      INFO(to_string(result.error()) << " after " << walks);
      CHECK((result.error().code == Errc::process_changed ||
             result.error().code == Errc::no_process));
      CHECK_FALSE(bpf->page_walk({place}));
    }
  }
}

TEST_CASE("a process whose first thread has ended is read through another one") {
  if (!bpf_works()) return;
  const Child child = fork_child([](const std::function<void()>& ready) {
    *map_at(place, 1) = 1;
    std::thread other([&] {
      while (task_state("/proc/self") != 'Z') std::this_thread::yield();
      ready();
      wait_for_ever();
    });
    syscall(SYS_exit, 0);  // of this thread alone
  });
  const Process process = process_of(child.pid());
  const auto bpf = open_bpf(process);
  std::uint64_t frame = 0;
  REQUIRE(bpf->walk({{place}, {place + base_page}}, {}, [&](const Extent& e) {
    frame = e.pfn.value;
    return e.state == PageState::resident;
  }));
  CHECK(frame != 0);
}

TEST_CASE("nothing stays behind, also of a reader that is killed") {
  if (!bpf_works()) return;
  // Programs, maps and links: commands of bpf(2) that tell the next id.
  using Ids = std::set<std::pair<int, __u32>>;
  const auto all_ids = [] {
    Ids ids;
    for (const int command : {11, 12, 31}) {
      struct {
        __u32 start, next, flags;
      } attributes{};
      for (;;) {
        char buffer[128] = {};
        std::memcpy(buffer, &attributes, sizeof attributes);
        if (syscall(SYS_bpf, command, buffer, sizeof buffer) != 0) break;
        std::memcpy(&attributes, buffer, sizeof attributes);
        attributes.start = attributes.next;
        ids.emplace(command, attributes.next);
      }
    }
    return ids;
  };
  const Ids before = all_ids();
  Ids made;
  for (int i = 0; i < 5; ++i) {
    Child child = fork_child([](const std::function<void()>& ready) {
      const auto root = SysRoot::live();
      const auto self = root->self();
      const auto translator = open_translator(*self, Backend::bpf);
      ready();
      for (;;)
        (void)(*translator)->walk({{0}, {std::uint64_t{1} << 47}}, {}, [](const Extent&) {
          return true;
        });
    });
    for (const auto& id : all_ids())
      if (!before.contains(id)) made.insert(id);
    child.end();
  }
  for (const int command : {11, 12, 31}) {
    CHECK(std::ranges::any_of(made, [&](const auto& id) { return id.first == command; }));
  }
  const auto left = [&] {
    const Ids now = all_ids();
    return std::ranges::any_of(made, [&](const auto& id) { return now.contains(id); });
  };
  const auto deadline = Clock::now() + std::chrono::seconds(10);
  while (left() && Clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK_FALSE(left());
}

TEST_CASE("without the right to it the backend says so") {
  if (!bpf_works()) return;
  const Child child = fork_child([](const std::function<void()>& ready) {
    if (getuid() == 0 && setuid(65534) != 0) _exit(1);
    const auto root = SysRoot::live();
    const auto self = root->self();
    const auto translator = open_translator(*self, Backend::bpf);
    if (!translator && translator.error().code == Errc::permission &&
        translator.error().hint != nullptr) {
      ready();
    }
    wait_for_ever();
  });
}

TEST_CASE("which capabilities it takes") {
  if (!bpf_works() || getuid() != 0) return;
  // Whether it opens when these are gone, and that a refusal says why.
  const auto opens_without = [](std::uint64_t gone) {
    const pid_t child = fork();
    if (child == 0) {
      __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
      __user_cap_data_struct data[2];
      if (syscall(SYS_capget, &header, data) != 0) _exit(9);
      for (unsigned i = 0; i < 2; ++i) {
        data[i].permitted &= ~static_cast<__u32>(gone >> (32 * i));
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
      }
      if (syscall(SYS_capset, &header, data) != 0) _exit(9);
      const auto root = SysRoot::live();
      const auto self = root ? root->self() : std::unexpected(root.error());
      if (!self) _exit(9);
      const auto translator = open_translator(*self, Backend::bpf);
      if (translator) _exit(0);
      const Error& e = translator.error();
      _exit(e.code == Errc::permission && e.hint != nullptr ? 1 : 2);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
  };
  constexpr auto bit = [](unsigned n) { return std::uint64_t{1} << n; };
  constexpr unsigned cap_sys_admin = 21, cap_perfmon = 38, cap_bpf = 39;
  CHECK(opens_without(bit(cap_sys_admin)) == 1);
  CHECK(opens_without(bit(cap_perfmon) | bit(cap_bpf) | bit(cap_sys_admin)) == 1);
  // The kernel takes CAP_SYS_ADMIN for both.
  CHECK(opens_without(bit(cap_perfmon) | bit(cap_bpf)) == 0);
}

TEST_CASE("who made a mapping") {
  if (!bpf_works()) return;
  const KindsChild child({"anon", "vdso", "perf-ring"});
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto bpf = open_bpf(process);
  const auto is = [&](const Mapping& m, std::initializer_list<std::string> wanted) {
    const auto told = bpf->vm_ops({m.start});
    INFO(m.name << ": " << (told ? *told : to_string(told.error())));
    CHECK((told && std::ranges::find(wanted, *told) != wanted.end()));
  };
  for (const Mapping& m : child.mappings()) {
    if (m.name == "anon") is(m, {""});
    if (m.name == "vdso") is(m, {"special_mapping_vmops", "function=special_mapping_close"});
    if (m.name == "perf-ring") is(m, {"perf_mmap_vmops", "function=perf_mmap_open"});
  }
  const auto nobody = bpf->vm_ops({0x1000});
  REQUIRE_FALSE(nobody);
  CHECK(nobody.error().code == Errc::not_found);
  // The translator goes on as before.
  CHECK(bpf->page_walk({child.mapping("anon").start}));
  const auto pagemap = open_translator(process, Backend::pagemap);
  REQUIRE(pagemap);
  const auto blind = (*pagemap)->vm_ops({child.mapping("anon").start});
  REQUIRE_FALSE(blind);
  CHECK(blind.error().code == Errc::not_supported);
}

TEST_CASE("a written page that was made read-only is dirty") {
  if (!bpf_works()) return;
  char* const at = map_at(place, 1);
  *at = 1;
  REQUIRE(mprotect(at, base_page, PROT_READ) == 0);
  const Process process = process_of(getpid());
  const auto walk = open_bpf(process)->page_walk({place});
  mmap(at, base_page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  REQUIRE(walk);
  CHECK((walk->extent.pte & pte_bit::dirty) != 0);
  CHECK((walk->extent.pte & pte_bit::writable) == 0);
  REQUIRE_FALSE(walk->steps.empty());
  CHECK(walk->steps.back().flags.find("dirty") != std::string::npos);
}
