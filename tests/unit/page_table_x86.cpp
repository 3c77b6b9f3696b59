// SPDX-License-Identifier: MIT
#include <string>

#include "page_table.hpp"
#include "support/catch.hpp"

using namespace vmem;
using namespace vmem::page_table;
using enum CacheAttribute;

namespace {

constexpr std::uint64_t bit(unsigned n) { return std::uint64_t{1} << n; }

// The kernel's own ways of making entries, as arch/x86/include/asm/pgtable.h writes them.
constexpr std::uint64_t present = 1, writable = 2, user = 4, accessed = 0x20, dirty = 0x40,
                        pse = 0x80, prot_none = 0x100, special = 0x200, nx = bit(63);
constexpr std::uint64_t pfn_mask = 0x000ffffffffff000;  // PTE_PFN_MASK
constexpr std::uint64_t pmd_mask = 0x000fffffffe00000;  // PHYSICAL_PMD_PAGE_MASK
constexpr std::uint64_t pud_mask = 0x000fffffc0000000;  // PHYSICAL_PUD_PAGE_MASK

constexpr bool needs_invert(std::uint64_t value) { return value != 0 && (value & present) == 0; }
constexpr std::uint64_t pfn_pte(std::uint64_t pfn, std::uint64_t prot,
                                std::uint64_t mask = pfn_mask) {
  const std::uint64_t flip = needs_invert(prot) ? ~std::uint64_t{0} : 0;
  return (((pfn << 12) ^ flip) & mask) | prot;
}
/// pte_modify(), pmd_modify(), pud_modify() by `mask`.
constexpr std::uint64_t modify(std::uint64_t old, std::uint64_t prot,
                               std::uint64_t mask = pfn_mask) {
  constexpr std::uint64_t kept =
      pfn_mask | 0x18 | special | accessed | dirty | pse | bit(10) | bit(11) | bit(58);
  std::uint64_t value = (old & kept) | (prot & ~kept);
  if (needs_invert(old) != needs_invert(value)) value = (value & ~mask) | (~value & mask);
  return value;
}
constexpr std::uint64_t swp_entry(std::uint64_t type, std::uint64_t offset) {
  return (~offset << 14 >> 5) | type << 59;
}

constexpr std::uint64_t page_none = prot_none | accessed;
constexpr std::uint64_t page_shared = present | writable | user | accessed | nx;

struct Expected {
  std::uint64_t raw;
  unsigned level;
  std::uint64_t address;
  unsigned pte;
  CacheAttribute cache;
  std::uint8_t bits;
  const char* names;
};

constexpr unsigned w = pte_bit::writable, u = pte_bit::user, x = pte_bit::executable,
                   g = pte_bit::global, a = pte_bit::accessed, d = pte_bit::dirty;
constexpr std::uint8_t soft = page_bit::soft_dirty, uffd = page_bit::uffd_wp;

}  // namespace

