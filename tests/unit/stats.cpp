// SPDX-License-Identifier: MIT
/// Sums over synthetic systems, and against a naive reader that looks at one page after another.
#include "vmem/stats.hpp"

#include <fstream>
#include <map>
#include <random>

#include "support/catch.hpp"
#include "support/naive_twin.hpp"
#include "support/random_system.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

struct Summed {
  Vma vma;
  MemorySums sums;
  std::vector<std::pair<int, MemorySums>> by_node;
};

std::vector<Summed> sums_of(const Process& process, const StatsOptions& options = {}) {
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  StatsReader reader = StatsReader::open(process.root(), options);
  std::vector<Summed> all;
  const auto read = reader.read(process, **translator, inspector, [&](const VmaStats& s) {
    all.push_back({s.vma, s.sums, s.by_node});
    return true;
  });
  if (!read) FAIL(to_string(read.error()));
  return all;
}

constexpr std::uint64_t page = 4096;
const std::string anon_line = "10000000-10010000 rw-p 00000000 00:00 0 \n";

}  // namespace

TEST_CASE("shared pages divide among those who map them, without losing fractions") {
  // Five pages that three map: 5 * 4096 / 3 is 6826.67, and page by page 6825.
  SystemModel system = one_process(anon_line, {{0x10000000, 5, entry::present | 100, 1}});
  system.frames = {{100, 5, {}, 3, {}}};
  system.frames_end = 1000;
  const Recorded tree(system);
  const auto all = sums_of(tree.process(1));
  REQUIRE(all.size() == 1);
  const MemorySums& s = all[0].sums;
  CHECK(s.unknown == (unknown_sum::nodes | unknown_sum::smaps));
  CHECK(s.rss == 5 * page);
  CHECK(s.uss == 0);
  CHECK(s.pss() == 6826);
  CHECK(s.extents == 1);
  CHECK(s.largest_extent == 5 * page);
  CHECK(s.runs.entries() == std::vector<Tally::Entry>{{14, 1}});
}

TEST_CASE("zero page and frames beyond memory are in no count") {
  SystemModel system =
      one_process(anon_line, {{0x10000000, 3, entry::present | 7, 0},  // the zero page
                              {0x10003000, 2, entry::present | 0x4000000, 1},  // no memory
                              {0x10005000, 1, entry::present | entry::exclusive | 9, 0}});
  system.frames = {{7, 1, std::uint64_t{1} << 24, 0, {}}, {9, 1, 0, 1, {}}};
  system.frames_end = 100;
  const Recorded tree(system);
  const MemorySums s = sums_of(tree.process(1))[0].sums;
  CHECK(s.rss == page);
  CHECK(s.uss == page);
  CHECK(s.pss() == page);
  CHECK(s.uncounted == 5 * page);
  CHECK(s.mapped() == 6 * page);
  CHECK(s.extents == 5);
}

TEST_CASE("what kpagecount and smaps do not tell is unknown, and never 0") {
  const Recorded tree(
      one_process(anon_line, {{0x10000000, 2, entry::present | 7, 1},
                              {0x10002000, 1, entry::present | entry::exclusive | 3, 0}}));
  const MemorySums s = sums_of(tree.process(1))[0].sums;
  CHECK(!s.known(unknown_sum::rss));
  CHECK(!s.known(unknown_sum::pss));
  CHECK(!s.known(unknown_sum::uncounted));
  CHECK(!s.known(unknown_sum::nodes));
  CHECK(s.known(unknown_sum::uss));
  CHECK(s.uss == page);
  CHECK(s.known(unknown_sum::extents));
}

TEST_CASE("smaps fills in what pages do not tell; a kernel without a field leaves it unknown") {
  SystemModel system = one_process(anon_line, {{0x10000000, 2, entry::present | 7, 1}});
  system.processes[0].files["smaps"] =
      anon_line +
      "Rss:       8 kB\nPss:       3 kB\nPss_Dirty: 1 kB\n"
      "Private_Clean: 0 kB\nFutureField: 12 kB\nVmFlags: rd wr zz ?? \n";
  {
    const Recorded tree(system);
    const MemorySums s = sums_of(tree.process(1))[0].sums;
    CHECK(s.known(unknown_sum::rss | unknown_sum::pss | unknown_sum::uss | unknown_sum::swap));
    CHECK(s.rss == 8192);
    CHECK(s.pss() == 3072);
  }
  system.processes[0].files["smaps"] = anon_line + "Rss:       8 kB\nVmFlags: rd wr \n";
  const Recorded old(system);
  const MemorySums s = sums_of(old.process(1))[0].sums;
  CHECK(s.rss == 8192);
  CHECK(s.known(unknown_sum::rss));
  CHECK(!s.known(unknown_sum::pss));
}

