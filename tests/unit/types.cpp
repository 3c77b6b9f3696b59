// SPDX-License-Identifier: MIT
#include "vmem/types.hpp"

#include <limits>
#include <type_traits>

#include "support/catch.hpp"

using namespace vmem;

namespace {

template <class A, class B>
concept comparable = requires(A a, B b) { a == b; };
template <class A, class B>
concept subtractable = requires(A a, B b) { a - b; };
template <class A, class B>
concept addable = requires(A a, B b) { a + b; };

// What must not compile: bytes, pages and frames, virtual and physical, do not mix.
static_assert(!comparable<VirtAddr, PhysAddr> && !comparable<PhysAddr, Pfn> &&
              !comparable<VirtAddr, Pfn>);
static_assert(!subtractable<VirtAddr, PhysAddr> && !subtractable<PhysAddr, Pfn>);
static_assert(!addable<VirtAddr, VirtAddr> && !addable<PhysAddr, PhysAddr> && !addable<Pfn, Pfn>);
static_assert(!std::is_convertible_v<std::uint64_t, PageSize>);

}  // namespace

TEST_CASE("page sizes are powers of two from 4 KiB to 1 TiB") {
  CHECK(PageSize::valid(4096));
  CHECK(PageSize::valid(std::uint64_t{1} << 40));
  for (const std::uint64_t bad :
       {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{3}, std::uint64_t{2048},
        std::uint64_t{4095}, std::uint64_t{4097}, std::uint64_t{12288}, std::uint64_t{1} << 41,
        std::uint64_t{1} << 63, std::numeric_limits<std::uint64_t>::max()}) {
    CAPTURE(bad);
    CHECK_FALSE(PageSize::valid(bad));
  }
  CHECK(PageSize{}.bytes() == 4096);
  CHECK(PageSize{65536}.shift() == 16);
}

TEST_CASE("page arithmetic") {
  const PageSize p{16384};
  CHECK(p.pages(16384 * 3) == 3);
  CHECK(p.offset({0x12345}) == 0x2345);
  CHECK(p.floor({0x17fff}) == VirtAddr{0x14000});
  CHECK(p.ceil({0x10001}) == VirtAddr{0x14000});
  CHECK(p.ceil({0x14000}) == VirtAddr{0x14000});
  CHECK(p.address({5}) == PhysAddr{5 * 16384});
  CHECK(p.frame({5 * 16384 + 77}) == Pfn{5});
  SECTION("a frame and its address are each other's inverse") {
    for (std::uint64_t pfn = 0; pfn < 1000; pfn += 37) CHECK(p.frame(p.address({pfn})) == Pfn{pfn});
  }
  SECTION("above the last page boundary ceil wraps to 0, as documented") {
    CHECK(p.ceil({std::numeric_limits<std::uint64_t>::max()}) == VirtAddr{0});
    CHECK(p.floor({std::numeric_limits<std::uint64_t>::max()}) == VirtAddr{0xffffffffffffc000});
  }
}

TEST_CASE("the next level of the page table") {
  CHECK(PageSize{4096}.next_level().bytes() == 2 << 20);
  CHECK(PageSize{16384}.next_level().bytes() == 32 << 20);
  CHECK(PageSize{65536}.next_level().bytes() == 512 << 20);
}

TEST_CASE("ranges are half-open") {
  const VaRange r{{0x1000}, {0x3000}};
  CHECK(r.bytes() == 0x2000);
  CHECK(r.contains({0x1000}));
  CHECK(r.contains({0x2fff}));
  CHECK_FALSE(r.contains({0x3000}));
  CHECK_FALSE(r.contains({0xfff}));
  CHECK_FALSE(r.empty());
  CHECK(VaRange{{5}, {5}}.empty());
  CHECK(VaRange{{6}, {5}}.empty());
  const PaRange pa{{0}, {1}};
  CHECK(pa.contains({0}));  // physical address 0 is a valid one
  CHECK_FALSE(pa.contains({1}));
}

TEST_CASE("intersections") {
  const VaRange r{{0x1000}, {0x3000}};
  CHECK(intersect(r, {{0}, {0x10000}}) == r);
  CHECK(intersect(r, {{0x2000}, {0x4000}}) == VaRange{{0x2000}, {0x3000}});
  CHECK(intersect({{0x2000}, {0x4000}}, r) == VaRange{{0x2000}, {0x3000}});
  CHECK(intersect(r, {{0x3000}, {0x4000}}).empty());
  CHECK(intersect(r, {{0x8000}, {0x9000}}).empty());
}