TEST_CASE("leaves, as kernels write them") {
  const Expected all[] = {
      // remap_pfn_range() on a reserved window, pgprot_noncached
      {0x8000000090000277, 0, 0x90000000, w | u | a | d, uc_minus, 0,
       "present,writable,user,nx,cache=uc-,accessed,dirty,special"},
      // the same, pgprot_writecombine
      {0x800000009000026f, 0, 0x90000000, w | u | a | d, wc, 0,
       "present,writable,user,nx,cache=wc,accessed,dirty,special"},
      // crash, help vtop
      {0x660f067, 0, 0x660f000, w | u | x | a | d, wb, 0,
       "present,writable,user,cache=wb,accessed,dirty"},
      // private, written
      {0x8000000161143867, 0, 0x161143000, w | u | a | d, wb, soft,
       "present,writable,user,nx,cache=wb,accessed,dirty,soft-dirty"},
      // program text
      {0x0000000123456025, 0, 0x123456000, u | x | a, wb, 0, "present,user,cache=wb,accessed"},
      // the zero page
      {0x8000000002a3d225, 0, 0x2a3d000, u | a, wb, 0, "present,user,nx,cache=wb,accessed,special"},
      {0x8000000161143c65, 0, 0x161143000, u | a | d, wb, soft | uffd,
       "present,user,nx,cache=wb,accessed,dirty,uffd-wp,soft-dirty"},
      // a transparent huge page
      {0x80000001234008e7, 1, 0x123400000, w | u | a | d, wb, soft,
       "present,writable,user,nx,cache=wb,accessed,dirty,huge,soft-dirty"},
      {0x80000001400000e7, 2, 0x140000000, w | u | a | d, wb, 0,
       "present,writable,user,nx,cache=wb,accessed,dirty,huge"},
      // 16 MiB of a PCI BAR by vfio on 6.12
      {0x80000000fc0000f7, 1, 0xfc000000, w | u | a | d, uc_minus, 0,
       "present,writable,user,nx,cache=uc-,accessed,dirty,huge"},
      // PAT in bit 12 of a large leaf, in bit 7 of a PTE
      {0x80000000fc0010ff, 1, 0xfc000000, w | u | a | d, wt, 0,
       "present,writable,user,nx,cache=wt,accessed,dirty,huge"},
      {0x80000000fc0000ff, 0, 0xfc000000, w | u | a | d, wt, 0,
       "present,writable,user,nx,cache=wt,accessed,dirty"},
      // global, as the kernel's vsyscall page was; protection key 5; bits without a name
      {0x0000000001234165, 0, 0x1234000, u | x | g | a | d, wb, 0,
       "present,user,cache=wb,accessed,dirty,global"},
      {0xa800000161143067, 0, 0x161143000, w | u | a | d, wb, 0,
       "present,writable,user,nx,cache=wb,accessed,dirty,pkey=5"},
      {0x8230000161143067, 0, 0x161143000, w | u | a | d, wb, 0,
       "present,writable,user,nx,cache=wb,accessed,dirty,bit52,bit53,bit57"},
      // frame 0, and the last one
      {0x8000000000000067, 0, 0, w | u | a | d, wb, 0,
       "present,writable,user,nx,cache=wb,accessed,dirty"},
      {0x800ffffffffff067, 0, 0xffffffffff000, w | u | a | d, wb, 0,
       "present,writable,user,nx,cache=wb,accessed,dirty"},
  };
  for (const std::uint8_t levels : {std::uint8_t{4}, std::uint8_t{5}}) {
    const Format f{.levels = levels};
    for (const Expected& e : all) {
      CAPTURE(e.raw);
      const Entry entry = decode(f, e.level, e.raw);
      CHECK(entry.kind == Kind::leaf);
      CHECK(entry.state == PageState::resident);
      CHECK(entry.value == e.address);
      CHECK(entry.pte == (pte_bit::known | e.pte | pte_bit::cache(e.cache)));
      CHECK(entry.bits == e.bits);
      CHECK(flag_names(f, e.level, e.raw) == e.names);
    }
  }
}

TEST_CASE("tables") {
  const Format f{.levels = 5};
  for (unsigned level = 1; level < 5; ++level) {
    const Entry e = decode(f, level, 0x103e5f067);
    CHECK(e.kind == Kind::table);
    CHECK(e.state == PageState::absent);
    CHECK(e.value == 0x103e5f000);
    CHECK(e.pte == (pte_bit::known | w | u | x | a));
  }
  CHECK(flag_names(f, 4, 0x8000000103e5f067) == "present,writable,user,nx,accessed,dirty");
  CHECK(flag_names(f, 1, 0x103e5f03f) == "present,writable,user,pwt,pcd,accessed");
  CHECK(flag_names(f, 1, 0x0400000103e5f967) ==
        "present,writable,user,accessed,dirty,bit8,bit11,bit58");
}

TEST_CASE("every combination of PAT, PCD and PWT, at every leaf") {
  const Format linux_pat;
  const CacheAttribute want[] = {wb, wc, uc_minus, uc, wb, wp, uc_minus, wt};
  Format reset;
  reset.pat = {wb, wt, uc_minus, uc, wb, wt, uc_minus, uc};
  for (unsigned index = 0; index < 8; ++index) {
    for (unsigned level = 0; level < 3; ++level) {
      CAPTURE(index, level);
      const std::uint64_t cache =
          (index & 1) << 3 | (index & 2) << 3 | std::uint64_t{index >> 2} << (level == 0 ? 7 : 12);
      const std::uint64_t raw = 0xc0000067 | cache | (level == 0 ? 0 : pse);
      CHECK(pte_bit::cache(decode(linux_pat, level, raw).pte) == want[index]);
      CHECK(pte_bit::cache(decode(reset, level, raw).pte) == reset.pat[index]);
      CHECK(decode(linux_pat, level, raw).value == 0xc0000000);
      CHECK(
          flag_names(linux_pat, level, raw).find("cache=" + std::string(to_string(want[index]))) !=
          std::string::npos);
      // mprotect(PROT_NONE) keeps it: PTEs, hugetlb (pte_modify() on any leaf), THP
      const std::uint64_t mask = level == 0 ? pfn_mask : level == 1 ? pmd_mask : pud_mask;
      for (const std::uint64_t none : {modify(raw, page_none), modify(raw, page_none, mask)}) {
        CAPTURE(none);
        const Entry e = decode(linux_pat, level, none);
        CHECK(e.kind == Kind::leaf);
        CHECK(pte_bit::cache(e.pte) == want[index]);
        CHECK(e.value == 0xc0000000);
      }
    }
  }
}