TEST_CASE("pages of shared memory in swap are found in smaps, where swap is in use") {
  const std::string line =
      "10000000-10010000 rw-s 00000000 00:01 5                      /memfd:x (deleted)\n";
  SystemModel system = one_process(line, {});
  system.processes[0].files["mountinfo"] = "1 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
  system.processes[0].files["smaps"] = line + "Rss: 0 kB\nSwap:      20 kB\n";
  CHECK(sums_of(Recorded(system).process(1))[0].sums.swap == 0);
  const std::string heading = "Filename Type Size Used Priority\n";
  system.files["proc/swaps"] = heading + "/dev/sda2 partition 1000 0 -2\n";
  CHECK(sums_of(Recorded(system).process(1))[0].sums.swap == 0);
  system.files["proc/swaps"] = heading + "/dev/sda2 partition 1000 16 -2\n";
  CHECK(sums_of(Recorded(system).process(1))[0].sums.swap == 20 << 10);
  system.processes[0].files.erase("smaps");
  CHECK(!sums_of(Recorded(system).process(1))[0].sums.known(unknown_sum::swap));
}

TEST_CASE("NO_PAGE_MAPCOUNT: an average of 1 does not make a page private") {
  SystemModel system = one_process(anon_line, {{0x10000000, 4, entry::present | 16, 1}});
  system.frames = {{16, 4, {}, 1, {}}};
  const MemorySums s = sums_of(Recorded(system).process(1))[0].sums;
  CHECK(s.rss == 4 * page);
  CHECK(s.pss() == 4 * page);
  CHECK(s.uss == 0);
}

TEST_CASE("folios are as long as their head and tails, mapped or not; unknown flags are kept") {
  constexpr std::uint64_t head = 1 << 15, tail = 1 << 16, odd = std::uint64_t{1} << 43;
  SystemModel system =
      one_process(anon_line, {{0x10000000, 1, entry::present | entry::exclusive | 100, 0},
                              {0x10001000, 3, entry::present | entry::exclusive | 22, 1},
                              {0x10004000, 2, entry::present | entry::exclusive | 16, 1}});
  system.frames = {{16, 1, head, 1, {}},
                   {17, 15, tail, 1, {}},
                   {32, 1, head, 1, {}},
                   {33, 1, tail, 1, {}},
                   {100, 1, odd, 1, {}}};
  system.frames_end = 128;
  for (const unsigned threads : {1U, 2U}) {
    const MemorySums s =
        sums_of(Recorded(system).process(1), {.frames = true, .threads = threads})[0].sums;
    CHECK(s.framed == 6 * page);
    CHECK(s.folios.entries() == std::vector<Tally::Entry>{{12, page}, {16, 5 * page}});
    CHECK(s.flags.at(43) == page);
    CHECK(s.flags.at(15) == page);
  }
}

TEST_CASE("flags of scattered frames, some mapped twice, are those of a count frame by frame") {
  constexpr std::uint64_t pages = 65536, start = 0x10000000;  // enough for two threads to share
  constexpr std::uint64_t bits[] = {2, 3, 4, 5, 6, 12, 25, 43};
  std::mt19937_64 random(7);
  std::vector<std::uint64_t> flags(2 * pages);
  std::vector<EntryRun> runs;
  std::map<unsigned, std::uint64_t> wanted;
  for (std::uint64_t frame = 0; frame < flags.size(); ++frame) {
    for (const std::uint64_t bit : bits) flags[frame] |= (random() % 4 == 0 ? 1ULL : 0ULL) << bit;
  }
  for (std::uint64_t done = 0; done < pages;) {
    const std::uint64_t count = std::min<std::uint64_t>(1 + random() % 9, pages - done);
    const std::uint64_t first = random() % (flags.size() - count);
    runs.push_back({start + done * page, count, entry::present | entry::exclusive | first, 1});
    for (std::uint64_t frame = first; frame < first + count; ++frame) {
      for (const std::uint64_t bit : bits)
        if ((flags[frame] >> bit & 1) != 0) wanted[static_cast<unsigned>(bit)] += page;
    }
    done += count;
  }
  SystemModel model = one_process("10000000-20000000 rw-p 00000000 00:00 0 \n", runs);
  for (std::uint64_t frame = 0; frame < flags.size(); ++frame)
    model.frames.push_back({frame, 1, flags[frame], 1, {}});
  model.frames_end = flags.size();
  const Recorded tree(model);
  for (const unsigned threads : {1U, 2U}) {
    const MemorySums s = sums_of(tree.process(1), {.frames = true, .threads = threads})[0].sums;
    CHECK(s.known(unknown_sum::frames));
    CHECK(s.framed == pages * page);
    CHECK(s.folios.entries() == std::vector<Tally::Entry>{{12, pages * page}});
    CHECK(s.flags.entries() == std::vector<Tally::Entry>(wanted.begin(), wanted.end()));
  }
}

