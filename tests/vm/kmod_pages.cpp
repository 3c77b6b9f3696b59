// SPDX-License-Identifier: MIT
// Page tables through /dev/vmem and the backend on it. The oracles are pagemap, and what this
// program itself mapped.
//
// vmtest: machines=fast,pc,pti
#include <array>
#include <bit>
#include <functional>
#include <random>

#include "vm/kmod_device.hpp"

using namespace vmem;
using namespace vmem::test::kmod;
using vmem::test::skip_or_fail;

TEST_CASE("kmod: a vector of one run tells the same as a large one") {
  const Device device;
  if (!device) return;
  const Child child([] { new Kinds; });
  const Process process = process_of(child.pid());
  auto reader = VmaReader::open(process);
  REQUIRE(reader);
  Vma vma;
  std::size_t compared = 0;
  while (*reader->next(vma)) {
    const std::uint64_t start = vma.range.start.value, end = vma.range.end.value;
    const auto all = expand(resolve(device, child.pid(), start, end));
    CHECK(all == expand(resolve(device, child.pid(), start, end, 1)));
    CHECK(all == expand(resolve(device, child.pid(), start, end, 7)));
    compared += all.size();
  }
  CHECK(compared > 100);
  // Everything in one question, the holes between the VMAs included.
  const auto whole = resolve(device, child.pid(), 0, user_end);
  CHECK(expand(whole).size() == compared);
  CHECK(std::ranges::is_sorted(whole, {}, &vmem_run::va));
}

TEST_CASE("kmod: a walk in the sink of another one disturbs neither") {
  const Device device;
  if (!device) return;
  const Child child([] { new Kinds; });
  const Process process = process_of(child.pid());
  auto translator = open_translator(process, Backend::kmod);
  REQUIRE(translator);
  const VaRange everything{{0}, {user_end}};
  const auto walk = [&](const std::function<void(const Extent&)>& each) {
    std::vector<std::array<std::uint64_t, 3>> all;
    REQUIRE((*translator)->walk(everything, {}, [&](const Extent& e) {
      all.push_back({e.va.value, e.bytes, e.state == PageState::resident ? e.pfn.value : 0});
      each(e);
      return true;
    }));
    return all;
  };
  const auto plain = walk([](const Extent&) {});
  REQUIRE(plain.size() > 10);
  std::size_t inner = 0;
  const auto nested = walk([&](const Extent& e) {
    if (e.state != PageState::resident) return;
    CHECK((*translator)->walk({{0}, e.end()}, {}, [&](const Extent&) {
      ++inner;
      return true;
    }));
  });
  CHECK(nested == plain);
  CHECK(inner > plain.size());
}

TEST_CASE("kmod: every page of every kind of memory as pagemap has it") {
  const Device device;
  if (!device) return;
  const Child child([] { new Kinds; });
  CHECK(compare_backends(child.pid()) > 2000);
  CHECK(compare_backends(1) > 10);
}

TEST_CASE("kmod: leaf sizes and attributes of one's own pages") {
  const Device device;
  if (!device) return;
  const Kinds kinds;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  const auto at = [&](const Mapping& mapping, std::uint64_t offset = 0) {
    Extent found;
    const VirtAddr va{mapping.start() + offset};
    REQUIRE((*translator)->walk({va, va + page}, {}, [&](const Extent& e) {
      found = e;
      return true;
    }));
    CHECK(found.va == va);
    CHECK(found.bytes == page);
    return found;
  };
  const Extent anon = at(kinds.anon);
  CHECK(anon.state == PageState::resident);
  CHECK(anon.leaf_shift == std::countr_zero(page));
  CHECK((anon.pte & pte_bit::known) != 0);
  CHECK((anon.pte & pte_bit::writable) != 0);
  CHECK((anon.pte & pte_bit::user) != 0);
  CHECK((anon.pte & pte_bit::executable) == 0);
  CHECK((anon.pte & pte_bit::dirty) != 0);
  CHECK((pte_bit::cache(anon.pte) == CacheAttribute::wb ||
         pte_bit::cache(anon.pte) == CacheAttribute::normal ||
         pte_bit::cache(anon.pte) == CacheAttribute::normal_tagged));
  CHECK(at(kinds.anon, page).state == PageState::absent);

  const Extent none = at(kinds.none);
  CHECK(none.state == PageState::resident);
  CHECK(none.pfn.value == (pagemap_entry(getpid(), kinds.none.start()) & pagemap_pfn));
  CHECK((none.pte & pte_bit::user) == 0);

  const Extent zero = at(kinds.zero);
  CHECK(zero.state == PageState::resident);
  CHECK((zero.pte & pte_bit::writable) == 0);
  CHECK(zero.pfn.value == at(kinds.zero, page).pfn.value);

  // Code of this program: executable, not writable.
  const VirtAddr text{reinterpret_cast<std::uintptr_t>(&drop_sys_admin) & ~(page - 1)};
  REQUIRE((*translator)->walk({text, text + page}, {}, [&](const Extent& e) {
    CHECK(e.state == PageState::resident);
    CHECK((e.pte & pte_bit::executable) != 0);
    CHECK((e.pte & pte_bit::writable) == 0);
    return true;
  }));

  const std::uint64_t inside = (kinds.thp.start() + huge - 1) & ~(huge - 1);
  const Extent thp = at(kinds.thp, inside - kinds.thp.start() + 5 * page);
  CHECK(thp.state == PageState::resident);
  CHECK(thp.pfn.value == (pagemap_entry(getpid(), inside + 5 * page) & pagemap_pfn));
  if (thp.leaf_shift != 21) {
    skip_or_fail("vm", "no transparent huge page was made");
  }
  if (kinds.hugetlb.at == nullptr) return skip_or_fail("vm", "no hugetlb pages in the pool");
  const Extent hugetlb = at(kinds.hugetlb, huge + 3 * page);
  CHECK(hugetlb.leaf_shift == 21);
  CHECK(hugetlb.pfn.value ==
        (pagemap_entry(getpid(), kinds.hugetlb.start() + huge + 3 * page) & pagemap_pfn));
}