TEST_CASE(
    "PROT_NONE and NUMA hinting: present to the kernel, of no use to the process, frame inverted") {
  const Format f;
  for (const std::uint64_t pfn : {0ULL, 1ULL, 0x161143ULL, 0x90000ULL, 0xffffffffffULL}) {
    CAPTURE(pfn);
    const std::uint64_t raw = modify(pfn_pte(pfn, page_shared | dirty), page_none);
    const Entry e = decode(f, 0, raw);
    CHECK(e.kind == Kind::leaf);
    CHECK(e.state == PageState::resident);
    CHECK(e.value == pfn << 12);
    CHECK(e.pte == (pte_bit::known | a | d | pte_bit::cache(wb)));
    CHECK(decode(f, 0, pfn_pte(pfn, page_none)).value == pfn << 12);
  }
  CHECK(modify(0x8000000161143067, page_none) == 0x000ffffe9eebc160);
  CHECK(flag_names(f, 0, 0x000ffffe9eebc160) == "protnone,cache=wb,accessed,dirty");

  const std::uint64_t huge = pfn_pte(0x123400, page_shared | pse);
  const Entry thp = decode(f, 1, modify(huge, page_none, pmd_mask));
  CHECK(thp.kind == Kind::leaf);
  CHECK(thp.value == 0x123400000);
  const std::uint64_t hugetlb = modify(huge, page_none);
  CHECK((hugetlb & 0x1ff000) == 0x1ff000);
  CHECK(decode(f, 1, hugetlb).value == 0x123400000);
  CHECK(flag_names(f, 1, hugetlb) == "protnone,cache=wb,accessed,huge");
  // pmd_mkinvalid(): neither present nor PROT_NONE while it is split
  const std::uint64_t splitting = pfn_pte(0x123400, (page_shared & ~present) | pse, pmd_mask);
  CHECK(decode(f, 1, splitting).value == 0x123400000);
  CHECK(decode(f, 1, splitting).pte == (pte_bit::known | a | pte_bit::cache(wb)));
  CHECK(flag_names(f, 1, splitting) == "splitting,writable,user,nx,cache=wb,accessed,huge");
}

TEST_CASE("swap entries of every type say what pagemap says") {
  const Format f;
  for (unsigned level = 0; level < 3; ++level) {
    for (std::uint64_t type = 0; type < 32; ++type) {
      for (const std::uint64_t offset :
           {0ULL, 1ULL, 2ULL, 3ULL, 4ULL, 8ULL, 0x12345ULL, 0x1ffffffffffffULL}) {
        CAPTURE(type, offset, level);
        const std::uint64_t raw = swp_entry(type, offset);
        const Entry e = decode(f, level, raw);
        CHECK(e.kind == Kind::swap);
        CHECK(e.pte == 0);
        if (type < 23) {
          CHECK(e.state == PageState::swapped);
          CHECK(e.reason == Reason::none);
          CHECK(e.swap_type == type);
          CHECK(e.value == offset);
        } else {
          // Of a frame as many bits as there are, without those of a migrating page above them.
          CHECK(e.swap_type == (type < 31 ? type : 0));
          CHECK(e.value == (type < 31 ? offset & ((1ULL << 34) - 1) : 0));
          const Entry five = decode({.levels = 5}, level, raw);
          CHECK(five.value == (type < 31 ? offset & ((1ULL << 40) - 1) : 0));
          CHECK(e.state == (type == 31 && offset == 4 ? PageState::guard : PageState::special));
          CHECK(e.reason == (type < 31     ? Reason::migration_or_device
                             : offset == 1 ? Reason::uffd_wp_marker
                             : offset == 2 ? Reason::poison_marker
                             : offset == 4 ? Reason::none
                                           : Reason::other_marker));
        }
        CHECK(e.bits == (type == 31 && offset == 1 ? uffd : 0));
        CHECK(decode(f, level, raw | 2).bits == (e.bits | soft));
        CHECK(decode(f, level, raw | 4).bits == (e.bits | uffd));
        CHECK(decode(f, level, raw | 8).bits == e.bits);
        CHECK(decode(f, level, raw | 0x60).value == e.value);  // Knights Landing's erratum
      }
    }
  }
  CHECK(flag_names(f, 0, swp_entry(0, 0x300) | 0xa) ==
        "swapped,type=0,offset=0x300,soft-dirty,exclusive");
  CHECK(flag_names(f, 0, swp_entry(31, 4)) == "guard,type=31,offset=0x4");
  CHECK(flag_names(f, 0, swp_entry(30, 0x161143) | 4) == "special,type=30,offset=0x161143,uffd-wp");
  CHECK(flag_names(f, 0, swp_entry(1, 7) | 0x50) == "swapped,type=1,offset=0x7,bit4,bit6");
}

