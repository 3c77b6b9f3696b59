// SPDX-License-Identifier: MIT
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "vmem/maps.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

std::vector<Vma> parsed(const std::string& maps) {
  std::vector<Vma> all;
  REQUIRE(parse_maps(maps, [&](const Vma& vma) {
    all.push_back(vma);
    return true;
  }));
  return all;
}

std::vector<Vma> streamed(const Process& process) {
  auto reader = VmaReader::open(process);
  REQUIRE(reader);
  std::vector<Vma> all;
  Vma vma;
  for (;;) {
    const auto more = reader->next(vma);
    REQUIRE(more);
    if (!*more) break;
    all.push_back(vma);
  }
  // The end is an end however often one asks.
  const auto again = reader->next(vma);
  REQUIRE(again);
  CHECK_FALSE(*again);
  return all;
}

std::string random_maps(std::mt19937_64& random, int count) {
  std::string maps;
  std::uint64_t at = 0x10000;
  for (int i = 0; i < count; ++i) {
    at += random() % 3 * 0x1000;
    const std::uint64_t end = at + (random() % 5 + 1) * 0x1000;
    char head[128];
    std::snprintf(head, sizeof head, "%08llx-%08llx rw-p 00000000 fe:01 %llu ",
                  static_cast<unsigned long long>(at), static_cast<unsigned long long>(end),
                  static_cast<unsigned long long>(random() % 3));
    maps += head;
    // Names of every length up to PATH_MAX, so that lines end anywhere in the read buffer.
    if (random() % 2 != 0)
      maps += "/" + std::string(random() % (random() % 50 == 0 ? 4095 : 120), 'n');
    maps += '\n';
    at = end;
  }
  return maps;
}

}  // namespace

TEST_CASE("the stream, the list and the parser agree") {
  std::mt19937_64 random(3);
  for (int i = 0; i < 60; ++i) {
    const std::string maps = random_maps(random, static_cast<int>(random() % 3000));
    const Recorded tree(one_process(maps));
    const Process process = tree.process(1);
    const std::vector<Vma> expected = parsed(maps);
    CHECK(streamed(process) == expected);
    const auto listed = read_vmas(process);
    REQUIRE(listed);
    CHECK(*listed == expected);
  }
}

