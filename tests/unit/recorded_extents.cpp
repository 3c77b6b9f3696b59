// SPDX-License-Identifier: MIT
/// proc/PID/extents of a recorded system: the same process, recorded as pagemap and as extents,
/// must read the same; and what no recorder writes is refused.
#include <cstdio>
#include <random>

#include "extent_builder.hpp"
#include "support/catch.hpp"
#include "support/random_system.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t base = 0x7f0000000000, page = 4096;
constexpr std::uint64_t grows_as_pfn = 1;

std::string line(std::uint64_t va, std::uint64_t pages, std::uint64_t raw) {
  char text[96];
  (void)std::snprintf(text, sizeof text, "%llx %llu entry=0x%llx\n",
                      static_cast<unsigned long long>(va), static_cast<unsigned long long>(pages),
                      static_cast<unsigned long long>(raw));
  return text;
}

/// What the library lets grow: a PFN, a swap slot or the frame that an entry names; but not one of
/// 0 that may be a hidden one, and no marker.
bool grows(std::uint64_t raw, bool shown) {
  constexpr std::uint64_t number = (1ULL << 55) - 1;
  if ((raw & entry::present) != 0) return shown || (raw & number) != 0;
  return (raw & entry::swap) != 0 && (raw & entry::guard) == 0 && (raw & 31) < 31 &&
         (shown || (raw & number) != 0);
}

std::string as_text(const ProcessModel& process, std::uint64_t page_size, bool shown) {
  std::string text = "vmem-extents 1 pagemap\n";
  for (const EntryRun& run : process.entries) {
    if (run.first == 0 && run.step == 0) continue;
    const bool swapped = (run.first & entry::present) == 0;
    const std::uint64_t step =
        grows(run.first, shown) ? (swapped ? entry::swap_step : grows_as_pfn) : 0;
    if (run.step == step) {
      text += line(run.va, run.pages, run.first);
      continue;
    }
    for (std::uint64_t i = 0; i < run.pages; ++i)
      text += line(run.va + i * page_size, 1, run.first + i * run.step);
  }
  return text + "end\n";
}

SystemModel with_extents(std::string text, std::uint64_t pages = 16) {
  char maps[128];
  (void)std::snprintf(maps, sizeof maps, "%llx-%llx rw-s 00000000 00:05 7    /dev/window\n",
                      static_cast<unsigned long long>(base),
                      static_cast<unsigned long long>(base + pages * page));
  SystemModel system = one_process(maps);
  system.processes.front().has_pagemap = false;
  system.processes.front().files["extents"] = std::move(text);
  return system;
}

std::vector<std::string> told(const Recorded& tree) {
  std::vector<std::string> lines;
  for (const VmaExtent& e : translate_whole(tree.process(1)))
    lines.push_back(describe(e.extent, PageSize{page}));
  return lines;
}

/// Without the leaf size, which pagemap's reader finds out where it can.
std::vector<std::string> page_by_page(const std::vector<VmaExtent>& extents, PageSize page_size) {
  std::vector<std::string> pages;
  for (VmaExtent e : extents) {
    e.extent.leaf_shift = 0;
    while (e.extent.bytes != 0) {
      const Extent one = cut_front(e.extent, page_size.bytes(), page_size);
      pages.push_back(std::to_string(e.vma_start) + " " + describe(one, page_size));
    }
  }
  return pages;
}

std::string refusal(const SystemModel& system) {
  const Recorded tree(system);
  const auto translator = open_translator(tree.process(1));
  if (translator) return "opened";
  CHECK(translator.error().code == Errc::malformed);
  return translator.error().hint != nullptr ? translator.error().hint : "";
}

}  // namespace

