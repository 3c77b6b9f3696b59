// SPDX-License-Identifier: MIT
#include "vmem/frames.hpp"

#include <random>
#include <set>
#include <vector>

#include "support/catch.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

struct Run {
  Pfn first;
  std::uint64_t frames;
  FrameFacts facts;
};

std::vector<Run> read(const SysRoot& root, std::uint64_t first, std::uint64_t frames) {
  auto reader = FrameReader::open(root);
  if (!reader) FAIL(to_string(reader.error()));
  std::vector<Run> runs;
  const auto result =
      reader->read({first}, frames, [&](Pfn pfn, std::uint64_t count, const FrameFacts& facts) {
        runs.push_back({pfn, count, facts});
        return true;
      });
  if (!result) FAIL(to_string(result.error()));
  return runs;
}

SystemModel with_frames(std::vector<FrameRun> runs) {
  SystemModel system;
  system.frames = std::move(runs);
  return system;
}

constexpr std::uint8_t all =
    FrameFacts::has_flags | FrameFacts::has_mapcount | FrameFacts::has_memcg;

}  // namespace

TEST_CASE("every flag has a name of its own, without a name it is bitN") {
  std::set<std::string> names;
  for (unsigned bit = 0; bit < 64; ++bit) names.insert(frame_flag_name(bit));
  CHECK(names.size() == 64);
  CHECK(frame_flag_name(0) == "locked");
  CHECK(frame_flag_name(5) == "lru");
  CHECK(frame_flag_name(15) == "compound_head");
  CHECK(frame_flag_name(20) == "nopage");
  CHECK(frame_flag_name(22) == "thp");
  CHECK(frame_flag_name(24) == "zero_page");
  CHECK(frame_flag_name(26) == "pgtable");
  CHECK(frame_flag_name(32) == "reserved");
  CHECK(frame_flag_name(42) == "arch_3");
  CHECK(frame_flag_name(27) == "bit27");
  CHECK(frame_flag_name(31) == "bit31");
  CHECK(frame_flag_name(43) == "bit43");
  CHECK(frame_flag_name(63) == "bit63");
  CHECK(frame_flag_names(0).empty());
  CHECK(frame_flag_names(1ULL << 63 | 1ULL << 43 | 0x828) ==
        std::vector<std::string>{"uptodate", "lru", "mmap", "bit43", "bit63"});
  CHECK(frame_flag_names(~0ULL).size() == 64);
}

TEST_CASE("runs of equal facts tile the question") {
  const Recorded tree(
      with_frames({{0x10, 4, 0x828, 1, 35}, {0x14, 4, 0x828, 2, 35}, {0x18, 8, 0x0, 0, 0}}));
  const auto runs = read(tree.root(), 0x11, 10);
  REQUIRE(runs.size() == 3);
  CHECK(runs[0].first == Pfn{0x11});
  CHECK(runs[0].frames == 3);
  CHECK(runs[0].facts == FrameFacts{0x828, 1, 35, all});
  CHECK(runs[1].frames == 4);
  CHECK(runs[1].facts.mapcount == 2);
  CHECK(runs[2].frames == 3);
  CHECK(runs[2].facts == FrameFacts{0, 0, 0, all});
}

TEST_CASE("a missing file leaves its fact unknown, not zero") {
  const Recorded flags_only(with_frames({{0, 8, 0x4, {}, {}}}));
  auto runs = read(flags_only.root(), 0, 8);
  REQUIRE(runs.size() == 1);
  CHECK(runs[0].facts.known == FrameFacts::has_flags);
  const Recorded counts_only(with_frames({{0, 8, {}, 3, {}}}));
  runs = read(counts_only.root(), 0, 8);
  REQUIRE(runs.size() == 1);
  CHECK(runs[0].facts.known == FrameFacts::has_mapcount);
  CHECK(runs[0].facts.mapcount == 3);
}