TEST_CASE("without kpageflags the flags are unknown, and the rest is known") {
  const Recorded tree(
      one_process(anon_line, {{0x10000000, 1, entry::present | entry::exclusive | 9, 0}}));
  const auto all = sums_of(tree.process(1), {.frames = true});
  CHECK(!all[0].sums.known(unknown_sum::frames));
  CHECK(all[0].sums.rss == page);
}

TEST_CASE("migration entries: counted by the kernel, and told by smaps alone") {
  SystemModel system = one_process(anon_line, {{0x10000000, 2, entry::swapped(29, 5), 0}});
  CHECK(!sums_of(Recorded(system).process(1))[0].sums.known(unknown_sum::rss));
  CHECK(sums_of(Recorded(system).process(1))[0].sums.special == 2 * page);
  system.processes[0].files["smaps"] = anon_line + "Rss: 8 kB\nPss: 8 kB\nPrivate_Dirty: 0 kB\n";
  CHECK(sums_of(Recorded(system).process(1))[0].sums.rss == 2 * page);
}

TEST_CASE("leaf sizes that nobody tells page by page are sums of smaps") {
  const std::string maps = "10000000-10800000 rw-p 00000000 00:00 0 \n";
  // Four blocks that may each be one leaf, and one page that is none.
  SystemModel system =
      one_process(maps, {{0x10000000, 1024, entry::present | entry::exclusive | 0x1000, 1},
                         {0x10600000, 1, entry::present | entry::exclusive | 0x77, 1}});
  constexpr std::uint64_t huge = 2 << 20;
  const auto leaves = [&](const std::string& smaps) {
    system.processes[0].files["smaps"] = maps + smaps;
    return sums_of(Recorded(system).process(1))[0].sums.leaf.entries();
  };
  using Entries = std::vector<Tally::Entry>;
  const std::string rss = "Rss: 4100 kB\n";
  CHECK(leaves(rss + "AnonHugePages: 2048 kB\n") == Entries{{12, huge + page}, {21, huge}});
  CHECK(leaves(rss + "AnonHugePages: 0 kB\n") == Entries{{12, 2 * huge + page}});
  CHECK(leaves(rss + "AnonHugePages: 0 kB\nShmemPmdMapped: 2048 kB\nFilePmdMapped: 2048 kB\n") ==
        Entries{{12, page}, {21, 2 * huge}});
  // What does not fit is not believed: other pages by now, or pages that smaps does not count.
  const Entries untold{{0, 2 * huge}, {12, page}};
  CHECK(leaves(rss + "AnonHugePages: 6144 kB\n") == untold);
  CHECK(leaves("Rss: 4096 kB\nAnonHugePages: 2048 kB\n") == untold);
  CHECK(leaves(rss) == untold);
  CHECK(leaves("") == untold);
  // The huge zero page is in no sum.
  system.processes[0].entries = {{0x10000000, 1024, entry::present | entry::file | 0x1000, 1}};
  system.frames = {{.first = 0x1000, .frames = 512, .flags = {}, .mapcount = 1, .memcg = {}},
                   {.first = 0x1200, .frames = 512, .flags = {}, .mapcount = 0, .memcg = {}}};
  CHECK(leaves("Rss: 2048 kB\nAnonHugePages: 2048 kB\n") == Entries{{0, 2 * huge}});
}