TEST_CASE("random systems read from extents as from pagemap") {
  std::size_t extents = 0;
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    RandomOptions options;
    options.vmas = 1 + random() % 8;
    RandomSystem made = random_system(random, options);
    const Recorded plain(made.system);
    const bool shown = plain.root().pfn_access() == PfnAccess::full;
    for (ProcessModel& process : made.system.processes) {
      // Lines ascend; and pagemap may end early, where extents cannot say so.
      std::ranges::sort(process.entries, {}, &EntryRun::va);
      process.files["extents"] = as_text(process, made.system.page_size, shown);
      process.has_pagemap = false;
    }
    const Recorded compact(made.system);
    const PageSize page_size = plain.root().page_size();
    for (const ProcessModel& process : made.system.processes) {
      const auto from_pagemap = translate_whole(plain.process(process.pid));
      const auto from_extents = translate_whole(compact.process(process.pid));
      extents += from_pagemap.size();
      const auto expected = page_by_page(from_pagemap, page_size);
      const auto got = page_by_page(from_extents, page_size);
      REQUIRE(expected.size() == got.size());
      for (std::size_t i = 0; i < got.size(); ++i) REQUIRE(expected[i] == got[i]);
    }
  }
  CHECK(extents > 10'000);
}

TEST_CASE("a part of a recorded run is that part") {
  const Recorded tree(with_extents("vmem-extents 1 pagemap\n7f0000002000 8 pfn=100\nend\n"));
  const Process process = tree.process(1);
  const auto translator = open_translator(process);
  REQUIRE(translator);
  for (std::uint64_t from = 0; from < 12; ++from) {
    for (std::uint64_t to = from + 1; to <= 13; ++to) {
      VirtAddr at{base + from * page};
      const auto walked = (*translator)->walk({at, {base + to * page}}, {}, [&](const Extent& e) {
        CHECK(e.va == at);
        at = e.end();
        for (std::uint64_t i = 0; i < e.bytes / page; ++i) {
          const std::uint64_t index = (e.va.value - base) / page + i;
          CHECK((e.state == PageState::resident) == (index >= 2 && index < 10));
          if (e.state == PageState::resident) CHECK(e.pfn.value + i == 100 + index - 2);
        }
        return true;
      });
      CHECK(walked);
      CHECK(at == VirtAddr{base + to * page});
    }
  }
}

TEST_CASE("extents of page tables hold leaves, permissions and cache attributes") {
  const Recorded tree(
      with_extents("vmem-extents 1 kmod\n"
                   "7f0000000000 4 pfn=0x200 leaf=4096 bits=soft-dirty cache=wc\n"
                   "7f0000004000 2 pfn=0 pte=writable,user,accessed-varies\n"
                   "7f0000006000 1 guard\n"
                   "7f0000200000 512 pfn=0x400 leaf=2097152 cache=uc- pte=executable\n"
                   "end\n"));
  const Process process = tree.process(1);
  const auto translator = open_translator(process);
  REQUIRE(translator);
  CHECK((*translator)->backend() == Backend::kmod);
  CHECK((*translator)->sees_pfnmap());
  CHECK(((*translator)->known_bits() & page_bit::exclusive) == 0);
  std::vector<Extent> all;
  REQUIRE((*translator)->walk({{base}, {base + 1024 * page}}, {}, [&](const Extent& e) {
    all.push_back(e);
    return true;
  }));
  REQUIRE(all.size() == 5);
  CHECK(all[0].leaf_shift == 12);
  CHECK(all[0].bits == page_bit::soft_dirty);
  CHECK(pte_bit::cache(all[0].pte) == CacheAttribute::wc);
  CHECK((all[0].pte & 0xfff) == pte_bit::known);
  CHECK(all[1].state == PageState::resident);
  CHECK(all[1].pfn.value == 0);
  CHECK(all[1].leaf_shift == 0);
  CHECK(all[1].pte ==
        (pte_bit::known | pte_bit::writable | pte_bit::user | pte_bit::accessed_varies));
  CHECK(all[2].state == PageState::guard);
  CHECK(all[2].pte == 0);
  CHECK(all[3].state == PageState::absent);
  CHECK(all[3].bytes == 505 * page);
  CHECK(all[4].leaf_shift == 21);
  CHECK(all[4].pte ==
        (pte_bit::known | pte_bit::executable | pte_bit::cache(CacheAttribute::uc_minus)));
  for (const Extent& e : all) CHECK(e.backend == Backend::kmod);

  CHECK(open_translator(process, Backend::kmod));
  for (const Backend other : {Backend::pagemap, Backend::bpf}) {
    const auto forced = open_translator(process, other);
    REQUIRE(!forced);
    CHECK(forced.error().code == Errc::not_supported);
  }
}

