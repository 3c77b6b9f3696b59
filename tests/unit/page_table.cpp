// SPDX-License-Identifier: MIT
/// What both architectures share: levels, limits, and whole tables against their entries.
#include "page_table.hpp"

#include <algorithm>
#include <random>

#include "support/catch.hpp"
#include "support/page_table_twin.hpp"

using namespace vmem;
using namespace vmem::page_table;
using namespace vmem::test;

namespace {

Format x86(std::uint8_t levels = 4) { return {.levels = levels}; }
Format arm64(std::uint8_t page_shift, std::uint8_t levels, std::uint8_t swap_type_shift = 6) {
  Format f;
  f.architecture = Architecture::arm64;
  f.page_shift = page_shift;
  f.levels = levels;
  f.mair = 0x000000040044f0ff;
  f.swap_type_shift = swap_type_shift;
  return f;
}

/// An address that an entry of `shift` may map: below 2^46, or as far up as sixteen of its leaves
/// reach.
std::uint64_t random_frame(unsigned shift, std::mt19937_64& random) {
  const unsigned top = std::max(46U, shift + 4);
  return random() % (1ULL << (top - shift)) << shift;
}

/// Entries as tables have them: stretches of one kind, of which some are frame after frame, with
/// single entries that differ in one bit; and now and then anything at all.
std::vector<std::uint64_t> random_table(const Format& f, unsigned level, std::mt19937_64& random) {
  const bool is_x86 = f.architecture == Architecture::x86_64;
  const unsigned shift = f.shift(level);
  const std::uint64_t x86_kinds[] = {
      0,
      0x8000000000000067 | (level == 0 ? 0 : 0x80ULL),  // private, written
      0x8000000000000025 | (level == 0 ? 0 : 0x80ULL),  // read-only
      0x8000000000000277 | (level == 0 ? 0 : 0x80ULL),  // a driver's
      0x000ffffffffff120 | (level == 0 ? 0 : 0x80ULL),  // PROT_NONE, frame 0
      0x07fffffffffffe00,                               // swap, offset 0
      0xf800000000000000 | (~std::uint64_t{4} & ((1ULL << 50) - 1)) << 9,  // guard
      0x67,                                             // a table, or a page
      0x20,                                             // empty all the same
      0x8400000000000025 | (level == 0 ? 0 : 0x80ULL),  // dirty by bit 58, whatever bit 6 says
  };
  const std::uint64_t arm64_kinds[] = {
      0,
      level == 0 ? 0x00e8000000000f43ULL : 0x00e8000000000f41ULL,  // written
      level == 0 ? 0x0060000000000fc3ULL : 0x0060000000000fc1ULL,  // read-only
      level == 0 ? 0x0068000000000f4bULL : 0x0068000000000f49ULL,  // nc
      level == 0 ? 0x0060000000000f82ULL : 0x0060000000000f80ULL,  // PROT_NONE since 6.11
      0x0000000000001000,                                          // swap, offset 1
      0x00000000000047c0,                                          // guard
      0x0800000000000003,                                          // a table, or a page
  };
  const std::size_t kinds = is_x86 ? std::size(x86_kinds) : std::size(arm64_kinds);
  std::vector<std::uint64_t> table;
  while (table.size() < f.entries()) {
    const std::uint64_t kind = random() % 16;
    std::size_t length = 1 + random() % (random() % 4 == 0 ? 200 : 12);
    std::uint64_t frame = random_frame(shift, random);
    // Up to the end of what an address can be, and over it.
    if (random() % 8 == 0)
      frame = (1ULL << (random() % 2 != 0 ? 48 : 52)) - ((random() % 8) << shift);
    const bool consecutive = random() % 2 != 0;
    const bool fickle = random() % 2 != 0;
    for (; length > 0 && table.size() < f.entries(); --length) {
      std::uint64_t raw = random();
      if (kind < 15) {
        raw = is_x86 ? x86_kinds[kind % kinds] : arm64_kinds[kind % kinds];
        if (raw != 0) raw ^= frame & ((1ULL << 52) - 1);
        if (fickle && random() % 4 == 0)
          raw ^= is_x86 ? 0x60 & random() : 0x0080000000000480 & random();
        if (random() % 64 == 0) raw ^= 1ULL << random() % 64;
      }
      table.push_back(raw);
      frame = consecutive ? frame + (1ULL << shift) : random_frame(shift, random);
    }
  }
  return table;
}

}  // namespace