TEST_CASE("bytes by NUMA node") {
  const Recorded tree("arm64-64k");
  std::map<int, std::uint64_t> nodes, apart;
  for (const Summed& s : sums_of(tree.process(2001), {.by_node = true})) {
    CHECK(s.sums.known(unknown_sum::nodes));
    for (const auto& [node, bytes] : s.sums.nodes.entries()) nodes[static_cast<int>(node)] += bytes;
    for (const auto& [node, sums] : s.by_node) {
      apart[node] += sums.rss + sums.hugetlb;
      std::uint64_t leaf = 0;
      for (const auto& [shift, bytes] : sums.leaf.entries()) leaf += bytes;
      CHECK(leaf == sums.rss + sums.hugetlb);
      CHECK_FALSE(sums.known(unknown_sum::extents));
    }
  }
  CHECK(nodes.size() == 2);
  CHECK(nodes == apart);
}

TEST_CASE("leaf sizes of a machine") {
  CHECK(leaf_shifts(PageSize{4096}) == std::vector<unsigned>{12, 21, 30});
  CHECK(leaf_shifts(PageSize{65536}) == std::vector<unsigned>{16, 29});
}

TEST_CASE("sums add up, and what is unknown of a part is unknown of the whole") {
  MemorySums a, b;
  a.rss = 4096;
  a.largest_extent = 8;
  a.nodes.add(1, 5);
  b.rss = 1;
  b.largest_extent = 9;
  b.nodes.add(0, 2);
  b.nodes.add(1, 1);
  b.unknown = unknown_sum::pss;
  a.add(b);
  CHECK(a.rss == 4097);
  CHECK(a.largest_extent == 9);
  CHECK(a.nodes.entries() == std::vector<Tally::Entry>{{0, 2}, {1, 6}});
  CHECK(a.unknown == unknown_sum::pss);
  a.clear();
  CHECK(a.rss == 0);
  CHECK(a.nodes.empty());
  CHECK(a.unknown == 0);
}

// ---- every sum against every source that may be missing: never silently less

