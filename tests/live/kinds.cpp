// SPDX-License-Identifier: MIT
// Every kind of memory that this machine can make: states, frames, class and kind, on a
// stopped child, against the plain reader and what the child itself expects.
#include <set>

#include "live/children.hpp"
#include "live/oracle.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// What memory-kinds expects of one mapping. Without the right to see PFNs pages that are
/// resident are hidden; a leaf's size is not shown then for all sorts.
void check_mapping(const Mapping& m, const std::vector<Answer>& answers) {
  INFO(m.name << " at " << hex(m.start));
  const bool shown = shown_pfns();
  for (std::uint64_t va = m.start; va < m.end;) {
    const Answer& a = answer_at(answers, va);
    INFO(a.vma.path);
    if (m.vma_class != "-") CHECK(to_string(a.classification.vma_class) == m.vma_class);
    if (m.kind != "-") CHECK(to_string(a.classification.kind) == m.kind);
    va = a.vma.range.end.value;
  }
  for (const Mapping::Pages& p : m.pages) {
    std::uint64_t va = m.start + p.first * base_page;
    const std::uint64_t end = va + p.count * base_page;
    while (va < end) {
      const Extent& e = extent_at(answers, va);
      INFO("page " << (va - m.start) / base_page << ": " << describe(e));
      CHECK(to_string(e.state) == (p.state == "resident" && !shown ? "hidden" : p.state));
      if (p.leaf_shift != 0) CHECK(static_cast<unsigned>(e.leaf_shift) == p.leaf_shift);
      va = e.end().value;
    }
  }
}

/// What a machine lacks that cannot make this kind.
const char* feature_of(const std::string& skip) {
  return skip.starts_with("dma-buf") ? "udmabuf" : "pfn";
}

}  // namespace

TEST_CASE("every kind of memory: states and frames agree with the plain reader") {
  const HugePages huge_pages;
  const KindsChild child;
  for (const std::string& skip : child.skips())
    skip_or_fail(feature_of(skip), "memory kind " + skip);
  stop(child.pid());
  const Process process = process_of(child.pid());
  for (const unsigned threads : {1U, 2U}) {
    for (const bool every_page : {false, true}) {
      INFO("threads " << threads << ", every page " << every_page);
      const auto plain = plain_read(child.pid());
      const auto answers = library_read(process, {.threads = threads, .every_page = every_page});
      const auto later = plain_read(child.pid());
      const Comparison c = compare(plain, later, plain_smaps(child.pid()), answers);
      INFO(first_faults(c));
      CHECK(c.faults.empty());
      CHECK(c.pages > 16'000'000);
      if (shown_pfns()) CHECK(c.resident > 2000);
      CHECK(c.moved * 50 < c.resident + 50);
      for (const Answer& a : answers) {
        for (const Extent& e : a.extents) {
          if (every_page) CHECK((e.bits & page_bit::leaf_sampled) == 0);
        }
      }
    }
  }
}

TEST_CASE("every kind of memory: class, kind, states and leaves are what the child expects") {
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const auto answers = library_read(process_of(child.pid()));
  std::set<std::string> kinds;
  for (const Mapping& m : child.mappings()) {
    check_mapping(m, answers);
    kinds.insert(m.kind);
  }
  // What every Linux with these features off still has.
  for (const char* kind : {"anon", "heap", "stack", "shm", "memfd", "sysv", "file", "vdso", "vvar",
                           "guard", "reserve"}) {
    INFO(kind);
    CHECK(kinds.contains(kind));
  }
}

TEST_CASE("what pagemap cannot see is unseen, and says why") {
  const KindsChild child({"vdso", "vsyscall", "perf-ring"});
  for (const std::string& skip : child.skips())
    skip_or_fail(feature_of(skip), "memory kind " + skip);
  stop(child.pid());
  const auto answers = library_read(process_of(child.pid()));
  const auto smaps = plain_smaps(child.pid());
  unsigned pfnmap = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    INFO(answers[i].vma.path);
    const auto& extents = answers[i].extents;
    if (answers[i].vma.path == "[vsyscall]") {
      REQUIRE(extents.size() == 1);
      CHECK(extents[0].state == PageState::unseen);
      CHECK(extents[0].reason == Reason::gate_vma);
    } else if (smaps[i].has("pf")) {
      ++pfnmap;
      REQUIRE(extents.size() == 1);
      CHECK(extents[0].state == PageState::unseen);
      CHECK(extents[0].reason == Reason::pfnmap);
    } else {
      for (const Extent& e : extents) CHECK(e.state != PageState::unseen);
    }
  }
  CHECK(pfnmap > 0);
}

TEST_CASE("one address at a time agrees with the walk") {
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto answers = library_read(process, {.every_page = true});
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  unsigned asked = 0;
  for (const Answer& a : answers) {
    for (const Extent& e : a.extents) {
      // First, last and a middle page of each extent, at any byte.
      for (const std::uint64_t offset : {std::uint64_t{0}, e.bytes / 2 + 7, e.bytes - 1}) {
        const VirtAddr address = e.va + offset;
        const auto t = translate(process, **translator, inspector, address);
        INFO(hex(address.value) << " in " << describe(e));
        REQUIRE(t);
        REQUIRE(t->vma);
        CHECK(*t->vma == a.vma);
        CHECK(t->extent.va.value == address.value / base_page * base_page);
        CHECK(t->extent.bytes == base_page);
        CHECK(t->extent.state == e.state);
        CHECK(t->extent.reason == e.reason);
        if (e.state == PageState::resident) {
          CHECK(t->extent.pfn.value == e.pfn.value + offset / base_page);
        }
        ++asked;
      }
    }
  }
  CHECK(asked > 1000);
  for (const std::uint64_t nowhere : {std::uint64_t{0x1000}, std::uint64_t{0x100000000000} - 1,
                                      std::uint64_t{0x7ffffffff000}, ~std::uint64_t{0}}) {
    INFO(hex(nowhere));
    const auto t = translate(process, **translator, inspector, VirtAddr{nowhere});
    REQUIRE(t);
    CHECK_FALSE(t->vma);
    CHECK(t->extent.state == PageState::unmapped);
  }
}

