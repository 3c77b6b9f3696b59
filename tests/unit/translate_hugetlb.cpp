// SPDX-License-Identifier: MIT
/// Recorded hugetlb mappings, of which one entry may be read for each page: what comes out must be
/// what every entry says.
#include <cstdio>

#include "support/catch.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t base = 0x7f0000000000, page = 4096;
constexpr std::uint64_t huge = std::uint64_t{2} << 20, giant = std::uint64_t{1} << 30;
constexpr std::uint64_t mine = entry::present | entry::exclusive | entry::file;

std::string line_of(std::uint64_t bytes) {
  char text[128];
  (void)std::snprintf(text, sizeof text, "%llx-%llx rw-s 00000000 00:1e 7    /dev/hugepages/x\n",
                      static_cast<unsigned long long>(base),
                      static_cast<unsigned long long>(base + bytes));
  return text;
}

SystemModel hugetlb(std::uint64_t bytes, std::uint64_t size, std::vector<EntryRun> entries) {
  SystemModel system = one_process(line_of(bytes), std::move(entries));
  auto& files = system.processes.front().files;
  files["mountinfo"] = "30 20 0:30 / /dev/hugepages rw - hugetlbfs hugetlbfs rw\n";
  files["smaps"] = line_of(bytes) + "KernelPageSize: " + std::to_string(size >> 10) +
                   " kB\nVmFlags: rd wr sh mr mw me ms de ht \n";
  return system;
}

/// One run for each page of `size`; the frames of neighbours do not follow each other.
std::vector<EntryRun> pages(std::uint64_t first, std::uint64_t count, std::uint64_t size) {
  std::vector<EntryRun> runs;
  for (std::uint64_t i = first; i < first + count; ++i) {
    runs.push_back({.va = base + i * size,
                    .pages = size / page,
                    .first = mine | (((i ^ 1) + 1) * (size / page)),
                    .step = 1});
  }
  return runs;
}

std::vector<std::string> told(const Recorded& tree, VaRange range, bool every_page) {
  WalkOptions options;
  options.every_page = every_page;
  options.whole_hugetlb = true;
  std::vector<std::string> lines;
  for (const VmaExtent& e : translate_range(tree.process(1), range, options)) {
    lines.push_back(describe(e.extent, PageSize{page}));
  }
  return lines;
}

}  // namespace

TEST_CASE("recorded hugetlb: every page, its leaf size, and the holes between them") {
  // 64 pages of 2 MiB, of which [10, 20) are not there.
  std::vector<EntryRun> entries = pages(0, 10, huge);
  for (const EntryRun& run : pages(20, 44, huge)) entries.push_back(run);
  const Recorded tree(hugetlb(64 * huge, huge, entries));
  for (const WalkOptions& options : {WalkOptions{}, WalkOptions{.whole_hugetlb = true},
                                     WalkOptions{.every_page = true, .whole_hugetlb = true}}) {
    const auto extents = translate_range(tree.process(1), {{base}, {base + 64 * huge}}, options);
    REQUIRE(extents.size() == 55);
    std::uint64_t at = base;
    for (const VmaExtent& e : extents) {
      CHECK(e.extent.va.value == at);
      at += e.extent.bytes;
      const std::uint64_t i = (e.extent.va.value - base) / huge;
      if (i == 10) {
        CHECK(e.extent.state == PageState::absent);
        CHECK(e.extent.bytes == 10 * huge);
        continue;
      }
      CHECK(e.extent.state == PageState::resident);
      CHECK(e.extent.pfn.value == ((i ^ 1) + 1) * 512);
      CHECK(e.extent.bits == (page_bit::exclusive | page_bit::file));
      CHECK(e.extent.leaf_shift == 21);
    }
    CHECK(at == base + 64 * huge);
  }
}

TEST_CASE("recorded hugetlb: a range that begins and ends within pages") {
  const Recorded tree(hugetlb(64 * huge, huge, pages(0, 64, huge)));
  const auto extents = translate_range(
      tree.process(1), {{base + 3 * page}, {base + 62 * huge + 7 * page}}, {.whole_hugetlb = true});
  REQUIRE(extents.size() == 63);
  CHECK(extents.front().extent.pfn.value == 2 * 512 + 3);
  CHECK(extents.front().extent.bytes == huge - 3 * page);
  CHECK(extents.back().extent.pfn.value == 64 * 512);
  CHECK(extents.back().extent.bytes == 7 * page);
}

TEST_CASE("recorded hugetlb: pages of 1 GiB") {
  const Recorded tree(hugetlb(3 * giant, giant, pages(0, 2, giant)));
  const std::vector<std::string> lines = {
      "7f0000000000 +262144 resident pfn=80000 exclusive file leaf=30",
      "7f0040000000 +262144 resident pfn=40000 exclusive file leaf=30",
      "7f0080000000 +262144 absent"};
  CHECK(told(tree, {{base}, {base + 3 * giant}}, false) == lines);
}

TEST_CASE("recorded hugetlb: what no page of that size can look like is read entry by entry") {
  auto entries = pages(0, 64, huge);
  // The last entry of page 8 is gone, and page 12 lies in frames where none can.
  entries[8].pages = 511;
  entries[12].first += 1;
  const Recorded tree(hugetlb(64 * huge, huge, entries));
  const auto eight = translate_range(tree.process(1), {{base + 8 * huge}, {base + 64 * huge}},
                                     {.whole_hugetlb = true});
  REQUIRE(eight.size() == 57);
  CHECK(eight[0].extent.bytes == huge - page);
  CHECK(eight[1].extent.state == PageState::absent);
  CHECK(eight[1].extent.bytes == page);
  CHECK(eight[5].extent.pfn.value == 13 * 512 + 512 + 1);
}

TEST_CASE("recorded hugetlb: a frame within a page that is another one is seen, unless not asked") {
  auto entries = pages(0, 64, huge);
  entries[7].pages = 100;
  entries.push_back({.va = base + 7 * huge + 100 * page, .first = mine | 0x999999, .step = 0});
  entries.push_back({.va = base + 7 * huge + 101 * page,
                     .pages = 411,
                     .first = (mine | ((7 ^ 1) + 1) * 512) + 101,
                     .step = 1});
  const Recorded tree(hugetlb(64 * huge, huge, entries));
  const VaRange all{{base}, {base + 64 * huge}};
  const auto seen = translate_range(tree.process(1), all);
  REQUIRE(seen.size() == 66);
  CHECK(seen[8].extent.pfn.value == 0x999999);
  CHECK(seen[8].extent.bytes == page);
  CHECK(translate_range(tree.process(1), all, {.whole_hugetlb = true}).size() == 64);
}

TEST_CASE("recorded hugetlb: a record that ends early says so, wherever it ends") {
  for (const std::uint64_t cut : {std::uint64_t{8}, std::uint64_t{1024}, 3 * huge / page * 8}) {
    SystemModel system = hugetlb(64 * huge, huge, pages(0, 64, huge));
    system.processes.front().pagemap_bytes = (base + 64 * huge) / page * 8 - cut;
    const Recorded tree(system);
    const Process process = tree.process(1);
    auto translator = open_translator(process);
    REQUIRE(translator);
    VmaInspector inspector(process);
    const auto read =
        translate(process, **translator, inspector, {{base}, {base + 64 * huge}},
                  {.whole_hugetlb = true}, [](const Vma*, const Extent&) { return true; });
    REQUIRE_FALSE(read);
    CHECK(read.error().code == Errc::malformed);
  }
}