namespace {

constexpr const char* sources[] = {"kpagecount", "kpageflags", "smaps",    "sysfs nodes",
                                   "iomem",      "PFNs",       "numa_maps"};
constexpr unsigned no_counts = 1, no_flags = 2, no_smaps = 4, no_nodes = 8, no_iomem = 16,
                   no_pfns = 32, no_numa_maps = 64, all_sources = 127;

/// Anonymous memory (shared, private, zero page, on two nodes), a file, shared memory with pages in
/// swap, and hugetlb: all that is known of them if nothing is missing.
SystemModel whole_system(unsigned missing) {
  const bool hidden = (missing & no_pfns) != 0;
  const std::vector<std::string> lines = {
      "10000000-10010000 rw-p 00000000 00:00 0 \n",
      "20000000-20010000 r-xp 00000000 08:01 55                     /usr/lib/b.so\n",
      "30000000-30010000 rw-s 00000000 00:01 5                      /memfd:x (deleted)\n",
      "40000000-40200000 rw-s 00000000 00:0e 9                      /mnt/huge/x\n"};
  std::string maps;
  for (const std::string& line : lines) maps += line;
  const std::uint64_t once = entry::present | entry::exclusive, once_file = once | entry::file,
                      file = entry::present | entry::file;
  std::vector<EntryRun> entries = {
      {0x10000000, 4, once | 0x100, 1},       {0x10004000, 2, entry::present | 0x200, 1},
      {0x10006000, 1, entry::present | 7, 1}, {0x10007000, 2, entry::present | 0x8100, 1},
      {0x20000000, 4, file | 0x300, 1},       {0x20004000, 1, once_file | 0x8200, 1},
      {0x30000000, 2, file | 0x400, 1},       {0x40000000, 512, once_file | 0x9000, 1}};
  SystemModel system = one_process(
      maps, std::move(entries),
      std::string("vmem-tree 1\npage_size 4096\npfn_access ") + (hidden ? "hidden\n" : "full\n"));
  if (hidden) {
    for (EntryRun& run : system.processes[0].entries) {
      run.first &= ~0xffffffULL;
      run.step = 0;
    }
  }
  const auto frames = [&](std::uint64_t first, std::uint64_t count, std::uint64_t flags,
                          std::uint64_t mapcount) {
    FrameRun run{first, count, {}, {}, {}};
    if ((missing & no_flags) == 0) run.flags = flags;
    if ((missing & no_counts) == 0) run.mapcount = mapcount;
    if (run.flags || run.mapcount) system.frames.push_back(run);
  };
  frames(7, 1, std::uint64_t{1} << 24, 0);
  frames(0x100, 4, 1 << 12, 1);
  frames(0x200, 2, 1 << 12, 2);
  frames(0x300, 4, 1 << 3, 4);
  frames(0x400, 2, 1 << 4, 2);
  frames(0x8100, 2, 1 << 12, 4);
  frames(0x8200, 1, 1 << 3, 1);
  frames(0x9000, 512, 1 << 17, 1);
  system.frames_end = 0x9200;
  auto& files = system.processes[0].files;
  files["mountinfo"] =
      "1 1 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:14 / /mnt/huge rw - hugetlbfs none rw\n";
  if ((missing & no_smaps) == 0) {
    const auto fields = [](const char* numbers) {
      return std::string(numbers) + "Pss_Dirty: 4 kB\nReferenced: 8 kB\nLazyFree: 4 kB\n" +
             "SwapPss: 4 kB\nLocked: 0 kB\n";
    };
    files["smaps"] = lines[0] +
                     fields(
                         "Rss: 32 kB\nPss: 22 kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: 16 kB\n"
                         "Swap: 0 kB\nKernelPageSize: 4 kB\n") +
                     lines[1] +
                     fields(
                         "Rss: 20 kB\nPss: 8 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 0 kB\n"
                         "Swap: 0 kB\nKernelPageSize: 4 kB\n") +
                     lines[2] +
                     fields(
                         "Rss: 8 kB\nPss: 4 kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: 0 kB\n"
                         "Swap: 20 kB\nKernelPageSize: 4 kB\n") +
                     lines[3] +
                     fields(
                         "Rss: 0 kB\nPss: 0 kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: 0 kB\n"
                         "Swap: 0 kB\nPrivate_Hugetlb: 2048 kB\nKernelPageSize: 2048 kB\n");
  }
  if ((missing & no_numa_maps) == 0) {
    files["numa_maps"] =
        "10000000 default anon=8 dirty=8 N0=6 N1=2 kernelpagesize_kB=4\n"
        "20000000 bind=static:0 file=/usr/lib/b.so mapped=5 N0=4 N1=1 kernelpagesize_kB=4\n"
        "30000000 weighted interleave:0-1 file=/memfd:x\\040(deleted) N0=2 kernelpagesize_kB=4\n"
        "40000000 prefer (many):0-1 file=/mnt/huge/x huge N1=1 kernelpagesize_kB=2048\n";
  }
  if ((missing & no_nodes) == 0) {
    system.files["sys/devices/system/memory/block_size_bytes"] = "8000000\n";
    system.files["sys/devices/system/node/node0/memory0/state"] = "online\n";
    system.files["sys/devices/system/node/node1/memory1/state"] = "online\n";
  }
  if ((missing & no_iomem) == 0) system.files["proc/iomem"] = "00000000-0fffffff : System RAM\n";
  system.files["proc/swaps"] = "Filename Type Size Used Priority\n/dev/sda2 partition 1000 16 -2\n";
  return system;
}

std::uint64_t bytes_of(const Tally& tally) {
  std::uint64_t bytes = 0;
  for (const auto& [key, amount] : tally.entries()) bytes += amount;
  return bytes;
}

}  // namespace

