// SPDX-License-Identifier: MIT
/// The parser of maps against one that takes a line apart character by character.
#include <algorithm>
#include <cstdio>
#include <iterator>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "hex_text.hpp"
#include "support/catch.hpp"
#include "vmem/maps.hpp"

using namespace vmem;

namespace {

/// One line, with nothing in mind but what fs/proc/task_mmu.c and fs/seq_file.c print.
class NaiveLine {
 public:
  explicit NaiveLine(std::string_view line) : line_(line) {}

  std::optional<Vma> parse() {
    Vma vma;
    vma.range.start.value = number(16);
    expect('-');
    vma.range.end.value = number(16);
    expect(' ');
    vma.readable = one_of('r', '-');
    vma.writable = one_of('w', '-');
    vma.executable = one_of('x', '-');
    vma.shared = one_of('s', 'p');
    expect(' ');
    vma.offset = number(16);
    expect(' ');
    vma.dev_major = small();
    expect(':');
    vma.dev_minor = small();
    expect(' ');
    vma.inode = number(10);
    if (good_ && at_ < line_.size()) expect(' ');
    if (!good_ || vma.range.end <= vma.range.start) return {};
    while (at_ < line_.size() && line_[at_] == ' ') ++at_;
    while (at_ < line_.size()) {
      if (line_.substr(at_, 4) == "\\012") {
        vma.path += '\n';
        at_ += 4;
      } else {
        vma.path += line_[at_++];
      }
    }
    return vma;
  }

 private:
  std::uint64_t number(unsigned base) {
    constexpr std::uint64_t most = ~std::uint64_t{0};
    std::uint64_t value = 0;
    bool too_large = false;
    int digits = 0;
    for (; at_ < line_.size(); ++at_, ++digits) {
      const char c = line_[at_];
      unsigned digit = 99;
      if (c >= '0' && c <= '9') digit = static_cast<unsigned>(c - '0');
      if (c >= 'a' && c <= 'f') digit = static_cast<unsigned>(c - 'a') + 10;
      if (digit >= base) break;
      too_large = too_large || value > (most - digit) / base;
      value = value * base + digit;
    }
    if (digits == 0 || too_large || (base == 16 && digits > 16)) good_ = false;
    return value;
  }
  std::uint32_t small() {
    const std::uint64_t value = number(16);
    if (value >> 32 != 0) good_ = false;
    return static_cast<std::uint32_t>(value);
  }
  void expect(char c) {
    if (at_ >= line_.size() || line_[at_] != c) good_ = false;
    ++at_;
  }
  bool one_of(char yes, char no) {
    const char c = at_ < line_.size() ? line_[at_] : '\0';
    ++at_;
    if (c != yes && c != no) good_ = false;
    return c == yes;
  }

