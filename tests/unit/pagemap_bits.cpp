// SPDX-License-Identifier: MIT
#include <random>

#include "pagemap_decode.hpp"
#include "support/catch.hpp"
#include "support/naive_twin.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// Entries that a live kernel showed, and what they were.
struct Seen {
  std::uint64_t entry;
  PageState state;
  Reason reason;
  std::uint64_t value;
  std::uint8_t swap_type;
  std::uint8_t bits;
};

constexpr std::uint8_t soft = page_bit::soft_dirty, excl = page_bit::exclusive,
                       wp = page_bit::uffd_wp, file = page_bit::file;

}  // namespace

TEST_CASE("entries as kernels show them") {
  const Seen seen[] = {
      {0, PageState::absent, Reason::none, 0, 0, 0},
      {0x8180000000161143, PageState::resident, Reason::none, 0x161143, 0, soft | excl},
      {0xa100000000001234, PageState::resident, Reason::none, 0x1234, 0, excl | file},
      {0xa000000000103079, PageState::resident, Reason::none, 0x103079, 0, file},
      {0x8000000000000000, PageState::resident, Reason::none, 0, 0, 0},
      {0x8000ffffffffffff, PageState::resident, Reason::none, 0xffffffffffff, 0, 0},
      // Its address would be 0 again.
      {0x8001000000000000, PageState::special, Reason::unknown_entry, 0, 0, 0},
      {0x807fffffffffffff, PageState::special, Reason::unknown_entry, 0, 0, 0},
      {0x8200000000000007, PageState::resident, Reason::none, 7, 0, wp},
      {0x440000000000009f, PageState::guard, Reason::none, 0, 0, 0},
      {0x400000000000009f, PageState::guard, Reason::none, 0, 0, 0},
      {0x4400000000000000, PageState::guard, Reason::none, 0, 0, 0},
      {0x420000000000003f, PageState::special, Reason::uffd_wp_marker, 0, 0, wp},
      {0x400000000000005f, PageState::special, Reason::poison_marker, 0, 0, 0},
      {0x400000000000011f, PageState::special, Reason::other_marker, 0, 0, 0},
      {0x400000000000001f, PageState::special, Reason::other_marker, 0, 0, 0},
      {0x40000000000a001e, PageState::special, Reason::migration_or_device, 0x5000, 30, 0},
      {0x4000000000000037, PageState::special, Reason::migration_or_device, 1, 23, 0},
      // No machine has that frame.
      {0x403fffffffffffde, PageState::special, Reason::unknown_entry, 0, 0, 0},
      {0x4000000000000036, PageState::swapped, Reason::none, 1, 22, 0},
      {0x4000000000002000, PageState::swapped, Reason::none, 0x100, 0, 0},
      {0x40ffffffffffffe1, PageState::swapped, Reason::none, 0x3ffffffffffff, 1, soft},
      {0x4000000000000000, PageState::swapped, Reason::none, 0, 0, 0},
      {0x6000000000000021, PageState::swapped, Reason::none, 1, 1, file},
  };
  for (const Seen& s : seen) {
    CAPTURE(s.entry);
    const auto d = pagemap::decode(s.entry, true);
    CHECK(d.state == s.state);
    CHECK(d.reason == s.reason);
    CHECK(d.value == s.value);
    CHECK(d.swap_type == s.swap_type);
    CHECK(d.bits == s.bits);
  }
}

TEST_CASE("a reader without proof takes a zero field for hidden, never for an answer") {
  CHECK(pagemap::decode(0x8100000000000000, false).state == PageState::hidden);
  CHECK(pagemap::decode(0x8100000000000001, false).state == PageState::resident);
  const auto swapped = pagemap::decode(0x4000000000000000, false);
  CHECK(swapped.state == PageState::swapped);
  CHECK(swapped.reason == Reason::swap_fields_hidden);
  CHECK(pagemap::decode(0x4400000000000000, false).state == PageState::guard);
  CHECK(pagemap::decode(0, false).state == PageState::absent);
  CHECK(pagemap::decode(0x0080000000000000, false).state == PageState::absent);
}

TEST_CASE("bit 55 alone, as VM_PFNMAP shows it, is no page") {
  CHECK(pagemap::decode(0x0080000000000000, true).state == PageState::absent);
}

TEST_CASE("any 64 bits decode as the twin reads the table") {
  std::mt19937_64 random(5);
  for (int i = 0; i < 300'000; ++i) {
    std::uint64_t entry = random();
    if (i % 2 != 0) entry &= ~(random() & ((1ULL << 55) - 1));
    if (i % 3 == 0) entry &= 0xfff00000000003ff;
    for (const bool proven : {true, false}) {
      const auto d = pagemap::decode(entry, proven);
      const TwinPage twin = twin_decode(entry, proven);
      const bool same = d.state == twin.state && d.reason == twin.reason &&
                        d.value == twin.number && d.swap_type == twin.swap_type &&
                        (d.state == PageState::absent || d.bits == twin.bits);
      if (!same) FAIL("entry " << std::hex << entry << " proven " << proven);
    }
  }
}
