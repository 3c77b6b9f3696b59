// SPDX-License-Identifier: MIT
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "vmem/maps.hpp"

using namespace vmem;

namespace {

Vma line(std::string_view text) {
  Vma vma;
  INFO(text);
  REQUIRE(parse_maps_line(text, vma));
  return vma;
}

bool rejected(std::string_view text) {
  Vma vma;
  return !parse_maps_line(text, vma);
}

/// As show_map_vma() in fs/proc/task_mmu.c prints it: the name padded to column 73.
std::string kernel_line(const Vma& vma) {
  char head[256];
  std::snprintf(head, sizeof head, "%08llx-%08llx %c%c%c%c %08llx %02x:%02x %llu ",
                static_cast<unsigned long long>(vma.range.start.value),
                static_cast<unsigned long long>(vma.range.end.value), vma.readable ? 'r' : '-',
                vma.writable ? 'w' : '-', vma.executable ? 'x' : '-', vma.shared ? 's' : 'p',
                static_cast<unsigned long long>(vma.offset), vma.dev_major, vma.dev_minor,
                static_cast<unsigned long long>(vma.inode));
  std::string text = head;
  if (vma.path.empty()) return text;
  while (text.size() < 73) text += ' ';
  for (const char c : vma.path) {
    if (c == '\n')
      text += "\\012";
    else
      text += c;
  }
  return text;
}

}  // namespace

TEST_CASE("a file's line") {
  const Vma vma = line(
      "7f0387f4d000-7f03880a3000 r-xp 00026000 fe:00 332835                     "
      "/usr/lib/x86_64-linux-gnu/libc.so.6");
  CHECK(vma.range == VaRange{{0x7f0387f4d000}, {0x7f03880a3000}});
  CHECK((vma.readable && !vma.writable && vma.executable && !vma.shared));
  CHECK(vma.offset == 0x26000);
  CHECK(vma.dev_major == 0xfe);
  CHECK(vma.dev_minor == 0);
  CHECK(vma.inode == 332835);
  CHECK(vma.path == "/usr/lib/x86_64-linux-gnu/libc.so.6");
  CHECK(permissions(vma) == "r-xp");
}

TEST_CASE("all sixteen permissions") {
  for (unsigned bits = 0; bits < 16; ++bits) {
    const std::string text{bits & 8 ? 'r' : '-', bits & 4 ? 'w' : '-', bits & 2 ? 'x' : '-',
                           bits & 1 ? 's' : 'p'};
    const Vma vma = line("1000-2000 " + text + " 00000000 00:00 0 ");
    CHECK(permissions(vma) == text);
    CHECK((vma.readable == ((bits & 8) != 0) && vma.writable == ((bits & 4) != 0)));
    CHECK((vma.executable == ((bits & 2) != 0) && vma.shared == ((bits & 1) != 0)));
  }
}

TEST_CASE("names as the kernel writes them") {
  struct Case {
    const char* name;
    const char* path;
  };
  const Case cases[] = {
      {"[heap]", "[heap]"},
      {"[stack]", "[stack]"},
      {"[stack:4711]", "[stack:4711]"},
      {"[anon: a name]", "[anon: a name]"},
      {"[anon:]", "[anon:]"},
      {"[anon_shmem:x y]", "[anon_shmem:x y]"},
      {"/tmp/a b  c", "/tmp/a b  c"},
      {"/tmp/tab\there", "/tmp/tab\there"},
      {"/tmp/gone (deleted)", "/tmp/gone (deleted)"},
      {"/tmp/x (deleted) (deleted)", "/tmp/x (deleted) (deleted)"},
      {"/tmp/two\\012lines", "/tmp/two\nlines"},
      {"\\012", "\n"},
      {"/a\\012\\012b\\012", "/a\n\nb\n"},
      {"/back\\slash", "/back\\slash"},
      {"/\\040kept", "/\\040kept"},
      {"/\\01", "/\\01"},
      {"/end\\", "/end\\"},
      {"/\\\\012", "/\\\n"},
      {"/memfd:x (deleted)", "/memfd:x (deleted)"},
      {"/SYSV00000000 (deleted)", "/SYSV00000000 (deleted)"},
      {"anon_inode:[perf_event]", "anon_inode:[perf_event]"},
      {"socket:[12345]", "socket:[12345]"},
      {"(unreachable)/x", "(unreachable)/x"},
      {"//deleted", "//deleted"},
      {"/\xff\xfe", "/\xff\xfe"},
      {"/trailing ", "/trailing "},
      {"/cr\r", "/cr\r"},
  };
  for (const Case& c : cases) {
    CHECK(line(std::string(
                   "00400000-00401000 rw-p 00000000 fe:00 17                                 ") +
               c.name)
              .path == c.path);
    CHECK(line(std::string("7f0387f4d000-7f03880a3000 rw-p 00000000 103:02 18446744073709551615 ") +
               c.name)
              .path == c.path);
  }
}