TEST_CASE("a sum is the whole or unknown, whatever sources are missing") {
  const StatsOptions options{.frames = true, .smaps = true, .policy = true, .by_node = true};
  const auto whole = sums_of(Recorded(whole_system(0)).process(1), options);
  REQUIRE(whole.size() == 4);
  const std::uint64_t rss[] = {8, 5, 2, 0}, uss[] = {4, 1, 0, 0};
  for (std::size_t i = 0; i < whole.size(); ++i) {
    INFO("VMA " << i);
    CHECK(whole[i].sums.unknown == 0);
    CHECK(whole[i].sums.rss == rss[i] * page);
    CHECK(whole[i].sums.uss == uss[i] * page);
  }
  CHECK(whole[0].sums.pss() == 22 << 10);
  CHECK(whole[0].sums.uncounted == page);
  CHECK(whole[2].sums.swap == 20 << 10);
  CHECK(whole[3].sums.hugetlb == 512 * page);
  CHECK(whole[0].sums.nodes.entries() == std::vector<Tally::Entry>{{0, 6 * page}, {1, 2 * page}});

  unsigned told = 0;
  for (unsigned missing = 0; missing <= all_sources; ++missing) {
    std::string names;
    for (unsigned i = 0; i < std::size(sources); ++i)
      if ((missing >> i & 1) != 0) names += std::string(names.empty() ? "" : ", ") + sources[i];
    INFO("missing: " << names);
    const auto all = sums_of(Recorded(whole_system(missing)).process(1), options);
    REQUIRE(all.size() == 4);
    for (std::size_t i = 0; i < all.size(); ++i) {
      INFO("VMA " << i);
      const MemorySums &s = all[i].sums, &w = whole[i].sums;
      namespace u = unknown_sum;
      const auto same = [&](const char* name, std::uint32_t which, auto got, auto wanted) {
        INFO(name);
        if (!s.known(which)) return;
        CHECK(got == wanted);
        ++told;
      };
      same("rss", u::rss, s.rss, w.rss);
      same("pss", u::pss, s.pss(), w.pss());
      same("uss", u::uss, s.uss, w.uss);
      same("swap", u::swap, s.swap, w.swap);
      same("hugetlb", u::hugetlb, s.hugetlb, w.hugetlb);
      same("hugetlb_private", u::hugetlb, s.hugetlb_private, w.hugetlb_private);
      same("device", u::device, s.device, w.device);
      same("uncounted", u::uncounted, s.uncounted, w.uncounted);
      same("mapped", u::rss | u::hugetlb | u::device | u::uncounted, s.mapped(), w.mapped());
      same("nodes", u::nodes, s.nodes.entries(), w.nodes.entries());
      same("leaf", u::leaf, bytes_of(s.leaf), bytes_of(w.leaf));
      same("extents", u::extents, s.extents, w.extents);
      same("largest", u::extents, s.largest_extent, w.largest_extent);
      same("flags", u::frames, s.flags.entries(), w.flags.entries());
      same("folios", u::frames, bytes_of(s.folios), bytes_of(w.folios));
      same("framed", u::frames, s.framed, w.framed);
      same("pss_dirty", u::pss_dirty, s.pss_dirty, w.pss_dirty);
      same("accessed", u::accessed, s.accessed, w.accessed);
      same("lazyfree", u::lazyfree, s.lazyfree, w.lazyfree);
      same("swap_pss", u::swap_pss, s.swap_pss, w.swap_pss);
      same("locked", u::locked, s.locked, w.locked);
      // By node: the rows are the whole, or one says that there is more.
      const bool more = !all[i].by_node.empty() && all[i].by_node.front().first < 0;
      if (!s.known(u::nodes)) {
        CHECK((more || w.mapped() == 0));
      } else {
        CHECK(more == !s.known(u::rss));
        for (const auto& [node, sums] : all[i].by_node) {
          const auto of = [](const std::vector<std::pair<int, MemorySums>>& list, int wanted) {
            for (const auto& [key, value] : list)
              if (key == wanted) return value;
            return MemorySums{};
          };
          INFO("node " << node);
          const MemorySums there = of(whole[i].by_node, node);
          if (sums.known(u::rss)) CHECK(sums.rss == there.rss);
          if (sums.known(u::uss)) CHECK(sums.uss == there.uss);
          if (sums.known(u::pss)) CHECK(sums.pss() == there.pss());
          if (sums.known(u::hugetlb)) CHECK(sums.hugetlb_private == there.hugetlb_private);
        }
      }
      if ((missing & (no_smaps | no_counts)) == (no_smaps | no_counts)) {
        CHECK(s.known(u::pss) == (i == 3));
        if (i == 0) CHECK_FALSE(s.known(u::rss));
        if (i == 0) CHECK_FALSE(s.known(u::uncounted));
      } else if ((missing & no_smaps) == 0 || (missing & no_pfns) == 0) {
        CHECK(s.known(u::rss));
      }
    }
    // What kpagecount alone tells is not needed for the nodes of known frames.
    if (missing == no_counts) {
      for (const Summed& s : all) CHECK(s.sums.known(unknown_sum::nodes));
      CHECK(all[0].sums.known(unknown_sum::uncounted));
    }
    if (missing == no_pfns || missing == no_nodes) {
      for (const Summed& s : all) CHECK(s.sums.known(unknown_sum::nodes));
    }
  }
  CHECK(told > 5000);
}

TEST_CASE("memory policies are those of numa_maps, also of names with a space") {
  const Recorded tree(whole_system(0));
  const Process process = tree.process(1);
  const auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  for (const bool asked : {true, false}) {
    StatsReader reader = StatsReader::open(process.root(), {.policy = asked});
    std::vector<std::string> policies;
    REQUIRE(reader.read(process, **translator, inspector, [&](const VmaStats& s) {
      policies.emplace_back(s.policy);
      return true;
    }));
    CHECK(policies ==
          (asked ? std::vector<std::string>{"default", "bind=static:0", "weighted interleave:0-1",
                                            "prefer (many):0-1"}
                 : std::vector<std::string>(4)));
  }
}