TEST_CASE("a file that is there and cannot be opened is told, one that is not there is none") {
  const Recorded flags_only(with_frames({{0, 8, 0x4, {}, {}}}));
  auto reader = FrameReader::open(flags_only.root());
  REQUIRE(reader);
  CHECK(reader->missing() == nullptr);
  std::filesystem::create_directory(flags_only.directory() / "proc/kpagecount");
  reader = FrameReader::open(flags_only.root());
  REQUIRE(reader);
  REQUIRE(reader->missing() != nullptr);
  CHECK(reader->missing()->path.ends_with("/proc/kpagecount"));
  // Nobody asks for it.
  CHECK(FrameReader::open(flags_only.root(), FrameFacts::has_flags)->missing() == nullptr);
}

TEST_CASE("no file at all is an error") {
  const Recorded none(one_process("1000-2000 rw-p 00000000 00:00 0 \n"));
  const auto reader = FrameReader::open(none.root());
  REQUIRE_FALSE(reader);
  CHECK(reader.error().code == Errc::not_found);
}

TEST_CASE("past the end of the files nothing is known") {
  SystemModel system = with_frames({{0, 10, 0x4, 1, 2}});
  const Recorded tree(system);
  auto runs = read(tree.root(), 8, 100);
  REQUIRE(runs.size() == 2);
  CHECK(runs[0].frames == 2);
  CHECK(runs[0].facts.known == all);
  CHECK(runs[1].frames == 98);
  CHECK(runs[1].facts == FrameFacts{});
  for (const std::uint64_t far :
       {std::uint64_t{1} << 40, std::uint64_t{1} << 54, std::uint64_t{1} << 60,
        std::uint64_t{1} << 61, ~std::uint64_t{0} - 5}) {
    CAPTURE(far);
    runs = read(tree.root(), far, 5);
    REQUIRE(runs.size() == 1);
    CHECK(runs[0].frames == 5);
    CHECK(runs[0].facts.known == 0);
  }
}

TEST_CASE("files of unequal length") {
  const Recorded tree(with_frames({{0, 5, 0x4, 1, 2}, {5, 5, 0x4, {}, {}}}));
  std::filesystem::resize_file(tree.directory() / "proc/kpagecount", 5 * 8);
  std::filesystem::resize_file(tree.directory() / "proc/kpagecgroup", 7 * 8 + 3);
  const auto runs = read(tree.root(), 0, 12);
  REQUIRE(runs.size() == 4);
  CHECK(runs[0].facts.known == all);
  CHECK(runs[1].facts.known == (FrameFacts::has_flags | FrameFacts::has_memcg));
  CHECK(runs[1].frames == 2);
  CHECK(runs[2].facts.known == FrameFacts::has_flags);
  CHECK(runs[2].frames == 3);
  CHECK(runs[3].facts.known == 0);
}

TEST_CASE("nothing asked, nothing answered; and a sink can stop") {
  const Recorded tree(with_frames({{0, 4, 1, 1, 1}, {4, 4, 2, 2, 2}}));
  CHECK(read(tree.root(), 0, 0).empty());
  auto reader = FrameReader::open(tree.root());
  REQUIRE(reader);
  int seen = 0;
  REQUIRE(reader->read({0}, 8, [&](Pfn, std::uint64_t, const FrameFacts&) { return ++seen < 1; }));
  CHECK(seen == 1);
}