TEST_CASE("a range reports its gaps and nothing outside it") {
  const KindsChild child({"anon", "zero-page", "guard-pages"});
  stop(child.pid());
  const Process process = process_of(child.pid());
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  const std::uint64_t start = child.mapping("anon").start + 2 * base_page + 123;
  const std::uint64_t end = child.mapping("guard-pages").start + 5 * base_page + 1;
  std::uint64_t at = start / base_page * base_page;
  std::vector<std::string> states;
  const auto result = translate(process, **translator, inspector, {{start}, {end}}, {},
                                [&](const Vma* vma, const Extent& e) {
                                  INFO(describe(e));
                                  CHECK(e.va.value == at);
                                  CHECK((vma == nullptr) == (e.state == PageState::unmapped));
                                  if (vma != nullptr) {
                                    CHECK(vma->range.start <= e.va);
                                    CHECK(e.end() <= vma->range.end);
                                  }
                                  at = e.end().value;
                                  const std::string state(to_string(e.state));
                                  if (states.empty() || states.back() != state)
                                    states.push_back(state);
                                  return true;
                                });
  REQUIRE(result);
  CHECK(at == child.mapping("guard-pages").start + 6 * base_page);
  const std::string in = shown_pfns() ? "resident" : "hidden";
  CHECK(states == std::vector<std::string>{in, "absent", in, "absent", "unmapped", in, "absent",
                                           "unmapped", in, "guard"});
}

TEST_CASE("leaf sizes agree with what smaps says of huge pages") {
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const auto answers = library_read(process_of(child.pid()));
  const auto smaps = plain_smaps(child.pid());
  REQUIRE(answers.size() == smaps.size());
  std::uint64_t thp = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    INFO(answers[i].vma.path << " " << hex(smaps[i].start));
    std::uint64_t huge = 0;
    for (const Extent& e : answers[i].extents) {
      const bool in_memory = e.state == PageState::resident || e.state == PageState::hidden;
      if (in_memory && e.leaf_shift == 21) huge += e.bytes / 1024;
    }
    const auto& kb = smaps[i].kilobytes;
    if (kb.at("KernelPageSize") == 2048) {
      CHECK(huge == kb.at("Shared_Hugetlb") + kb.at("Private_Hugetlb"));
    } else if (shown_pfns() && !answers[i].extents.empty()) {
      // The huge zero page is a huge leaf, and in no count.
      const bool zero = kb.at("Rss") == 0 && huge != 0;
      if (!zero) {
        CHECK(huge == kb.at("AnonHugePages") + kb.at("ShmemPmdMapped") + kb.at("FilePmdMapped"));
      }
      thp += huge;
    }
  }
  if (shown_pfns() && first_line("/sys/kernel/mm/transparent_hugepage/enabled").find("[never]") ==
                          std::string::npos) {
    CHECK(thp > 0);
  }
}

TEST_CASE("pages merged by ksmd are one frame, and the zero page is resident") {
  const KindsChild zero({"zero-page"});
  stop(zero.pid());
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  {
    const auto answers = library_read(process_of(zero.pid()));
    const std::uint64_t start = zero.mapping("zero-page").start;
    const std::uint64_t pfn = extent_at(answers, start).pfn.value;
    for (unsigned i = 0; i < 4; ++i) {
      const Extent& e = extent_at(answers, start + i * base_page);
      CHECK(e.state == PageState::resident);
      CHECK(e.pfn.value + (start + i * base_page - e.va.value) / base_page == pfn);
      CHECK((e.bits & page_bit::exclusive) == 0);
    }
  }
  const MachineLock lock;
  const std::string ksm = "/sys/kernel/mm/ksm/";
  if (first_line(ksm + "run") != "0") return skip_or_fail("pfn", "ksmd is in use, or not there");
  const Setting pages(ksm + "pages_to_scan", "10000");
  const Setting sleep(ksm + "sleep_millisecs", "1");
  const KindsChild child({"ksm"});
  const Mapping& m = child.mapping("ksm");
  std::set<std::uint64_t> frames;
  {
    const Setting run(ksm + "run", "1");
    if (!run.set()) return skip_or_fail("pfn", "ksmd cannot be started");
    const auto deadline = Clock::now() + std::chrono::seconds(20);
    while (first_line("/proc/" + std::to_string(child.pid()) + "/ksm_merging_pages") != "16" &&
           Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
  stop(child.pid());
  const auto answers = library_read(process_of(child.pid()));
  for (std::uint64_t va = m.start; va < m.end; va += base_page) {
    const Extent& e = extent_at(answers, va);
    CHECK(e.state == PageState::resident);
    frames.insert(e.pfn.value + (va - e.va.value) / base_page);
  }
  (void)write_setting(ksm + "run", "2");  // takes all merged pages apart
  (void)write_setting(ksm + "run", "0");
  CHECK(frames.size() == 1);
}