TEST_CASE("find_vma agrees with the list at every border") {
  std::mt19937_64 random(4);
  for (int i = 0; i < 20; ++i) {
    const std::string maps = random_maps(random, 40) +
                             "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n";
    const Recorded tree(one_process(maps));
    const Process process = tree.process(1);
    const std::vector<Vma> vmas = parsed(maps);
    const auto expected = [&](VirtAddr address) -> std::optional<Vma> {
      for (const Vma& vma : vmas) {
        if (vma.range.contains(address)) return vma;
      }
      return {};
    };
    for (const Vma& vma : vmas) {
      for (const VirtAddr address :
           {vma.range.start - 1, vma.range.start, vma.range.start + 1, vma.range.start + 0x800,
            vma.range.end - 1, vma.range.end, vma.range.end + 1}) {
        CAPTURE(address.value);
        std::optional<PageSize> size;
        const auto found = find_vma(process, address, &size);
        REQUIRE(found);
        CHECK(*found == expected(address));
        CHECK_FALSE(size);  // the text does not tell
      }
    }
    for (const std::uint64_t address :
         {std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
      const auto found = find_vma(process, {address});
      REQUIRE(found);
      CHECK(*found == expected({address}));
    }
  }
}

TEST_CASE("a last line without its newline counts") {
  const Recorded tree(
      one_process("1000-2000 rw-p 00000000 00:00 0 \n3000-4000 rw-p 00000000 00:00 0 [heap]"));
  const auto all = streamed(tree.process(1));
  REQUIRE(all.size() == 2);
  CHECK(all[1].path == "[heap]");
}

TEST_CASE("a recorded maps that the kernel cannot have written is malformed") {
  const std::string good = "10000-20000 rw-p 00000000 00:00 0 \n";
  const std::pair<const char*, std::string> cases[] = {
      {"junk", "hello\n"},
      {"empty line", "\n"},
      {"unaligned start", "20800-30000 rw-p 00000000 00:00 0 \n"},
      {"unaligned end", "20000-30001 rw-p 00000000 00:00 0 \n"},
      {"overlap", "1f000-30000 rw-p 00000000 00:00 0 \n"},
      {"descending", "1000-2000 rw-p 00000000 00:00 0 \n"},
      {"the same again", good},
      {"a binary file", std::string("\x7f"
                                    "ELF\0\0\0",
                                    7)},
      {"a very long line", std::string(1 << 20, 'x')},
  };
  for (const auto& [name, text] : cases) {
    CAPTURE(name);
    const Recorded tree(one_process(good + text));
    const Process process = tree.process(1);
    const auto listed = read_vmas(process);
    REQUIRE_FALSE(listed);
    CHECK(listed.error().code == Errc::malformed);
    CHECK(listed.error().path.ends_with("/proc/1/maps"));
    CHECK_FALSE(find_vma(process, {0x7000000}));
  }
}

TEST_CASE("a line that is wrong by itself is left out and told, if asked for") {
  const std::string first = "10000-20000 rw-p 00000000 00:00 0 \n";
  const std::string last = "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 [stack]\n";
  struct Case {
    const char* text;
    const char* what;
    VaRange range;
  };
  const Case cases[] = {
      {"30000-30000 rw-p 00000000 00:00 0 \n", "an empty mapping", {{0x30000}, {0x30000}}},
      {"30000-30800 r--p 00000000 07:98 48 /lib/x.so\n",
       "a mapping that is not aligned to pages",
       {{0x30000}, {0x30800}}},
      {"30000-40000 rw?p 00000000 00:00 0 \n", "not a line of maps", {{0x30000}, {0x40000}}},
      {"hello\n", "not a line of maps", {}},
      {"\n", "not a line of maps", {}},
  };
  for (const auto& [text, what, range] : cases) {
    CAPTURE(text);
    const Recorded tree(one_process(first + text + last));
    Process process = tree.process(1);
    const auto refused = read_vmas(process);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().line == 2);
    CHECK(to_string(refused.error()).ends_with(std::string("/proc/1/maps: line 2: ") + what));
    std::vector<OddLine> odd;
    process.skip_odd_lines([&](const OddLine& line) { odd.push_back(line); });
    const auto all = read_vmas(process);
    REQUIRE(all);
    REQUIRE(all->size() == 2);
    CHECK(all->at(1).path == "[stack]");
    REQUIRE(odd.size() == 1);
    CHECK(odd[0].line == 2);
    CHECK(std::string_view(odd[0].what) == what);
    CHECK(odd[0].range == range);
    CHECK(odd[0].path.ends_with("/proc/1/maps"));
    // Told once, however often the file is read.
    REQUIRE(read_vmas(process));
    CHECK(odd.size() == 1);
    REQUIRE(process.odd_lines().size() == 1);
    CHECK(process.odd_lines()[0].line == 2);
    const bool somewhere = range.start.value == 0;
    const bool there = somewhere || !range.empty();
    CHECK(process.may_be_left_out({{0x30000}, {0x31000}}) == there);
    CHECK(process.may_be_left_out({{0x30c00}, {0x31000}}) == there);
    CHECK(process.may_be_left_out({{0x50000}, {0x51000}}) == somewhere);
    CHECK(process.part_told_by(odd[0], {{0x2f000}, {0x30c00}}) ==
          (range.empty() ? VaRange{} : VaRange{{0x30000}, {0x30c00}}));
  }
  // Which of two lines is wrong nobody knows.
  const Recorded overlapping(one_process(first + "1f000-30000 rw-p 00000000 00:00 0 \n"));
  Process process = overlapping.process(1);
  process.skip_odd_lines([](const OddLine&) {});
  const auto refused = read_vmas(process);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().line == 2);

  // Far behind, in another chunk than the first; and too many of them.
  std::string many;
  for (unsigned i = 10000; i < 15000; ++i) {
    const std::string page = std::to_string(i) + "000";
    many += page + "-" + page.substr(0, 5) + "800 rw-p 00000000 00:00 0 \n";
  }
  std::vector<std::uint64_t> lines;
  const Recorded wild(one_process(many));
  Process of_many = wild.process(1);
  of_many.skip_odd_lines([&](const OddLine& line) { lines.push_back(line.line); });
  CHECK_FALSE(read_vmas(of_many));
  REQUIRE(lines.size() == 4096);
  CHECK(lines[0] == 1);
  CHECK(lines[4000] == 4001);
}

TEST_CASE("alignment is that of the recorded machine") {
  const std::string maps = "10000-11000 rw-p 00000000 00:00 0 \n";
  const Recorded small(one_process(maps));
  CHECK(read_vmas(small.process(1)));
  const Recorded large(one_process(maps, {}, "vmem-tree 1\npage_size 65536\n"));
  CHECK_FALSE(read_vmas(large.process(1)));
}

TEST_CASE("an empty maps is an empty address space; a missing one is an error") {
  const Recorded tree(one_process(""));
  const Process process = tree.process(1);
  const auto listed = read_vmas(process);
  REQUIRE(listed);
  CHECK(listed->empty());
  std::filesystem::remove(tree.directory() / "proc/1/maps");
  const auto gone = read_vmas(process);
  REQUIRE_FALSE(gone);
  CHECK(gone.error().code == Errc::not_found);
}

TEST_CASE("hostile names survive") {
  const Recorded tree("hostile-names");
  const Process process = tree.process(666);
  CHECK(process.comm() == ") S 1 (evil");
  REQUIRE(process.start_time());
  CHECK(*process.start_time() == 202462);
  const auto all = read_vmas(process);
  REQUIRE(all);
  REQUIRE(all->size() == 23);
  CHECK(all->at(0).path == "/tmp/two\nlines");
  CHECK(all->at(2).path == "/tmp/gone (deleted)");
  CHECK(all->at(6).path.empty());
  CHECK(all->at(20).path == "/tmp/trailing space ");
  CHECK(all->at(22).path == "[vsyscall]");
  for (const Vma& vma : *all) {
    const auto found = find_vma(process, vma.range.start);
    REQUIRE(found);
    CHECK(*found == vma);
  }
}
