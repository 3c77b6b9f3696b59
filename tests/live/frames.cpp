// SPDX-License-Identifier: MIT
// What the kernel says of the frames of pages that were made for it: flags and map counts.
#include "vmem/frames.hpp"

#include "live/children.hpp"
#include "live/oracle.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t bit(unsigned n) { return std::uint64_t{1} << n; }
constexpr std::uint64_t lru = bit(5), mmapped = bit(11), anon = bit(12), swapbacked = bit(14),
                        head = bit(15), tail = bit(16), huge = bit(17), ksm = bit(21),
                        thp = bit(22), zero_page = bit(24);

/// One u64 from a file of /proc, by one pread.
std::uint64_t plain_word(const char* path, std::uint64_t pfn) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  std::uint64_t word = 0;
  REQUIRE(pread(fd, &word, sizeof word, static_cast<off_t>(pfn * 8)) == 8);
  close(fd);
  return word;
}

std::vector<FrameFacts> facts_of(FrameReader& reader, const std::vector<Answer>& answers,
                                 const Mapping& m) {
  std::vector<FrameFacts> all;
  for (std::uint64_t va = m.start; va < m.end; va += base_page) {
    const Extent& e = extent_at(answers, va);
    if (e.state != PageState::resident) continue;
    const Pfn pfn = e.pfn + (va - e.va.value) / base_page;
    const auto result =
        reader.read(pfn, 1, [&](Pfn first, std::uint64_t count, const FrameFacts& f) {
          CHECK(first == pfn);
          CHECK(count == 1);
          all.push_back(f);
          return true;
        });
    REQUIRE(result);
  }
  return all;
}

}  // namespace

TEST_CASE("flags and map counts of pages that were made for it") {
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const auto answers = library_read(process_of(child.pid()), {.every_page = true});
  auto root = SysRoot::live();
  REQUIRE(root);
  auto reader = FrameReader::open(*root);
  REQUIRE(reader);

  struct Wanted {
    const char* name;
    std::uint64_t set, clear;
    std::uint64_t mapcount;
  };
  // LRU is left out: a page just made waits in a batch of its CPU.
  for (const Wanted& w : std::initializer_list<Wanted>{
           {"anon", mmapped | anon | swapbacked, huge | thp | zero_page | ksm, 1},
           {"forked", mmapped | anon | swapbacked, huge | thp, 4},
           {"shm-anon", mmapped | swapbacked, anon | huge, 1},
           {"zero-page", zero_page, anon | lru | huge, 0},
           {"thp", mmapped | anon | thp, huge, 1},
           {"hugetlb-anon", huge, lru, 1},
           {"hugetlb-shared", huge, anon, 1},
           {"file-shared", mmapped, anon | huge | swapbacked, 4}}) {
    bool made = false;
    for (const Mapping& m : child.mappings()) made = made || m.name == w.name;
    if (!made) {
      skip_or_fail("pfn", std::string("memory kind ") + w.name + " could not be made");
      continue;
    }
    const auto facts = facts_of(*reader, answers, child.mapping(w.name));
    CHECK_FALSE(facts.empty());
    for (const FrameFacts& f : facts) {
      INFO(w.name << " flags " << hex(f.flags) << " mapcount " << f.mapcount);
      REQUIRE((f.known & FrameFacts::has_flags) != 0);
      REQUIRE((f.known & FrameFacts::has_mapcount) != 0);
      CHECK((f.flags & w.set) == w.set);
      CHECK((f.flags & w.clear) == 0);
      if (std::string_view(w.name) == "file-shared") {
        // Mapped here by file-private, -cow, -past-end and itself, less the copied pages.
        CHECK(f.mapcount >= 2);
      } else {
        CHECK(f.mapcount == w.mapcount);
      }
    }
  }
  unsigned heads = 0, tails = 0;
  for (const FrameFacts& f : facts_of(*reader, answers, child.mapping("thp"))) {
    heads += (f.flags & head) != 0;
    tails += (f.flags & tail) != 0;
  }
  CHECK(heads == 2);
  CHECK(tails == 1022);
  // The parent wrote its first four pages after the fork: its own copies, mapped once. The
  // others are its own and three children's.
  const auto copied = facts_of(*reader, answers, child.mapping("copied-on-write"));
  REQUIRE(copied.size() == 8);
  for (unsigned i = 0; i < 8; ++i) CHECK(copied[i].mapcount == (i < 4 ? 1 : 4));
}

TEST_CASE("a batch says of each frame what a single read says") {
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  const KindsChild child({"anon", "thp", "zero-page", "file-private", "forked"});
  stop(child.pid());
  const auto answers = library_read(process_of(child.pid()));
  auto root = SysRoot::live();
  REQUIRE(root);
  auto reader = FrameReader::open(*root);
  REQUIRE(reader);
  // Bits that come and go by themselves: LOCKED REFERENCED UPTODATE DIRTY LRU ACTIVE
  // WRITEBACK RECLAIM IDLE and the kernel's own above.
  constexpr std::uint64_t steady = ~(bit(0) | bit(2) | bit(3) | bit(4) | bit(5) | bit(6) | bit(8) |
                                     bit(9) | bit(25) | ~((bit(32))-1));
  std::uint64_t frames = 0;
  for (const Answer& a : answers) {
    if (!a.vma.path.empty()) continue;  // anonymous: nobody else uses the frames
    for (const Extent& e : a.extents) {
      if (e.state != PageState::resident) continue;
      Pfn at = e.pfn;
      const auto result = reader->read(
          e.pfn, e.bytes / base_page, [&](Pfn first, std::uint64_t count, const FrameFacts& f) {
            CHECK(first == at);
            for (std::uint64_t i = 0; i < count; ++i) {
              const std::uint64_t pfn = first.value + i;
              INFO("frame " << hex(pfn));
              CHECK((f.flags & steady) == (plain_word("/proc/kpageflags", pfn) & steady));
              CHECK(f.mapcount == plain_word("/proc/kpagecount", pfn));
              if ((f.known & FrameFacts::has_memcg) != 0) {
                CHECK(f.memcg_inode == plain_word("/proc/kpagecgroup", pfn));
              }
            }
            at = first + count;
            frames += count;
            return true;
          });
      REQUIRE(result);
      CHECK(at == e.pfn + e.bytes / base_page);
    }
  }
  CHECK(frames > 1000);
}

TEST_CASE("frames past the end of memory are not known") {
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  auto root = SysRoot::live();
  REQUIRE(root);
  auto reader = FrameReader::open(*root);
  REQUIRE(reader);
  std::uint64_t frames = 0;
  const auto result = reader->read({std::uint64_t{1} << 50}, 1000,
                                   [&](Pfn, std::uint64_t count, const FrameFacts& f) {
                                     CHECK(f.known == 0);
                                     frames += count;
                                     return true;
                                   });
  REQUIRE(result);
  CHECK(frames == 1000);
}