TEST_CASE("odd lines of numa_maps are passed over, and pages of no known size have no bytes") {
  SystemModel system = whole_system(no_nodes);
  auto& text = system.processes[0].files["numa_maps"];
  text =
      "zzz default N0=1\n\n10000000\n10000000 default N0=6 N1=2\n"
      "20000000 default N0=99999999999999999999 N1=5 kernelpagesize_kB=4\n"
      "30000000 local N0=18446744073709551615 kernelpagesize_kB=4\n"
      "30000000 local N0=2 N70000=1 kernelpagesize_kB=3\n";
  const auto all = sums_of(Recorded(system).process(1));
  CHECK_FALSE(all[0].sums.known(unknown_sum::nodes));
  CHECK(all[1].sums.nodes.entries() == std::vector<Tally::Entry>{{1, 5 * page}});
  CHECK_FALSE(all[2].sums.known(unknown_sum::nodes));
  CHECK_FALSE(all[3].sums.known(unknown_sum::nodes));
}

TEST_CASE("page tables alone: what is private is told by kpagecount, or by pagemap") {
  // Once by a kernel whose counts are of pages, once by one whose counts may be averages.
  for (const auto& [release, known] : {std::pair{"6.12.9", true}, std::pair{"6.18.1", false}}) {
    INFO(release);
    SystemModel system = one_process(
        anon_line, {},
        std::string("vmem-tree 1\npage_size 4096\npfn_access full\nkernel ") + release + "\n");
    system.processes[0].has_pagemap = false;
    system.processes[0].files["extents"] =
        "vmem-extents 1 bpf\n"
        "10000000 4 pfn=0x100 leaf=4096 pte=writable,user,accessed,dirty\n"
        "10004000 2 pfn=0x200 leaf=4096 pte=user,accessed\n"
        "end\n";
    system.frames = {{0x100, 4, {}, 1, {}}, {0x200, 2, {}, 2, {}}};
    const Recorded tree(system);
    const Process process = tree.process(1);
    const auto translator = open_translator(process);
    REQUIRE(translator);
    REQUIRE((*translator)->backend() == Backend::bpf);
    VmaInspector inspector(process);
    StatsReader reader = StatsReader::open(process.root(), {});
    unsigned vmas = 0;
    REQUIRE(reader.read(process, **translator, inspector, [&](const VmaStats& s) {
      ++vmas;
      CHECK(s.sums.known(unknown_sum::rss | unknown_sum::pss));
      CHECK(s.sums.rss == 6 * page);
      CHECK(s.sums.pss() == 5 * page);
      CHECK(s.sums.known(unknown_sum::uss) == known);
      if (known) CHECK(s.sums.uss == 4 * page);
      return true;
    }));
    CHECK(vmas == 1);
  }
}

// ---- a naive twin: one page after another, with its own decoding

namespace {

class File {
 public:
  explicit File(const std::filesystem::path& path) : in_(path, std::ios::binary) {}
  std::optional<std::uint64_t> at(std::uint64_t index) {
    std::uint64_t value = 0;
    in_.clear();
    in_.seekg(static_cast<std::streamoff>(index * 8));
    if (!in_.read(reinterpret_cast<char*>(&value), 8)) return {};
    return value;
  }

 private:
  std::ifstream in_;
};

struct Naive {
  std::uint64_t rss = 0, uss = 0, swap = 0, uncounted = 0, guard = 0, extents = 0, largest = 0;
  double pss = 0;
  bool doubtful = false;
};

Naive naive(const std::filesystem::path& tree, const Vma& vma, std::uint64_t page_size) {
  File pagemap(tree / "proc/1/pagemap");
  File counts(tree / "proc/kpagecount");
  Naive n;
  std::uint64_t next = UINT64_MAX;  ///< the frame that would go on the run
  std::uint64_t run = 0;
  for (std::uint64_t va = vma.range.start.value; va < vma.range.end.value; va += page_size) {
    const std::uint64_t e = pagemap.at(va / page_size).value_or(0);
    const TwinPage p = twin_decode(e, true);
    if (p.state == PageState::swapped) n.swap += page_size;
    if (p.state == PageState::guard) n.guard += page_size;
    if (p.reason == Reason::migration_or_device) n.doubtful = true;
    if (p.state != PageState::resident) {
      next = UINT64_MAX;
      continue;
    }
    const std::uint64_t count = counts.at(p.number).value_or(0);
    const bool exclusive = (e >> 56 & 1) != 0, file = (e >> 61 & 1) != 0;
    if (!exclusive && !file && count == 0) {
      n.uncounted += page_size;
    } else {
      n.rss += page_size;
      if (exclusive || count == 0) n.uss += page_size;
      n.pss += static_cast<double>(page_size) /
               (exclusive || count == 0 ? 1.0 : static_cast<double>(count));
    }
    if (next != p.number) {
      ++n.extents;
      run = 0;
    }
    run += page_size;
    n.largest = std::max(n.largest, run);
    next = p.number + 1;
  }
  return n;
}

}  // namespace

