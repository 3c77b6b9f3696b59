// SPDX-License-Identifier: MIT
/// What the frame that an entry names tells of the entry.
#include "entry_kinds.hpp"

#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t bit(unsigned n) { return std::uint64_t{1} << n; }
constexpr std::uint64_t slab = bit(7), anon = bit(12), head = bit(15), tail = bit(16),
                        huge = bit(17), hwpoison = bit(19), nopage = bit(20), reserved = bit(32);
constexpr std::uint64_t base = 0x10000000;
const std::string line = "10000000-10400000 rw-p 00000000 00:00 0 \n";
const std::string iomem =
    "00000000-00000fff : Reserved\n"
    "00001000-0fffffff : System RAM\n"
    "20000000-2fffffff : 0000:01:00.0\n"
    "30000000-3fffffff : hmm_dmirror\n";

/// One entry of `type` that names `frame`; the kernel says `flags` of it.
SystemModel system_of(std::uint64_t frame, std::uint64_t flags, std::uint64_t pages = 1,
                      std::uint64_t type = 28, std::uint64_t bits = 0) {
  SystemModel system =
      one_process(line, {{base, pages, entry::swapped(type, frame) | bits, entry::swap_step}},
                  "vmem-tree 1\npage_size 4096\npfn_access full\n");
  system.frames = {{.first = frame, .frames = pages, .flags = flags, .mapcount = {}, .memcg = {}}};
  system.files["proc/iomem"] = iomem;
  return system;
}

std::vector<std::string> told(const SystemModel& system) {
  std::vector<std::string> lines;
  const Recorded tree(system);
  for (const VmaExtent& e : translate_whole(tree.process(1))) {
    if (e.extent.state != PageState::special) continue;
    const std::string_view kind = entry_kind(e.extent);
    lines.push_back(std::to_string(e.extent.bytes / 4096) + " " +
                    std::string(kind.empty() ? "-" : kind) + ": " + reason_of(e.extent));
  }
  return lines;
}

using Lines = std::vector<std::string>;

}  // namespace

TEST_CASE("a poisoned frame is told whatever the entry's type, and nothing else is poison") {
  // 26 on Linux 6.1, 27 on 6.12.
  for (const std::uint64_t type : {23U, 26U, 27U, 30U})
    CHECK(told(system_of(0x433c, hwpoison, 1, type)) ==
          Lines{"1 poison: poison: frame 0x433c was lost to a memory error"});
  CHECK(told(system_of(0x433c, anon, 1, 27)) ==
        Lines{"1 migration-or-device-exclusive: migration or device-exclusive entry of frame "
              "0x433c"});
  SystemModel two = system_of(0x433c, anon, 3);
  two.frames = {{.first = 0x433c, .frames = 1, .flags = anon, .mapcount = {}, .memcg = {}},
                {.first = 0x433d, .frames = 1, .flags = hwpoison, .mapcount = {}, .memcg = {}},
                {.first = 0x433e, .frames = 1, .flags = anon, .mapcount = {}, .memcg = {}}};
  const Lines lines = told(two);
  REQUIRE(lines.size() == 3);
  CHECK(lines[1] == "1 poison: poison: frame 0x433d was lost to a memory error");
}

TEST_CASE("hugetlb is lost as a whole") {
  SystemModel system = system_of(0x600, 0, 512);
  const auto frames = [&](std::uint64_t of_head) {
    system.frames = {
        {.first = 0x600, .frames = 1, .flags = huge | head | of_head, .mapcount = {}, .memcg = {}},
        {.first = 0x601, .frames = 511, .flags = huge | tail, .mapcount = {}, .memcg = {}}};
  };
  frames(hwpoison);
  CHECK(told(system) == Lines{"512 poison: poison: frame 0x600 was lost to a memory error"});
  frames(0);
  CHECK(told(system).front().starts_with("512 migration-or-device-exclusive"));
}

TEST_CASE("migration is told of kernels that have no device-exclusive entries") {
  SystemModel system = system_of(0x5000, anon);
  system.files["proc/kallsyms"] = "0000000000000000 T rmap_walk\n0000000000000000 T try_to_unmap\n";
  CHECK(told(system) == Lines{"1 migration: migration: the page in frame 0x5000 is being moved"});
  for (const char* const name : {"make_device_exclusive", "make_device_exclusive_range"}) {
    system.files["proc/kallsyms"] = std::string("0 T rmap_walk\n0 T ") + name + "\t[x]\n";
    CHECK(told(system).front().starts_with("1 migration-or-device-exclusive: "));
  }
  // A list without the file's other functions proves nothing.
  system.files["proc/kallsyms"] = "0 T something\n";
  CHECK(told(system).front().starts_with("1 migration-or-device-exclusive: "));
  // Until 6.11 pagemap has bit 56 of what is no migrating page.
  SystemModel exclusive = system_of(0x5000, anon, 1, 29, entry::exclusive);
  CHECK(told(exclusive) ==
        Lines{"1 device-exclusive: device-exclusive: a device alone may use frame 0x5000"});
}

TEST_CASE("a frame in a device's memory is device-private; RAM that is offline is not") {
  CHECK(told(system_of(0x30005, nopage, 2)) ==
        Lines{"2 device-private: device-private: the page lies in a device's memory, frame "
              "0x30005"});
  // Beyond the kernel's file.
  SystemModel beyond = system_of(0x30005, 0);
  beyond.frames = {{.first = 0, .frames = 4, .flags = reserved, .mapcount = {}, .memcg = {}}};
  CHECK(told(beyond).front().starts_with("1 device-private: "));
  const std::string untold = "1 -: migration, device-private or poison entry of frame 0x";
  CHECK(told(system_of(0x5000, nopage)) == Lines{untold + "5000"});
  CHECK(told(system_of(0x50000, nopage)) == Lines{untold + "50000"});
  SystemModel hidden = system_of(0x30005, nopage);
  hidden.files["proc/iomem"] = "00000000-00000000 : System RAM\n00000000-00000000 : hmm_dmirror\n";
  CHECK(told(hidden) == Lines{untold + "30005"});
  SystemModel none = system_of(0x5000, anon);
  none.frames.clear();
  CHECK(told(none) == Lines{untold + "5000"});
}

TEST_CASE("what is no process's memory is no migration, and a marker is no frame") {
  for (const std::uint64_t flags : {slab, bit(10), bit(23), bit(26), reserved})
    CHECK(told(system_of(0x5000, flags)) ==
          Lines{"1 -: migration, device-private or poison entry of frame 0x5000"});
  // Linux 5.19 to 6.1: the markers' type is 30.
  CHECK(told(system_of(1, reserved, 1, 30, entry::uffd_wp)) ==
        Lines{"1 userfaultfd-marker: userfaultfd write-protect marker"});
  CHECK(told(system_of(2, reserved, 1, 30)) ==
        Lines{"1 marker: page-table marker of an unknown kind"});
}

TEST_CASE("one address says what the whole does") {
  const Recorded tree(system_of(0x433c, hwpoison, 4, 26));
  const Process process = tree.process(1);
  auto translator = open_translator(process);
  REQUIRE(translator);
  VmaInspector inspector(process);
  const auto one = translate(process, **translator, inspector, VirtAddr{base + 2 * 4096 + 5});
  REQUIRE(one);
  CHECK(one->extent.reason == Reason::poison);
  CHECK(one->extent.pfn == Pfn{0x433e});
  CHECK(one->extent.swap_type == 26);
}