TEST_CASE("no name: with and without the padding") {
  CHECK(line("1000-2000 rw-p 00000000 00:00 0").path.empty());
  CHECK(line("1000-2000 rw-p 00000000 00:00 0 ").path.empty());
  CHECK(line("1000-2000 rw-p 00000000 00:00 0                    ").path.empty());
}

TEST_CASE("numbers at their limits") {
  const Vma gate =
      line("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]");
  CHECK(gate.range.start == VirtAddr{0xffffffffff600000});
  CHECK(gate.path == "[vsyscall]");
  CHECK(line("0-1000 rw-p 0 0:0 0 ").range == VaRange{{0}, {0x1000}});
  const Vma wide = line(
      "100000000000000-fffffffffffff000 rw-s ffffffffffffffff fffff:fffff 18446744073709551615 /x");
  CHECK(wide.range == VaRange{{0x100000000000000}, {0xfffffffffffff000}});
  CHECK(wide.offset == 0xffffffffffffffff);
  CHECK(wide.dev_major == 0xfffff);
  CHECK(wide.dev_minor == 0xfffff);
  CHECK(wide.inode == 18446744073709551615U);
}

TEST_CASE("what is not a maps line") {
  const char* const bad[] = {
      "",
      " ",
      "x",
      "1000-2000",
      "1000-2000 ",
      "1000-2000 rw-p",
      "1000-2000 rw-p ",
      "1000-2000 rw-p 00000000",
      "1000-2000 rw-p 00000000 00:00",
      "1000-2000 rw-p 00000000 00:00 ",
      "1000-2000 rw-p 00000000 00 0 ",
      "1000-2000 rw-p 00000000 :00 0 ",
      "1000-2000 rw-p 00000000 00: 0 ",
      "1000 2000 rw-p 00000000 00:00 0 ",
      "-2000 rw-p 00000000 00:00 0 ",
      "1000- rw-p 00000000 00:00 0 ",
      "2000-1000 rw-p 00000000 00:00 0 ",
      "1000-1000 rw-p 00000000 00:00 0 ",
      "1000-2000 rwxq 00000000 00:00 0 ",
      "1000-2000 wr-p 00000000 00:00 0 ",
      "1000-2000 rw- 00000000 00:00 0 ",
      "1000-2000 rw-pp 00000000 00:00 0 ",
      "1000-2000 ???p 00000000 00:00 0 ",
      "g000-2000 rw-p 00000000 00:00 0 ",
      "0x1000-0x2000 rw-p 00000000 00:00 0 ",
      "+1000-2000 rw-p 00000000 00:00 0 ",
      " 1000-2000 rw-p 00000000 00:00 0 ",
      "11111111111111111-22222222222222222 rw-p 00000000 00:00 0 ",
      "1000-2000 rw-p 00000000000000000 00:00 0 ",
      "1000-2000 rw-p 00000000 100000000:00 0 ",
      "1000-2000 rw-p 00000000 00:100000000 0 ",
      "1000-2000 rw-p 00000000 00:00 18446744073709551616 ",
      "1000-2000 rw-p 00000000 00:00 -1 ",
      "1000-2000 rw-p 00000000 00:00 0x/usr",
      "1000-2000 rw-p 00000000 00:00 12a /x",
      "VmFlags: rd wr mr",
      "Rss:                   4 kB",
  };
  for (const char* const text : bad) {
    CAPTURE(text);
    CHECK(rejected(text));
  }
}

TEST_CASE(
    "every prefix and every changed byte of a line is parsed or rejected, never read beyond") {
  const std::string good =
      "7f0387f4d000-7f03880a3000 r-xp 00026000 fe:00 332835   /usr/a\\012b (deleted)";
  for (std::size_t size = 0; size <= good.size(); ++size) {
    // A buffer of exactly that size: a sanitizer sees a read beyond it.
    const std::vector<char> exact(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(size));
    Vma vma;
    (void)parse_maps_line({exact.data(), exact.size()}, vma);
  }
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string text = good;
    for (int n = 0; n < 3; ++n) text[random() % text.size()] = static_cast<char>(random());
    Vma vma;
    if (parse_maps_line(text, vma)) CHECK(vma.range.start < vma.range.end);
  }
}

TEST_CASE("what the kernel would print of a VMA reads back as that VMA") {
  std::mt19937_64 random(2);
  for (int i = 0; i < 5000; ++i) {
    Vma vma;
    const std::uint64_t start = random() >> (random() % 52) & ~std::uint64_t{4095};
    vma.range = {{start}, {start + ((random() % 1000 + 1) << 12)}};
    if (vma.range.end < vma.range.start) continue;
    vma.readable = random() % 2 != 0;
    vma.writable = random() % 2 != 0;
    vma.executable = random() % 2 != 0;
    vma.shared = random() % 2 != 0;
    vma.offset = random() >> (random() % 64) & ~std::uint64_t{4095};
    vma.dev_major = static_cast<std::uint32_t>(random() % 4096);
    vma.dev_minor = static_cast<std::uint32_t>(random() % (1 << 20));
    vma.inode = random() >> (random() % 64);
    static constexpr std::string_view letters = "ab/ \n()[]:\\-\t\x80\xff";
    if (random() % 4 != 0) vma.path = "/";
    for (auto n = vma.path.empty() ? 0 : random() % 40; n > 0; --n)
      vma.path += letters[random() % letters.size()];
    if (vma.path.find("\\012") != std::string::npos) continue;
    const std::string text = kernel_line(vma);
    CAPTURE(text);
    CHECK(line(text) == vma);
  }
}