TEST_CASE("what no recorder writes is refused, with the reason") {
  const auto with = [](const std::string& lines) {
    return refusal(with_extents("vmem-extents 1 pagemap\n" + lines));
  };
  CHECK(with("end\n") == "opened");
  CHECK(with("7f0000000000 1 pfn=1\nend\n") == "opened");
  CHECK(with("7f0000000000 1 pfn=1\nend") == "opened");
  CHECK(refusal(with_extents("")) == "no line `end`");
  CHECK(refusal(with_extents("vmem-extents 2 pagemap\nend\n")) == "an unknown version");
  CHECK(refusal(with_extents("vmem-extents 1 elsewhere\nend\n")) == "an unknown source");
  CHECK(refusal(with_extents("end\n")) == "it does not begin with vmem-extents");
  // Cut off, also in the middle of a number that is one without its last digits.
  CHECK(with("7f0000000000 1 pfn=12") == "no line `end`");
  CHECK(with("7f0000000000 1 pfn=12\n") == "no line `end`");
  CHECK(with("end\n7f0000000000 1 pfn=1\n") == "a line behind the end");
  CHECK(with("end\n\n") == "a line behind the end");
  const std::pair<const char*, const char*> wrong[] = {
      {"", "not the address of a page"},
      {"0x7f0000000000 1 pfn=1", "not the address of a page"},
      {"7f0000000001 1 pfn=1", "not the address of a page"},
      {"-1000 1 pfn=1", "not the address of a page"},
      {"10000000000000000 1 pfn=1", "not the address of a page"},
      {"7f0000000000 0 pfn=1", "not a number of pages"},
      {"7f0000000000 -1 pfn=1", "not a number of pages"},
      {"7f0000000000", "not a number of pages"},
      {"fffffffffffff000 1 pfn=1", "not a number of pages"},
      {"7f0000000000 4503599627370495 pfn=1", "not a number of pages"},
      {"7f0000000000 1 ", "not pfn=, entry=, hidden or guard"},
      {"7f0000000000  1 pfn=1", "not a number of pages"},
      {"7f0000000000 1 present", "not pfn=, entry=, hidden or guard"},
      {"7f0000000000 1 pfn=", "not a frame number"},
      {"7f0000000000 1 pfn=1x", "not a frame number"},
      {"7f0000000000 1 pfn=0x", "not a frame number"},
      {"7f0000000000 1 pfn=0x1000000000000", "not a frame number"},
      {"7f0000000000 2 pfn=0xffffffffffff", "numbers that grow too large"},
      {"7f0000000000 1 entry=0x10000000000000000", "not a pagemap entry"},
      {"7f0000000000 1 pfn=1 bits=", "an unknown bit"},
      {"7f0000000000 1 pfn=1 bits=file,", "an unknown bit"},
      {"7f0000000000 1 pfn=1 pte=user", "pte= or cache= where there is no page-table entry"},
      {"7f0000000000 1 pfn=1 cache=wc", "pte= or cache= where there is no page-table entry"},
      {"7f0000000000 1 entry=0 bits=file", "bits of no page"},
      {"7f0000000000 1 pfn=1 ", "an unknown word"},
      {"7f0000000000 1 entry=0x407fffffffffffe0", "opened"},
      {"7f0000000000 2 entry=0x407fffffffffffe0", "numbers that grow too large"},
      {"7f0000000000 1 pfn=1 leaf=2048", "not a leaf of these"},
      {"7f0000000000 1 pfn=1 leaf=12288", "not a leaf of these"},
      {"7f0000000000 1 pfn=1 leaf=2097152", "not a leaf of these"},
      {"7f0000000000 1 guard leaf=4096", "not a leaf of these"},
      {"7f0000000000 1 pfn=1 leaf=4096 leaf=4096", "not a leaf of these"},
      {"7f0000000000 1 pfn=1 x", "an unknown word"},
      {"7f0000000000 1 pfn=1\r", "not a frame number"},
  };
  for (const auto& [text, why] : wrong) {
    CAPTURE(text);
    CHECK(with(std::string(text) + "\nend\n") == why);
  }
  CHECK(with("7f0000001000 1 pfn=1\n7f0000000000 1 pfn=1\nend\n") == "lines that do not ascend");
  CHECK(with("7f0000000000 2 pfn=1\n7f0000001000 1 pfn=1\nend\n") == "lines that do not ascend");

  const auto tables = [](const std::string& lines) {
    return refusal(with_extents("vmem-extents 1 kmod\n" + lines + "\nend\n"));
  };
  CHECK(tables("7f0000000000 1 pfn=1 cache=wb cache=uc") == "not a cache attribute");
  CHECK(tables("7f0000000000 1 pfn=1 cache=unknown") == "not a cache attribute");
  CHECK(tables("7f0000000000 1 pfn=1 pte=rw") == "an unknown bit");
  CHECK(tables("7f0000000000 1 hidden pte=user,accessed") == "opened");
  const std::string varies = "a bit that varies and is set";
  CHECK(tables("7f0000000000 1 pfn=1 pte=accessed,accessed-varies") == varies);
  CHECK(tables("7f0000000000 1 pfn=1 pte=dirty-varies pte=dirty") == varies);
  CHECK(tables("7f0000000000 1 pfn=1 pte=accessed,dirty-varies") == "opened");
  const std::string no_entry = "pte= or cache= where there is no page-table entry";
  CHECK(tables("7f0000000000 1 guard pte=user") == no_entry);
  CHECK(tables("7f0000000000 1 entry=0 pte=user") == no_entry);
  CHECK(tables("7f0000000000 1 entry=0x40000000000000a2 cache=wc") == no_entry);
  const std::string untold = "a bit that this source does not tell";
  CHECK(tables("7f0000000000 1 pfn=1 bits=exclusive") == untold);
  CHECK(tables("7f0000000000 1 pfn=1 bits=soft-dirty,file") == untold);
  CHECK(tables("7f0000000000 1 entry=0xa100000000000001") == untold);

  SystemModel both = with_extents("vmem-extents 1 pagemap\nend\n");
  both.processes.front().has_pagemap = true;
  CHECK(refusal(both) == "there is a pagemap, too: which one holds?");
  both.processes.front().has_pagemap = false;
  both.links["proc/1/pagemap"] = "pagemap";
  CHECK(refusal(both) == "there is a pagemap, too: which one holds?");
}