TEST_CASE("random frames, against each frame on its own") {
  std::mt19937_64 random(7);
  for (int i = 0; i < 20; ++i) {
    SystemModel system;
    std::vector<FrameFacts> truth;
    const std::uint64_t total = 1 + random() % 20'000;
    while (truth.size() < total) {
      const std::uint64_t frames = 1 + random() % (random() % 10 == 0 ? 9000 : 20);
      const FrameFacts facts{random() % 3, random() % 2, random() % 2, all};
      system.frames.push_back(
          {truth.size(), frames, facts.flags, facts.mapcount, facts.memcg_inode});
      truth.insert(truth.end(), frames, facts);
    }
    const Recorded tree(system);
    const std::uint64_t first = random() % truth.size();
    const std::uint64_t count = 1 + random() % (truth.size() - first);
    std::uint64_t at = first;
    const auto runs = read(tree.root(), first, count);
    for (std::size_t r = 0; r < runs.size(); ++r) {
      REQUIRE(runs[r].first.value == at);
      REQUIRE(runs[r].frames > 0);
      for (std::uint64_t frame = 0; frame < runs[r].frames; ++frame) {
        if (runs[r].facts != truth.at(at + frame)) FAIL("frame " << at + frame);
      }
      if (r > 0) CHECK(runs[r].facts != runs[r - 1].facts);
      at += runs[r].frames;
    }
    CHECK(at == first + count);
  }
}

TEST_CASE("kernels that call all anonymous memory KSM") {
  for (const char* const good :
       {"6.9.12-amd64", "6.17.0", "6.18.44-fc", "6.1.0-56-amd64", "5.10.0", "7.2", "", "x"})
    CHECK(tells_ksm(good));
  for (const char* const bad : {"6.10.0", "6.12.118+deb13-amd64", "6.16.9"})
    CHECK_FALSE(tells_ksm(bad));
}

TEST_CASE("what kpageflags says of KSM is told only as far as it is true") {
  constexpr std::uint64_t slab = 1 << 7, anon = 1 << 12, head = 1 << 15, tail = 1 << 16,
                          ksm = 1 << 21, pgtable = 1 << 26;
  struct Case {
    std::uint64_t raw, flags, disproved, doubtful;
  };
  const auto check = [](const std::string& release, bool idle, const std::vector<Case>& cases) {
    CAPTURE(release, idle);
    SystemModel system;
    system.manifest = "vmem-tree 1\npage_size 4096\npfn_access full\nkernel " + release + "\n";
    for (std::uint64_t i = 0; i < cases.size(); ++i)
      system.frames.push_back(
          {.first = i, .frames = 1, .flags = cases[i].raw, .mapcount = 1, .memcg = {}});
    if (idle) {
      for (const char* const file : {"run", "pages_scanned", "full_scans"})
        system.files[std::string("sys/kernel/mm/ksm/") + file] = "0\n";
    }
    const TempDir directory;
    write_tree(system, directory.path());
    const auto root = SysRoot::open(directory.string());
    REQUIRE(root);
    auto reader = FrameReader::open(*root, FrameFacts::has_flags);
    REQUIRE(reader);
    std::uint64_t at = 0;
    REQUIRE(reader->read({0}, cases.size(), [&](Pfn, std::uint64_t count, const FrameFacts& f) {
      for (std::uint64_t i = 0; i < count; ++i, ++at) {
        CAPTURE(at);
        CHECK(f.flags == cases[at].flags);
        CHECK(f.disproved == cases[at].disproved);
        CHECK(f.doubtful == cases[at].doubtful);
        CHECK(f.raw() == cases[at].raw);
      }
      return true;
    }));
    CHECK(at == cases.size());
  };
  const std::vector<Case> of_the_kernel{{slab | anon, slab, anon, 0},
                                        {slab | anon | ksm, slab, anon | ksm, 0},
                                        {slab | tail | ksm, slab | tail, ksm, 0},
                                        {pgtable | anon, pgtable, anon, 0}};
  for (const char* const release : {"6.1.0", "6.12.9", "6.18.0"})
    check(release, false, of_the_kernel);
  check("6.18.0", false, {{anon | ksm, anon | ksm, 0, 0}, {anon, anon, 0, 0}});
  check("6.12.9", false,
        {{anon | ksm, anon, 0, ksm},
         {anon, anon, 0, 0},
         {anon | ksm | head, anon | head, ksm, 0},
         {anon | ksm | tail, anon | tail, ksm, 0}});
  check("6.12.9", true, {{anon | ksm, anon, ksm, 0}});
  check("6.18.0", true, {{anon | ksm, anon | ksm, 0, 0}});
}
