// SPDX-License-Identifier: MIT
#include "extent_builder.hpp"

#include <random>
#include <vector>

#include "support/catch.hpp"

using namespace vmem;

namespace {

constexpr PageSize p{4096};

Extent run(std::uint64_t page, std::uint64_t pages, PageState state, std::uint64_t number = 0) {
  Extent e;
  e.va = {page * 4096};
  e.bytes = pages * 4096;
  e.state = state;
  if (state == PageState::resident)
    e.pfn = {number};
  else
    e.swap_offset = number;
  return e;
}

std::vector<Extent> built(const std::vector<Extent>& runs) {
  std::vector<Extent> out;
  const auto keep = [&](const Extent& e) {
    out.push_back(e);
    return true;
  };
  ExtentBuilder builder{p, keep};
  for (const Extent& e : runs) CHECK(builder.add(e));
  CHECK(builder.flush());
  return out;
}

}  // namespace

TEST_CASE("consecutive frames at consecutive addresses are one extent") {
  const auto out = built({run(1, 2, PageState::resident, 10), run(3, 1, PageState::resident, 12),
                          run(4, 3, PageState::resident, 13)});
  REQUIRE(out.size() == 1);
  CHECK(out[0].va == VirtAddr{4096});
  CHECK(out[0].bytes == 6 * 4096);
  CHECK(out[0].pfn == Pfn{10});
}

TEST_CASE("what is not one") {
  const Extent base = run(1, 2, PageState::resident, 10);
  Extent next = run(3, 1, PageState::resident, 12);
  SECTION("control: it is one") {
    CHECK(built({base, next}).size() == 1);
    return;
  }
  SECTION("frames jump") next.pfn = {13};
  SECTION("frames stand still") next.pfn = {10};
  SECTION("frames run down") next.pfn = {9};
  SECTION("addresses jump") next.va = {4 * 4096};
  SECTION("state") next.state = PageState::hidden;
  SECTION("reason") next.reason = Reason::pfnmap;
  SECTION("bits") next.bits = page_bit::soft_dirty;
  SECTION("leaf") next.leaf_shift = 21;
  SECTION("swap type") next.swap_type = 1;
  SECTION("backend") next.backend = Backend::bpf;
  SECTION("page-table attributes") next.pte = 1;
  CHECK(built({base, next}).size() == 2);
}

TEST_CASE("states without a number merge whatever their number field says") {
  for (const PageState state :
       {PageState::absent, PageState::guard, PageState::hidden, PageState::unseen,
        PageState::unmapped, PageState::special, PageState::changed}) {
    CHECK(built({run(0, 1, state, 5), run(1, 1, state, 99)}).size() == 1);
  }
  Extent a = run(0, 1, PageState::swapped), b = run(1, 1, PageState::swapped);
  a.reason = b.reason = Reason::swap_fields_hidden;
  CHECK(built({a, b}).size() == 1);
}

TEST_CASE("the frames that entries name count, too") {
  const auto entry = [](std::uint64_t page, std::uint64_t frame, Reason reason) {
    Extent e = run(page, 1, PageState::special);
    e.pfn = {frame};
    e.reason = reason;
    return e;
  };
  for (const Reason reason :
       {Reason::migration_or_device, Reason::poison, Reason::migration, Reason::device_private,
        Reason::device_exclusive, Reason::migration_or_exclusive}) {
    CHECK(built({entry(0, 7, reason), entry(1, 8, reason)}).size() == 1);
    CHECK(built({entry(0, 7, reason), entry(1, 7, reason)}).size() == 2);
    Extent both = built({entry(0, 7, reason), entry(1, 8, reason)})[0];
    CHECK(cut_front(both, 4096, p).pfn == Pfn{7});
    CHECK(both.pfn == Pfn{8});
  }
  CHECK(built({entry(0, 7, Reason::poison), entry(1, 8, Reason::migration)}).size() == 2);
  CHECK(built({entry(0, 7, Reason::poison_marker), entry(1, 9, Reason::poison_marker)}).size() ==
        1);
}

TEST_CASE("swap slots count as frames do") {
  CHECK(built({run(0, 2, PageState::swapped, 7), run(2, 1, PageState::swapped, 9)}).size() == 1);
  CHECK(built({run(0, 2, PageState::swapped, 7), run(2, 1, PageState::swapped, 8)}).size() == 2);
}

TEST_CASE("what the processor sets page by page ends no extent, and says so") {
  constexpr std::uint16_t known = pte_bit::known | pte_bit::writable;
  constexpr std::uint16_t a = pte_bit::accessed, d = pte_bit::dirty;
  // Any pages of any usage: a bit is set if all have it, and varies if some have.
  const std::uint16_t usages[] = {0, a, d, a | d};
  for (unsigned pattern = 0; pattern < 4 * 4 * 4 * 4; ++pattern) {
    CAPTURE(pattern);
    std::vector<Extent> runs;
    unsigned all = a | d, some = 0;
    for (unsigned page = 0; page < 4; ++page) {
      Extent e = run(page, 1, PageState::resident, 100 + page);
      const std::uint16_t usage = usages[pattern >> (2 * page) & 3];
      e.pte = known | usage;
      all &= usage;
      some |= usage;
      runs.push_back(e);
    }
    unsigned expected = known | all;
    if ((some & ~all & a) != 0) expected |= pte_bit::accessed_varies;
    if ((some & ~all & d) != 0) expected |= pte_bit::dirty_varies;
    const auto out = built(runs);
    REQUIRE(out.size() == 1);
    CHECK(out[0].pte == expected);
    // In whatever order they are put together
    Extent left = built({runs[0], runs[1]})[0], right = built({runs[2], runs[3]})[0];
    CHECK(built({left, right})[0].pte == expected);
    CHECK(merged_usage(right.pte, left.pte) == expected);
  }
}