TEST_CASE("of a leaf all pages are recorded") {
  const auto with = [](const std::string& lines) {
    return refusal(with_extents("vmem-extents 1 pagemap\n" + lines + "end\n"));
  };
  const std::string part = "a part of a leaf";
  CHECK(with("7f0000000000 512 pfn=0x200 leaf=2097152\n") == "opened");
  CHECK(with("7f0000000000 511 pfn=0x200 leaf=2097152\n") == part);
  CHECK(with("7f0000001000 511 pfn=0x201 leaf=2097152\n") == part);
  CHECK(with("7f0000000000 513 pfn=0x200 leaf=2097152\n") == part);
  CHECK(with("7f0000000000 16 hidden leaf=2097152\n") == part);
  // On several lines, where a bit is each page's own.
  const std::string begin = "7f0000000000 16 pfn=0x200 leaf=2097152\n";
  CHECK(with(begin + "7f0000010000 496 pfn=0x210 bits=exclusive leaf=2097152\n") == "opened");
  CHECK(with(begin + "7f0000010000 495 pfn=0x210 bits=exclusive leaf=2097152\n") == part);
  CHECK(with(begin + "7f0000010000 496 pfn=0x410 leaf=2097152\n") == part);
  CHECK(with(begin + "7f0000010000 496 hidden leaf=2097152\n") == part);
  CHECK(with(begin + "7f0000010000 496 pfn=0x210 leaf=4096\n") == part);
  CHECK(with(begin + "7f0000010000 496 pfn=0x210\n") == part);
  CHECK(with(begin + "7f0000011000 495 pfn=0x211 leaf=2097152\n") == part);
  CHECK(with("7f0000000000 16 hidden leaf=2097152\n7f0000010000 496 hidden leaf=2097152\n") ==
        "opened");
}

TEST_CASE("a driver's mapping recorded from pagemap alone stays unseen") {
  SystemModel system = with_extents("vmem-extents 1 pagemap\nend\n");
  system.processes.front().files["smaps"] =
      system.processes.front().maps + "VmFlags: rd wr sh mr mw me ms pf io de dd \n";
  const auto lines = told(Recorded(system));
  REQUIRE(lines.size() == 1);
  CHECK(lines[0].find("unseen") != std::string::npos);
}