TEST_CASE("levels, their entries and names") {
  const auto names = [](const Format& f) {
    std::string all;
    for (unsigned level = 0; level < f.levels; ++level) (all += level_name(f, level)) += ' ';
    return all;
  };
  CHECK(names(x86(4)) == "pte pmd pud pgd ");
  CHECK(names(x86(5)) == "pte pmd pud p4d pgd ");
  CHECK(names(arm64(16, 2)) == "pte pgd ");
  CHECK(names(arm64(16, 3)) == "pte pmd pgd ");
  CHECK(names(arm64(12, 4)) == "pte pmd pud pgd ");
  CHECK(names(arm64(12, 5)) == "pte pmd pud p4d pgd ");

  CHECK(x86().entries() == 512);
  CHECK(x86().shift(0) == 12);
  CHECK(x86().shift(1) == 21);
  CHECK(x86().shift(2) == 30);
  CHECK(x86(5).shift(4) == 48);
  CHECK(arm64(14, 4).entries() == 2048);
  CHECK(arm64(14, 4).shift(1) == 25);
  CHECK(arm64(16, 3).entries() == 8192);
  CHECK(arm64(16, 3).shift(1) == 29);

  const VirtAddr va{0x7ffd'1234'5678};
  CHECK(x86().index(0, va) == 0x145);
  CHECK(x86().index(1, va) == 0x91);
  CHECK(x86().index(2, va) == 0x1f4);
  CHECK(x86().index(3, va) == 0xff);
  CHECK(x86(5).index(4, {std::uint64_t{1} << 54}) == 64);
  CHECK(arm64(16, 3).index(0, va) == 0x1234);
}

TEST_CASE("what upper levels take away") {
  constexpr std::uint64_t table = 0x12345067, nx = 1ULL << 63;
  const Limits all;
  for (const std::uint8_t levels : {std::uint8_t{4}, std::uint8_t{5}}) {
    const Format f = x86(levels);
    for (unsigned level = 1; level < levels; ++level) {
      CAPTURE(level);
      CHECK(limits(f, level, all, table) == all);
      CHECK(limits(f, level, all, table & ~2ULL) == Limits{false, true, true});
      CHECK(limits(f, level, all, table & ~4ULL) == Limits{true, false, true});
      // "PGD 8000000103e5f067" is what an oops shows under page-table isolation.
      CHECK(limits(f, level, all, table | nx) == Limits{true, true, level == levels - 1U});
      CHECK(limits(f, level, {false, false, false}, table) == Limits{false, false, false});
    }
  }
  const Format f = arm64(12, 4);
  constexpr std::uint64_t arm_table = 0x0800000012345003;
  CHECK(limits(f, 1, all, arm_table) == all);
  CHECK(limits(f, 1, all, arm_table | 1ULL << 60) == Limits{true, true, false});
  CHECK(limits(f, 3, all, arm_table | 1ULL << 61) == Limits{true, false, true});
  CHECK(limits(f, 2, all, arm_table | 1ULL << 62) == Limits{false, true, true});
  CHECK(limits(f, 2, {false, true, false}, arm_table) == Limits{false, true, false});

  constexpr std::uint16_t pte = pte_bit::known | pte_bit::writable | pte_bit::user |
                                pte_bit::executable | pte_bit::dirty |
                                pte_bit::cache(CacheAttribute::wc);
  CHECK(limited(pte, all) == pte);
  CHECK(limited(pte, {false, true, true}) == (pte & ~pte_bit::writable));
  CHECK(limited(pte, {true, false, true}) == (pte & ~pte_bit::user));
  CHECK(limited(pte, {true, true, false}) == (pte & ~pte_bit::executable));
  CHECK(limited(0, {false, false, false}) == 0);
}