TEST_CASE("a text of many lines") {
  const std::string text =
      "1000-2000 rw-p 00000000 00:00 0 \n"
      "2000-3000 r--s 00001000 fe:00 7 /a\\012b\n"
      "5000-6000 ---p 00000000 00:00 0 [anon:x]\n";
  std::vector<Vma> vmas;
  const auto collect = [&](const Vma& vma) {
    vmas.push_back(vma);
    return true;
  };
  SECTION("whole") {
    REQUIRE(parse_maps(text, collect));
    REQUIRE(vmas.size() == 3);
    CHECK(vmas[0].path.empty());
    CHECK(vmas[1].path == "/a\nb");
    CHECK(vmas[2].path == "[anon:x]");
  }
  SECTION("without the last newline") {
    REQUIRE(parse_maps(std::string_view(text).substr(0, text.size() - 1), collect));
    REQUIRE(vmas.size() == 3);
    CHECK(vmas[2].path == "[anon:x]");
  }
  SECTION("a name does not leak into the next line") {
    REQUIRE(
        parse_maps("1000-2000 rw-p 0 00:00 1 /long/name\n2000-3000 rw-p 0 00:00 0 \n", collect));
    CHECK(vmas.at(1).path.empty());
  }
  SECTION("nothing at all") {
    REQUIRE(parse_maps("", collect));
    CHECK(vmas.empty());
  }
  SECTION("the sink stops it") {
    int seen = 0;
    REQUIRE(parse_maps(text, [&](const Vma&) { return ++seen < 2; }));
    CHECK(seen == 2);
  }
  SECTION("a bad line is an error with its number, after the good ones") {
    const auto result = parse_maps(text + "junk\n" + text, collect);
    REQUIRE_FALSE(result);
    CHECK(result.error().code == Errc::malformed);
    CHECK(result.error().line == 4);
    CHECK(to_string(result.error()) == "parsing maps: line 4: malformed or truncated");
    CHECK(vmas.size() == 3);
  }
  SECTION("an empty line is a bad line") { CHECK_FALSE(parse_maps(text + "\n" + text, collect)); }
  SECTION("an embedded zero byte is part of a name, or a bad line, never an end") {
    const std::string zero = "1000-2000 rw-p 00000000 00:00 1 /a" + std::string(1, '\0') + "b\n";
    if (parse_maps(zero + text, collect)) CHECK(vmas.size() == 4);
  }
}

TEST_CASE("a line longer than the kernel's 4 KiB buffer") {
  // PATH_MAX newlines, each written as four characters.
  std::string name = "/";
  std::string escaped = "/";
  for (int i = 0; i < 4094; ++i) {
    name += '\n';
    escaped += "\\012";
  }
  const std::string text =
      "1000-2000 rw-p 00000000 fe:00 9 " + escaped + "\n2000-3000 rw-p 00000000 00:00 0 \n";
  std::vector<std::string> names;
  REQUIRE(parse_maps(text, [&](const Vma& vma) {
    names.push_back(vma.path);
    return true;
  }));
  REQUIRE(names.size() == 2);
  CHECK(names[0] == name);
  CHECK(names[1].empty());
}

TEST_CASE("a million lines") {
  std::string text;
  text.reserve(80 << 20);
  char buffer[160];
  constexpr std::uint64_t count = 1'000'000;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto start = static_cast<unsigned long long>(0x7f0000000000 + i * 0x2000);
    const int n =
        std::snprintf(buffer, sizeof buffer, "%llx-%llx r%c-p %08llx fe:00 %llu %s\n", start,
                      start + 0x1000, i % 2 ? 'w' : '-', static_cast<unsigned long long>(i << 12),
                      static_cast<unsigned long long>(i),
                      i % 3 ? "                   /usr/lib/some/file.so" : "");
    text.append(buffer, static_cast<std::size_t>(n));
  }
  std::uint64_t seen = 0;
  bool right = true;
  REQUIRE(parse_maps(text, [&](const Vma& vma) {
    right = right && vma.range.start.value == 0x7f0000000000 + seen * 0x2000 && vma.inode == seen &&
            vma.offset == seen << 12 && vma.path.empty() == (seen % 3 == 0);
    ++seen;
    return true;
  }));
  CHECK(seen == count);
  CHECK(right);
}