  std::string_view line_;
  std::size_t at_ = 0;
  bool good_ = true;
};

/// All lines before the first bad one, and whether there is one.
struct Answer {
  std::vector<Vma> vmas;
  std::optional<std::uint64_t> bad;  ///< its number
  friend bool operator==(const Answer&, const Answer&) = default;
};

Answer naive(std::string_view text) {
  Answer answer;
  std::uint64_t number = 1;
  for (std::size_t at = 0; at < text.size(); ++number) {
    const std::size_t newline = std::min(text.find('\n', at), text.size());
    auto vma = NaiveLine(text.substr(at, newline - at)).parse();
    if (!vma) {
      answer.bad = number;
      break;
    }
    answer.vmas.push_back(std::move(*vma));
    at = newline + 1;
  }
  return answer;
}

Answer parsed(std::string_view text) {
  // A block of exactly that size: a sanitizer sees a read beyond it.
  const std::vector<char> exact(text.begin(), text.end());
  Answer answer;
  const auto result = parse_maps({exact.data(), exact.size()}, [&](const Vma& vma) {
    answer.vmas.push_back(vma);
    return true;
  });
  if (!result) answer.bad = result.error().line;
  return answer;
}

std::string random_line(std::mt19937_64& random) {
  const std::uint64_t start = random() >> (8 + random() % 44) & ~std::uint64_t{4095};
  const std::uint64_t end = start + ((random() >> (40 + random() % 24)) << 12);
  const bool file = random() % 3 == 0;
  char line[256];
  const auto wide = [](std::uint64_t value) { return static_cast<unsigned long long>(value); };
  std::snprintf(line, sizeof line, "%08llx-%08llx %c%c%c%c %08llx %02x:%02x %llu ", wide(start),
                wide(end), "r-"[random() % 2], "w-"[random() % 2], "x-"[random() % 2],
                "sp"[random() % 2], wide(file ? random() >> random() % 64 : 0),
                static_cast<unsigned>(file ? random() % 300 : 0),
                static_cast<unsigned>(file ? random() % 70000 : 0),
                wide(file ? random() >> random() % 64 : 0));
  std::string text = line;
  static constexpr std::string_view names[] = {"[heap]",    "/usr/lib/libc.so.6", "/a\\012b",
                                               "/a\\\\012", "/tmp/x (deleted)",   "[anon: a b]",
                                               "/\\01",     "/ends in \\012"};
  if (file || random() % 8 == 0) {
    text.resize(std::max<std::size_t>(text.size(), 73), ' ');
    text += names[random() % std::size(names)];
  }
  return text += '\n';
}

void mutate(std::string& text, std::mt19937_64& random) {
  static constexpr std::string_view favourites = "\n -:\\/0123456789abcdefgAFGrwxps\x7f\x80\xff";
  for (auto n = 1 + random() % 3; n > 0 && !text.empty(); --n) {
    const std::size_t at = random() % text.size();
    const char other =
        random() % 4 == 0 ? static_cast<char>(random()) : favourites[random() % favourites.size()];
    switch (random() % 5) {
      case 0:
        text.erase(at, 1 + random() % 3);
        break;
      case 1:
        text.insert(at, 1, other);
        break;
      case 2:
        text.resize(at);
        break;
      default:
        text[at] = other;
        break;
    }
  }
}

}  // namespace

TEST_CASE("maps: the naive twin agrees on every line, sound or not") {
  std::mt19937_64 random(11);
  std::uint64_t lines = 0, bad = 0;
  for (int i = 0; i < 300'000; ++i) {
    std::string text;
    for (auto n = 1 + random() % 12; n > 0; --n, ++lines) text += random_line(random);
    if (i % 2 != 0) mutate(text, random);
    const Answer expected = naive(text);
    bad += expected.bad ? 1 : 0;
    if (parsed(text) == expected) continue;
    CAPTURE(i, text);
    REQUIRE(parsed(text) == expected);
  }
  CHECK(lines > 1'900'000);
  CHECK(bad > 50'000);
}

TEST_CASE("maps: every byte of a short line, in every place") {
  const std::string text =
      "7f0387f4d000-7f03880a3000 rw-p 00000000 00:00 0 \n"
      "7f03880a3000-7f03880a4000 r-xs 00001000 fe:00 7 /a\n"
      "00400000-00401000 ---p 00000000 00:00 0 \n"
      "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]\n";
  for (std::size_t at = 0; at < text.size(); ++at) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string changed = text;
      changed[at] = static_cast<char>(byte);
      if (parsed(changed) == naive(changed)) continue;
      CAPTURE(at, byte);
      REQUIRE(parsed(changed) == naive(changed));
    }
  }
}

TEST_CASE("hexadecimal text, many digits at a time") {
  std::mt19937_64 random(12);
  for (int i = 0; i < 400'000; ++i) {
    std::string text(16, 'x');
    const auto count = static_cast<unsigned>(8 + random() % 9);
    for (unsigned n = 0; n < count; ++n) text[n] = "0123456789abcdef"[random() % 16];
    if (i % 2 != 0) text[random() % 16] = static_cast<char>(random());
    const std::string_view digits = std::string_view(text).substr(0, count);
    const bool good = digits.find_first_not_of("0123456789abcdef") == std::string_view::npos;
    CAPTURE(text, count);
    std::uint64_t bad = 0, bad_plain = 0;
    const std::uint64_t value = hex_number(text.data(), count, bad);
    const std::uint64_t plain = hex_number_plain(text.data(), count, bad_plain);
    REQUIRE((bad == 0) == good);
    REQUIRE((bad_plain == 0) == good);
    if (!good) continue;
    const std::uint64_t expected = std::stoull(std::string(digits), nullptr, 16);
    REQUIRE(value == expected);
    REQUIRE(plain == expected);
  }
}