TEST_CASE("KSM is not known of kernels that say it of all anonymous memory") {
  for (const auto& [release, told] : {std::pair{"6.12.9", false}, std::pair{"6.18.1", true}}) {
    SystemModel system = one_process(
        "1000-3000 rw-p 00000000 00:00 0 \n",
        {{.va = 0x1000, .pages = 2, .first = entry::present | 5, .step = 1}},
        std::string("vmem-tree 1\npage_size 4096\npfn_access full\nkernel ") + release + "\n");
    system.frames = {
        {.first = 5, .frames = 2, .flags = 1 << 21 | 1 << 12, .mapcount = 1, .memcg = {}}};
    const Recorded tree{system};
    const auto all = sums_of(tree.process(1), {.frames = true});
    REQUIRE(all.size() == 1);
    CHECK(all[0].sums.framed == 0x2000);
    CHECK(all[0].sums.flags.at(12) == 0x2000);
    CHECK(all[0].sums.known(unknown_sum::ksm) == told);
    CHECK(all[0].sums.flags.at(21) == (told ? 0x2000 : 0));
    // KSM that was never switched on has merged nothing.
    for (const char* const file : {"run", "pages_scanned", "full_scans"})
      system.files[std::string("sys/kernel/mm/ksm/") + file] = "0\n";
    const Recorded idle{system};
    const auto sums = sums_of(idle.process(1), {.frames = true})[0].sums;
    CHECK(sums.known(unknown_sum::ksm));
    CHECK(sums.flags.at(21) == (told ? 0x2000 : 0));
  }
}

TEST_CASE("sums of random systems are those of a naive reader") {
  std::mt19937_64 random(20260727);
  std::uint64_t rss = 0;
  for (int round = 0; round < 60; ++round) {
    RandomOptions how;
    how.page_size = round % 3 == 0 ? 65536 : 4096;
    RandomSystem made = random_system(random, how);
    // Counts for the low frames; what lies above is past the end of the file.
    for (std::uint64_t frame = 0; frame < 4096; frame += 1 + random() % 7)
      made.system.frames.push_back({frame, 1, random() & 0x7ff, random() % 5, {}});
    if (!made.twin.proven) continue;
    const Recorded tree(made.system);
    const auto all = sums_of(tree.process(1), {.threads = 1 + static_cast<unsigned>(round % 2)});
    REQUIRE(all.size() == made.twin.vmas.size());
    for (std::size_t i = 0; i < all.size(); ++i) {
      const MemorySums& s = all[i].sums;
      if (made.twin.vmas[i].sight != TwinVma::Sight::ordinary || s.unseen != 0) continue;
      if (all[i].vma.path.find("huge") != std::string::npos || s.hugetlb != 0) continue;
      INFO("round " << round << " VMA " << all[i].vma.range.start.value << " " << all[i].vma.path);
      const Naive n = naive(tree.directory().path(), all[i].vma, how.page_size);
      CHECK(s.swap == n.swap);
      CHECK(s.guard == n.guard);
      CHECK(s.extents == n.extents);
      CHECK(s.largest_extent == n.largest);
      CHECK(s.known(unknown_sum::rss) == !n.doubtful);
      if (n.doubtful) continue;
      rss += s.rss;
      CHECK(s.rss == n.rss);
      CHECK(s.uss == n.uss);
      CHECK(s.uncounted + s.device == n.uncounted);
      // The kernel's fixed point loses less than 2^-12 bytes a page.
      CHECK(static_cast<double>(s.pss()) <= n.pss + 1e-3);
      CHECK(static_cast<double>(s.pss()) > n.pss - 2);
    }
  }
  CHECK(rss != 0);
}
