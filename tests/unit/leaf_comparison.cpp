// SPDX-License-Identifier: MIT
/// All ways of comparing leaves that this CPU has, against a loop.
#include "leaf_comparison.hpp"

#include <cstdint>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

#include "support/catch.hpp"

using vmem::page_table::Fields;
using vmem::page_table::LeafComparison;
using vmem::page_table::Stretch;
using Way = LeafComparison::Way;

namespace {

bool bit_of(const Stretch::Bits& bits, std::size_t n) { return (bits[n / 64] >> n % 64 & 1) != 0; }

/// What `look` must find, entry by entry.
void check(Fields fields, std::uint64_t step, const std::uint64_t* at, std::size_t most, Way way) {
  Stretch s;
  for (auto* bits : {&s.jumps, &s.low, &s.high}) bits->fill(0x5555555555555555);
  LeafComparison{fields, step, way}.look(at, most, s);

  const std::uint64_t same = ~(fields.frame | fields.usage);
  std::size_t count = 0;
  while (count < most && (at[count] & same) == (at[-1] & same)) ++count;
  REQUIRE(s.count == count);
  for (std::size_t n = 0; n < count; ++n) {
    const std::uint64_t before = n == 0 ? at[-1] : at[n - 1];
    REQUIRE(bit_of(s.jumps, n) == ((at[n] & ~fields.usage) != (before & ~fields.usage) + step));
    REQUIRE(bit_of(s.low, n) == ((at[n] & fields.low_usage()) != 0));
    REQUIRE(bit_of(s.high, n) == ((at[n] & fields.high_usage()) != 0));
  }
}

std::vector<Way> ways() {
  std::vector<Way> all{Way::plain, Way::avx2, Way::avx512};
  std::erase_if(all, [](Way way) { return way > LeafComparison::best_way(); });
  return all;
}

}  // namespace

TEST_CASE("leaves are compared alike by every way that the CPU has") {
  if (ways().size() < 3)
    WARN("this CPU has " << ways().size() << " of 3 ways: the others are not tested");
  const Fields x86{0x000ffffffffff000, 0x60};
  const Fields x86_large{0x000fffffffe00000, 0x60};
  const Fields arm64{0x0000fffffffff000, 0};
  struct Case {
    Fields fields;
    std::uint64_t step;
  };
  const Case cases[] = {
      {x86, 0x1000}, {x86, 0 - std::uint64_t{0x1000}}, {x86_large, 0x200000}, {arm64, 0x1000}};
  std::mt19937_64 random(20261128);
  const auto one_in = [&](std::uint64_t n) { return n != 0 && random() % n == 0; };
  for (int round = 0; round < 4000; ++round) {
    const Case& c = cases[random() % std::size(cases)];
    const std::size_t most =
        one_in(2) ? 1 + random() % Stretch::most : Stretch::most - random() % 3;
    const std::uint64_t jump = std::uint64_t{1} << random() % 12, use = 1 + random() % 40,
                        unlike = one_in(3) ? 1 + random() % 600 : 0;
    // Of just this size: a sanitizer sees a read beyond it.
    const auto entries = std::make_unique<std::uint64_t[]>(most + 1);
    std::uint64_t next = (random() & c.fields.frame) | (random() & ~c.fields.frame);
    for (std::size_t n = 0; n <= most; ++n, next += c.step) {
      if (one_in(jump)) next = (next & ~c.fields.frame) | (random() & c.fields.frame);
      if (one_in(use)) next ^= random() & c.fields.usage;
      if (one_in(unlike)) next ^= std::uint64_t{1} << random() % 64;
      entries[n] = next;
    }
    for (const Way way : ways()) check(c.fields, c.step, &entries[1], most, way);
  }
}

TEST_CASE("a frame at the top of its field is followed by none") {
  const Fields fields{0x000ffffffffff000, 0x60};
  for (const std::size_t most : {1U, 7U, 63U, 64U, 65U, 511U, 512U}) {
    for (std::size_t top = 0; top < most; ++top) {
      const auto entries = std::make_unique<std::uint64_t[]>(most + 1);
      for (std::size_t n = 0; n <= most; ++n) entries[n] = 0x000ffffffffff067 + (n - top) * 0x1000;
      for (const Way way : ways()) check(fields, 0x1000, &entries[1], most, way);
    }
  }
}