TEST_CASE("empty, and what no kernel makes") {
  const Format four, five{.levels = 5};
  for (const std::uint64_t raw : {0x0ULL, 0x20ULL, 0x40ULL, 0x60ULL}) {
    for (unsigned level = 0; level < 5; ++level) CHECK(decode(five, level, raw).kind == Kind::none);
  }
  CHECK(flag_names(four, 0, 0) == "none");
  const auto invalid = [](const Format& f, unsigned level, std::uint64_t raw) {
    const Entry e = decode(f, level, raw);
    return e.kind == Kind::invalid && e.state == PageState::special &&
           e.reason == Reason::unknown_entry && e.value == 0 && e.pte == 0;
  };
  CHECK(invalid(four, 3, 0x1400000e7));  // 512 GiB
  CHECK(invalid(five, 4, 0x1400000e7));
  CHECK(invalid(four, 1, 0x1234020e7));  // bit 13 of 2 MiB
  CHECK(invalid(four, 2, 0x1402000e7));  // a frame not aligned to 1 GiB
  CHECK(invalid(four, 1, 0x123400120));  // PROT_NONE without PSE
  CHECK(invalid(four, 3, swp_entry(0, 1)));  // swap in the root
  CHECK(invalid(four, 1, pfn_pte(0x123400, page_none | pse) ^ 0x4000));
  CHECK(flag_names(four, 3, 0x87) == "invalid,bit0,bit1,bit2,bit7");
}

TEST_CASE("the dirty bit that read-only entries keep elsewhere") {
  constexpr std::uint64_t saved = bit(58), clean = 0x8000000161143025;
  const Format unknown, known{.saved_dirty = true};
  const auto is_dirty = [](const Format& f, unsigned level, std::uint64_t raw) {
    return (decode(f, level, raw).pte & pte_bit::dirty) != 0;
  };
  CHECK(is_dirty(unknown, 0, clean | saved));
  CHECK(is_dirty(known, 0, clean | saved));
  CHECK(flag_names(known, 0, clean | saved) == "present,user,nx,cache=wb,accessed,saved-dirty");
  // Until 6.5 a DAX page: special, in PTEs
  CHECK_FALSE(is_dirty(unknown, 0, clean | saved | special));
  CHECK(flag_names(unknown, 0, clean | saved | special) ==
        "present,user,nx,cache=wb,accessed,special,bit58");
  CHECK(is_dirty(known, 0, clean | saved | special));
  CHECK_FALSE(is_dirty(unknown, 0, clean | saved | writable));
  CHECK_FALSE(is_dirty(known, 0, clean | saved | writable));
  constexpr std::uint64_t huge = 0x80000001234000a5;
  CHECK_FALSE(is_dirty(unknown, 1, huge | saved));
  CHECK(is_dirty(known, 1, huge | saved));
}

TEST_CASE("the encryption bit is no part of an address") {
  Format sme, tdx;
  sme.encryption_mask = bit(47);
  tdx.encryption_mask = bit(51);
  CHECK(decode(sme, 0, 0x8000800161143067).value == 0x161143000);
  CHECK(decode(sme, 1, 0x80008001234000e7).value == 0x123400000);
  CHECK(decode(sme, 2, 0x8000800103e5f067).value == 0x103e5f000);
  CHECK(decode(tdx, 0, 0x80080000fc000067).value == 0xfc000000);
  CHECK(decode({}, 0, 0x8000800161143067).value == 0x800161143000);
  // __PHYSICAL_MASK is without it, so it is not inverted either.
  constexpr std::uint64_t mask = pfn_mask & ~bit(47);
  const std::uint64_t none = pfn_pte(0x161143, page_none | bit(47), mask);
  CHECK(decode(sme, 0, none).value == 0x161143000);
  CHECK(flag_names(sme, 0, none) == "protnone,cache=wb,accessed,encryption");
  CHECK(flag_names(sme, 0, 0x8000800161143067) ==
        "present,writable,user,nx,cache=wb,accessed,dirty,encryption");
  CHECK(flag_names(sme, 1, 0x800103e5f067) == "present,writable,user,accessed,dirty,encryption");
}