TEST_CASE("every other bit of the page-table entry does end an extent") {
  for (unsigned n = 0; n < 16; ++n) {
    CAPTURE(n);
    Extent first = run(0, 1, PageState::resident, 5), second = run(1, 1, PageState::resident, 6);
    first.pte = second.pte = pte_bit::known | pte_bit::cache(CacheAttribute::wc);
    second.pte = static_cast<std::uint16_t>(second.pte ^ 1U << n);
    const bool usage = (pte_bit::usage >> n & 1) != 0;
    CHECK(usage == (n >= 5 && n <= 8));
    CHECK(built({first, second}).size() == (usage ? 1 : 2));
  }
}

TEST_CASE("a whole run goes past the builder, after what it holds") {
  std::vector<Extent> out;
  bool open = true;
  const auto sink = [&](const Extent& e) {
    out.push_back(e);
    return open;
  };
  ExtentBuilder builder{p, sink};
  CHECK(builder.hand_on(run(0, 1, PageState::resident, 1)));
  CHECK(out.size() == 1);
  CHECK(builder.add(run(1, 1, PageState::resident, 5)));
  CHECK(out.size() == 1);
  CHECK(builder.hand_on(run(2, 1, PageState::resident, 9)));
  REQUIRE(out.size() == 3);
  CHECK(out[1].pfn == Pfn{5});
  CHECK(out[2].pfn == Pfn{9});
  CHECK(builder.add(run(3, 1, PageState::resident, 20)));
  open = false;
  CHECK_FALSE(builder.hand_on(run(4, 1, PageState::resident, 30)));
  CHECK(out.size() == 4);
  CHECK_FALSE(builder.flush());
  CHECK_FALSE(builder.hand_on(run(5, 1, PageState::resident, 40)));
  CHECK(out.size() == 4);
}

TEST_CASE("nothing in, nothing out") { CHECK(built({}).empty()); }

TEST_CASE("a sink that has had enough gets no more") {
  int seen = 0;
  const auto sink = [&](const Extent&) { return ++seen < 2; };
  ExtentBuilder builder{p, sink};
  CHECK(builder.add(run(0, 1, PageState::resident, 1)));
  CHECK(builder.add(run(1, 1, PageState::resident, 5)));
  CHECK_FALSE(builder.add(run(2, 1, PageState::resident, 9)));
  CHECK_FALSE(builder.flush());
  CHECK(seen == 2);
}

TEST_CASE("marks are added to what comes, and what they make alike is one extent") {
  std::vector<Extent> out;
  const auto sink = [&](const Extent& e) {
    out.push_back(e);
    return true;
  };
  ExtentBuilder builder{p, sink};
  Extent dirty = run(1, 1, PageState::resident, 2);
  dirty.bits = page_bit::soft_dirty;
  builder.mark(page_bit::soft_dirty);
  CHECK(builder.add(run(0, 1, PageState::resident, 1)));
  CHECK(builder.add(dirty));
  CHECK(builder.add(run(2, 1, PageState::absent, 0)));
  builder.mark(0);
  CHECK(builder.add(run(3, 1, PageState::resident, 3)));
  builder.mark(page_bit::uffd_wp);
  CHECK(builder.hand_on(run(4, 1, PageState::resident, 9)));
  REQUIRE(out.size() == 4);
  CHECK((out[0].bytes == 2 * p.bytes() && out[0].bits == page_bit::soft_dirty));
  CHECK((out[1].state == PageState::absent && out[1].bits == 0));
  CHECK((out[2].bytes == p.bytes() && out[2].bits == 0));
  CHECK(out[3].bits == page_bit::uffd_wp);
}

TEST_CASE("cutting an extent anywhere and merging gives it back") {
  std::mt19937_64 random(6);
  for (int i = 0; i < 2000; ++i) {
    Extent whole = run(random() % 100, 2 + random() % 50, static_cast<PageState>(random() % 9),
                       random() % 1000);
    if (random() % 4 == 0) whole.reason = Reason::swap_fields_hidden;
    Extent rest = whole;
    std::vector<Extent> pieces;
    while (rest.bytes > 4096 && random() % 4 != 0)
      pieces.push_back(cut_front(rest, (1 + random() % (rest.bytes / 4096 - 1)) * 4096, p));
    pieces.push_back(rest);
    std::uint64_t at = whole.va.value;
    for (const Extent& piece : pieces) {
      CHECK(piece.va.value == at);
      at += piece.bytes;
    }
    const auto out = built(pieces);
    REQUIRE(out.size() == 1);
    CHECK(out[0].va == whole.va);
    CHECK(out[0].bytes == whole.bytes);
    CHECK(out[0].swap_offset == whole.swap_offset);
  }
}