TEST_CASE("a table is its entries, whatever is in it") {
  std::vector<Format> formats = {x86(4),          x86(5),          arm64(12, 4), arm64(12, 4, 3),
                                 arm64(12, 4, 2), arm64(12, 4, 0), arm64(14, 4), arm64(16, 3)};
  formats.push_back(x86());
  formats.back().encryption_mask = 1ULL << 47;
  formats.push_back(x86());
  formats.back().saved_dirty = true;
  formats.push_back(arm64(12, 5));
  formats.back().lpa2 = true;
  std::mt19937_64 random(7);
  for (const Format& f : formats) {
    for (unsigned level = 0; level < f.levels; ++level) {
      for (int repeat = 0; repeat < 60; ++repeat) {
        const auto table = random_table(f, level, random);
        const std::size_t first = random() % 3 == 0 ? random() % table.size() : 0;
        const auto part = std::span(table).subspan(first);
        const VirtAddr va{first << f.shift(level)};
        const Limits above{random() % 2 != 0, random() % 2 != 0, random() % 2 != 0};
        CAPTURE(static_cast<int>(f.architecture), +f.page_shift, level, repeat);
        REQUIRE(complaint(f, level, va, part, above).empty());
      }
    }
  }
}

TEST_CASE("any entry gets an answer within bounds") {
  std::mt19937_64 random(8);
  const Format formats[] = {x86(4),          x86(5),          arm64(12, 4), arm64(12, 4, 3),
                            arm64(12, 4, 2), arm64(12, 4, 0), arm64(14, 4), arm64(16, 3)};
  for (const Format& f : formats) {
    for (int i = 0; i < 40'000; ++i) {
      std::uint64_t raw = random();
      if (i % 2 != 0) raw &= random() & random();
      const unsigned level = static_cast<unsigned>(random() % f.levels);
      CAPTURE(raw, level);
      REQUIRE(complaint(f, level, raw).empty());
    }
  }
}

TEST_CASE("whoever has had enough is not called again") {
  const Format f = x86();
  std::mt19937_64 random(9);
  const auto table = random_table(f, 1, random);
  for (const Into into : {Into::builder, Into::sink}) {
    const std::size_t whole = decode_all(f, 1, {0}, table, {}, into).calls.size();
    REQUIRE(whole > 20);
    for (std::size_t calls = 1; calls <= whole; ++calls) {
      const Decoding d = decode_all(f, 1, {0}, table, {}, into, calls);
      CHECK_FALSE(d.finished);
      CHECK(d.calls.size() == calls);
      CHECK(complaint(f, 1, {0}, table, {}, d).empty());
    }
  }
}

TEST_CASE("one builder joins what tables next to each other have") {
  const Format f = x86();
  std::vector<std::uint64_t> first(512), second(512);
  for (std::uint64_t i = 0; i < 512; ++i) {
    first[i] = 0x8000000000000067 | (0x1000 + i) << 12;
    second[i] = 0x8000000000000067 | (0x1200 + i) << 12;
  }
  second[511] = 0;
  std::vector<Extent> out;
  const auto sink = [&](const Extent& e) {
    out.push_back(e);
    return true;
  };
  const auto none = [](VirtAddr, std::uint64_t) { return false; };
  ExtentBuilder builder{PageSize{4096}, sink};
  CHECK(decode_entries(f, 0, {0}, first, {}, Backend::bpf, builder, none));
  CHECK(out.empty());
  CHECK(decode_entries(f, 0, {0x200000}, second, {}, Backend::bpf, builder, none));
  CHECK(decode_entries(f, 0, {0x400000}, {}, {}, Backend::bpf, builder, none));
  CHECK(builder.flush());
  REQUIRE(out.size() == 2);
  CHECK(out[0].bytes == 1023 * 4096);
  CHECK(out[0].pfn == Pfn{0x1000});
  CHECK(out[0].leaf_shift == 12);
  CHECK(out[1].state == PageState::absent);
}