TEST_CASE("kmod: a range that begins and ends inside of huge leaves is cut to size") {
  const Device device;
  if (!device) return;
  const Kinds kinds;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  std::mt19937_64 random(7);
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t pages = kinds.thp.bytes / page;
    const std::uint64_t a = random() % pages, b = a + 1 + random() % (pages - a);
    VirtAddr at{kinds.thp.start() + a * page};
    const VirtAddr end{kinds.thp.start() + b * page};
    REQUIRE((*translator)->walk({at, end}, {}, [&](const Extent& e) {
      REQUIRE(e.va == at);
      REQUIRE(e.state == PageState::resident);
      CHECK(e.pfn.value == (pagemap_entry(getpid(), e.va.value) & pagemap_pfn));
      at = e.end();
      return true;
    }));
    CHECK(at == end);
  }
}

#if defined(__x86_64__)
TEST_CASE("kmod: a mapping above 2^47, with five levels") {
  const Device device;
  if (!device) return;
  const Mapping high(4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                     std::uint64_t{1} << 54);
  REQUIRE(high.at != nullptr);
  REQUIRE((high.start() >= std::uint64_t{1} << 47) == kernel_uses_five_levels());
  if (!kernel_uses_five_levels()) return;
  touch(high.at, high.bytes, page);
  const auto slots = expand(resolve(device, getpid(), high.start(), high.end()));
  REQUIRE(slots.size() == 4);
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  for (std::uint64_t va = high.start(); va < high.end(); va += page) {
    const auto walk = (*translator)->page_walk({va});
    REQUIRE(walk);
    CHECK(walk->steps.size() == 5);
    CHECK(walk->extent.pfn.value == (pagemap_entry(getpid(), va) & pagemap_pfn));
  }
}
#endif

TEST_CASE("kmod: a walk goes from table to table down to what resolving tells") {
  const Device device;
  if (!device) return;
  const Kinds kinds;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  for (const Mapping* mapping :
       {&kinds.anon, &kinds.none, &kinds.zero, &kinds.shared, &kinds.thp}) {
    const VirtAddr va{mapping->start() + 2 * page};
    auto walk = (*translator)->page_walk(va);
    REQUIRE(walk);
    REQUIRE(walk->steps.size() >= 2);
    CHECK(std::string(walk->steps.front().level) == "pgd");
    for (std::size_t i = 0; i + 1 < walk->steps.size(); ++i) {
      const WalkStep& step = walk->steps[i];
      CHECK_FALSE(step.leaf);
      CHECK(step.table.value % page == 0);
      // The entry holds the next table's address, among flags that lie outside of it.
      CHECK((step.raw & walk->steps[i + 1].table.value) == walk->steps[i + 1].table.value);
      CHECK(step.flags.find("present") != std::string::npos);
    }
    const WalkStep& last = walk->steps.back();
    CHECK(last.leaf);
    const auto slots = expand(resolve(device, getpid(), va.value, va.value + page));
    REQUIRE(slots.size() == 1);
    CHECK(slots[0].entry == last.raw);
    CHECK(walk->extent.state == PageState::resident);
    CHECK(walk->extent.va == va);
    CHECK(walk->extent.bytes == page);
    CHECK(walk->extent.pfn.value == (pagemap_entry(getpid(), va.value) & pagemap_pfn));
  }
  // Nothing there: no VMA, and a VMA without a page.
  auto nowhere = (*translator)->page_walk({0x1000});
  REQUIRE(nowhere);
  CHECK(nowhere->steps.empty());
  CHECK(nowhere->extent.state == PageState::absent);
  auto empty = (*translator)->page_walk({kinds.anon.start() + page});
  REQUIRE(empty);
  CHECK_FALSE(empty->steps.empty());
  CHECK(empty->extent.state == PageState::absent);
}

TEST_CASE("kmod: sees what remap_pfn_range mapped") {
  const Device device;
  if (!device) return;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  CHECK((*translator)->sees_pfnmap());
#if defined(__x86_64__)
  // The BIOS's ROM: physical memory that is no RAM, so that /dev/mem maps it.
  const Descriptor mem{open("/dev/mem", O_RDONLY | O_CLOEXEC)};
  if (mem.fd < 0) return skip_or_fail("vm", "/dev/mem cannot be opened");
  const Mapping rom(16 * page, PROT_READ, MAP_SHARED, mem.fd, 0, 0xf0000);
  REQUIRE(rom.at != nullptr);
  std::uint64_t frame = 0xf0;
  std::vector<Extent> extents;
  REQUIRE((*translator)->walk({{rom.start()}, {rom.end()}}, {}, [&](const Extent& e) {
    extents.push_back(e);
    return true;
  }));
  REQUIRE(extents.size() == 1);
  CHECK(extents[0].state == PageState::resident);
  CHECK(extents[0].pfn.value == frame);
  CHECK(extents[0].bytes == rom.bytes);
  CHECK((extents[0].pte & pte_bit::writable) == 0);
  for (std::uint64_t va = rom.start(); va < rom.end(); va += page) {
    CHECK((pagemap_entry(getpid(), va) & pagemap_present) == 0);
  }
#endif
}
