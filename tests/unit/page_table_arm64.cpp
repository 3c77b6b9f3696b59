// SPDX-License-Identifier: MIT
#include <string>

#include "page_table.hpp"
#include "support/catch.hpp"

using namespace vmem;
using namespace vmem::page_table;
using enum CacheAttribute;

namespace {

constexpr std::uint64_t bit(unsigned n) { return std::uint64_t{1} << n; }

// MAIR_EL1 as proc.S sets it: since 5.18, and before (with write-through and device-GRE)
constexpr std::uint64_t mair = 0x000000040044f0ff, old_mair = 0x000c0400bb44f0ff;

constexpr Format format(std::uint8_t page_shift = 12, std::uint8_t swap_type_shift = 6,
                        bool lpa2 = false) {
  Format f;
  f.architecture = Architecture::arm64;
  f.levels = page_shift == 16 ? 3 : 4;
  f.page_shift = page_shift;
  f.mair = mair;
  f.lpa2 = lpa2;
  f.swap_type_shift = swap_type_shift;
  return f;
}

// arch/arm64/include/asm/pgtable-prot.h, without an address
constexpr std::uint64_t page_shared = 0x0068000000000fc3;         // writable, clean
constexpr std::uint64_t page_readonly = 0x0060000000000fc3;
constexpr std::uint64_t page_readonly_exec = 0x0020000000000fc3;
constexpr std::uint64_t page_execonly = 0x0020000000000f83;
constexpr std::uint64_t page_none = 0x0060000000000f82;           // since 6.11: bit 11
constexpr std::uint64_t old_page_none = 0x0460000000000f82;       // before: bit 58
constexpr std::uint64_t hw_dirty = 0x0068000000000f43;  // the processor has cleared AP[2]
constexpr std::uint64_t sw_dirty = 0x00e8000000000f43;

constexpr std::uint64_t swap_2(std::uint64_t type, std::uint64_t offset) {
  return type << 2 | offset << 8;
}
constexpr std::uint64_t swap_3(std::uint64_t type, std::uint64_t offset) {
  return type << 3 | offset << 8;
}
constexpr std::uint64_t swap_6(std::uint64_t type, std::uint64_t offset) {
  return type << 6 | offset << 12;
}

constexpr unsigned w = pte_bit::writable, u = pte_bit::user, x = pte_bit::executable,
                   g = pte_bit::global, a = pte_bit::accessed, d = pte_bit::dirty;

}  // namespace

TEST_CASE("arm64: leaves, as kernels write them") {
  struct Expected {
    std::uint64_t raw;
    unsigned level;
    std::uint64_t address;
    unsigned pte;
    CacheAttribute cache;
    const char* names;
  };
  const Expected all[] = {
      {page_shared | 0x90000000, 0, 0x90000000, w | u | a, normal,
       "present,write,read-only,user,uxn,pxn,cache=normal,accessed,inner-shareable,ng"},
      {hw_dirty | 0x90000000, 0, 0x90000000, w | u | a | d, normal,
       "present,write,user,uxn,pxn,cache=normal,accessed,inner-shareable,ng"},
      {sw_dirty | 0x90000000, 0, 0x90000000, w | u | a | d, normal,
       "present,write,user,uxn,pxn,cache=normal,accessed,dirty,inner-shareable,ng"},
      // written, then made read-only: the kernel's bit keeps it
      {page_readonly | bit(55), 0, 0, u | a | d, normal,
       "present,read-only,user,uxn,pxn,cache=normal,accessed,dirty,inner-shareable,ng"},
      {page_readonly_exec | 0x123456000, 0, 0x123456000, u | x | a, normal,
       "present,read-only,user,pxn,cache=normal,accessed,inner-shareable,ng"},
      {page_execonly | 0x123456000, 0, 0x123456000, u | x | a, normal,
       "present,read-only,pxn,cache=normal,accessed,inner-shareable,ng"},
      // remap_pfn_range() with pgprot_noncached, pgprot_device, pgprot_writecombine
      {0x016800009000070f | 0x8c0, 0, 0x90000000, w | u | a, device_ngnrne,
       "present,write,read-only,user,uxn,pxn,cache=device-nGnRnE,accessed,inner-shareable,ng,"
       "special"},
      {0x0168000090000f53, 0, 0x90000000, w | u | a | d, device_ngnre,
       "present,write,user,uxn,pxn,cache=device-nGnRE,accessed,inner-shareable,ng,special"},
      {0x0168000090000f4b, 0, 0x90000000, w | u | a | d, normal_nc,
       "present,write,user,uxn,pxn,cache=normal-nc,accessed,inner-shareable,ng,special"},
      // PROT_MTE
      {0x00e8000090000f47, 0, 0x90000000, w | u | a | d, normal_tagged,
       "present,write,user,uxn,pxn,cache=normal-tagged,accessed,dirty,inner-shareable,ng"},
      // one of sixteen that share a TLB entry; guarded for BTI
      {page_readonly | bit(52) | 0x10000, 0, 0x10000, u | a, normal,
       "present,read-only,user,uxn,pxn,cache=normal,accessed,inner-shareable,ng,contiguous"},
      {page_readonly_exec | bit(50) | 0x10000, 0, 0x10000, u | x | a, normal,
       "present,read-only,user,pxn,cache=normal,accessed,inner-shareable,ng,guarded"},
      // blocks
      {(sw_dirty & ~2ULL) | 0x123400000, 1, 0x123400000, w | u | a | d, normal,
       "present,write,user,uxn,pxn,cache=normal,accessed,dirty,inner-shareable,ng"},
      {(sw_dirty & ~2ULL) | 0x140000000, 2, 0x140000000, w | u | a | d, normal,
       "present,write,user,uxn,pxn,cache=normal,accessed,dirty,inner-shareable,ng"},
      // of the kernel; not accessed
      {0x0068000041234303, 0, 0x41234000, w | g | d, normal,
       "present,write,uxn,pxn,cache=normal,inner-shareable"},
      {page_readonly | bit(57) | bit(62) | bit(63) | 0x1000, 0, 0x1000, u | a, normal,
       "present,read-only,user,uxn,pxn,cache=normal,accessed,inner-shareable,ng,devmap,bit62,"
       "bit63"},
  };
  const Format f = format();
  for (const Expected& e : all) {
    CAPTURE(e.raw);
    const Entry entry = decode(f, e.level, e.raw);
    CHECK(entry.kind == Kind::leaf);
    CHECK(entry.state == PageState::resident);
    CHECK(entry.value == e.address);
    CHECK(entry.pte == (pte_bit::known | e.pte | pte_bit::cache(e.cache)));
    CHECK(entry.bits == 0);
    CHECK(flag_names(f, e.level, e.raw) == e.names);
  }
  CHECK(decode(f, 0, page_readonly | bit(58)).bits == page_bit::uffd_wp);
  CHECK(flag_names(f, 0, page_readonly | bit(58)).find(",uffd-wp") != std::string::npos);
}

TEST_CASE("arm64: addresses of each granule") {
  constexpr std::uint64_t table = 0x0800000000000003;
  // 48 bits
  CHECK(decode(format(12), 0, page_readonly | 0xfffffffff000).value == 0xfffffffff000);
  CHECK(decode(format(14), 0, page_readonly | 0xffffffffc000).value == 0xffffffffc000);
  CHECK(decode(format(14), 1, (page_readonly & ~2ULL) | 0x2000000).value == 0x2000000);
  CHECK(decode(format(12), 0, page_readonly | 0x3fffffffff000).value == 0xfffffffff000);
  // LPA2: 49:48 in place, 51:50 where the shareability was
  const Format lpa2 = format(12, 6, true);
  constexpr std::uint64_t at = 0xd123456789000;
  const std::uint64_t raw = (page_readonly & ~0x300ULL) | 0x1123456789000 | 0x300;
  CHECK(decode(lpa2, 0, raw).value == at);
  CHECK(decode(lpa2, 0, raw & ~0x200ULL).value == 0x5123456789000);
  CHECK(decode(lpa2, 2, table | 0x1123456789000 | 0x200).value == 0x9123456789000);
  CHECK(
      decode(format(14, 6, true), 0, (page_readonly & ~0x300ULL) | 0x3123456788000 | 0x100).value ==
      0x7123456788000);
  CHECK(flag_names(lpa2, 0, raw) == "present,read-only,user,uxn,pxn,cache=normal,accessed,ng");
  // 64K: 51:48 in 15:12, in blocks and tables too
  const Format k64 = format(16);
  CHECK(decode(k64, 0, page_readonly | 0x123456780000 | 0xd000).value == 0xd123456780000);
  CHECK(decode(k64, 1, (page_readonly & ~2ULL) | 0x123440000000 | 0xd000).value == 0xd123440000000);
  CHECK(decode(k64, 1, table | 0x123456780000 | 0x5000).value == 0x5123456780000);
  CHECK(flag_names(k64, 1, table | 0x123456780000 | 0x5000) == "present,pxn");
  CHECK(flag_names(k64, 0, page_readonly | 0x123456780000 | 0xd000) ==
        "present,read-only,user,uxn,pxn,cache=normal,accessed,inner-shareable,ng");
  // nT of a block is no address
  CHECK(decode(format(12), 1, (page_readonly & ~2ULL) | 0x123410000).value == 0x123400000);
  CHECK(flag_names(format(12), 1, (page_readonly & ~2ULL) | 0x123410000).find(",nt,") !=
        std::string::npos);
  // A realm's shared bit
  Format realm = format(12);
  realm.encryption_mask = bit(47);
  CHECK(decode(realm, 0, page_readonly | bit(47) | 0x1000).value == 0x1000);
  CHECK(flag_names(realm, 0, page_readonly | bit(47)).find(",encryption") != std::string::npos);
}

TEST_CASE("arm64: every AttrIndx through MAIR_EL1") {
  const CacheAttribute now[] = {normal,       normal_tagged, normal_nc,     device_ngnrne,
                                device_ngnre, device_ngnrne, device_ngnrne, device_ngnrne};
  const CacheAttribute then[] = {normal,        normal_tagged, normal_nc, wt,
                                 device_ngnrne, device_ngnre,  unknown,   device_ngnrne};
  Format f = format(), old = format(), none = format();
  old.mair = old_mair;
  none.mair = 0;
  for (std::uint64_t index = 0; index < 8; ++index) {
    CAPTURE(index);
    for (unsigned level = 0; level < 3; ++level) {
      const std::uint64_t raw = (page_readonly & (level == 0 ? ~0ULL : ~2ULL)) | index << 2;
      CHECK(pte_bit::cache(decode(f, level, raw).pte) == now[index]);
      CHECK(pte_bit::cache(decode(old, level, raw).pte) == then[index]);
      CHECK(pte_bit::cache(decode(none, level, raw).pte) == unknown);
      CHECK(flag_names(none, level, raw).find(",attr=" + std::to_string(index) + ",") !=
            std::string::npos);
    }
  }
}

TEST_CASE("arm64: tables") {
  const Format f = format();
  for (unsigned level = 1; level < 4; ++level) {
    const Entry e = decode(f, level, 0x0800000103e5f403);
    CHECK(e.kind == Kind::table);
    CHECK(e.state == PageState::absent);
    CHECK(e.value == 0x103e5f000);
    CHECK(e.pte == (pte_bit::known | w | u | x | a));
  }
  CHECK(flag_names(f, 1, 0x0800000103e5f403) == "present,accessed,pxn");
  CHECK(flag_names(f, 1, 0xf000000103e5f003) == "present,uxn,no-user,read-only,ns");
  CHECK(flag_names(f, 1, 0x0010000103e5f007) == "present,bit2,bit52");
}

TEST_CASE(
    "arm64: PROT_NONE of every kernel is told from swap, also where the kernel is not known") {
  constexpr std::uint64_t at = 0x123400000;
  struct Case {
    std::uint64_t raw;
    unsigned level;
    bool old_kernel, new_kernel;
    unsigned usage;
  };
  const Case cases[] = {
      {page_none | at, 0, false, true, a},
      {old_page_none | at, 0, true, true, a},
      // THP: a block has no bit 1
      {(page_none & ~2ULL) | at, 1, false, true, a},
      {(old_page_none & ~2ULL) | at, 1, true, true, a},
      // pmd_mkinvalid(), while it is split
      {(sw_dirty & ~3ULL) | at, 1, false, true, a | d},
      {(sw_dirty & ~3ULL) | bit(59) | at, 1, true, true, a | d},
      // pte_mkinvalid() and mprotect() of what was write-protected by userfaultfd
      {page_none | bit(58) | at, 0, true, true, a},
  };
  for (const Case& c : cases) {
    CAPTURE(c.raw);
    for (const std::uint8_t shift :
         {std::uint8_t{0}, std::uint8_t{2}, std::uint8_t{3}, std::uint8_t{6}}) {
      CAPTURE(+shift);
      const bool known = shift == 0   ? c.old_kernel || c.new_kernel
                         : shift == 6 ? c.new_kernel
                                      : c.old_kernel;
      if (!known) continue;
      const Entry e = decode(format(12, shift), c.level, c.raw);
      CHECK(e.kind == Kind::leaf);
      CHECK(e.state == PageState::resident);
      CHECK(e.value == at);
      CHECK(e.pte == (pte_bit::known | c.usage | pte_bit::cache(normal)));
      CHECK(e.bits == (shift == 6 && (c.raw & bit(58)) != 0 ? page_bit::uffd_wp : 0));
      CHECK(flag_names(format(12, shift), c.level, c.raw).starts_with("invalidated,"));
    }
  }
  CHECK(flag_names(format(12, 3), 0, old_page_none | at) ==
        "invalidated,read-only,uxn,pxn,cache=normal,accessed,inner-shareable,ng");
}

TEST_CASE("arm64: swap entries of every type and kernel") {
  const auto check = [](const Format& f, std::uint64_t raw, std::uint64_t type,
                        std::uint64_t offset) {
    CAPTURE(+f.swap_type_shift, raw, type, offset);
    for (unsigned level = 0; level < 2; ++level) {
      const Entry e = decode(f, level, raw);
      CHECK(e.kind == Kind::swap);
      if (type < 23) {
        CHECK(e.state == PageState::swapped);
        CHECK(e.swap_type == type);
        CHECK(e.value == offset);
      } else {
        CHECK(e.state == (type == 31 && offset == 4 ? PageState::guard : PageState::special));
        CHECK(e.reason == (type < 31     ? Reason::migration_or_device
                           : offset == 1 ? Reason::uffd_wp_marker
                           : offset == 2 ? Reason::poison_marker
                           : offset == 4 ? Reason::none
                                         : Reason::other_marker));
        CHECK(e.swap_type == (type < 31 ? type : 0));
        CHECK(e.value == (type < 31 ? offset & ((1ULL << 36) - 1) : 0));
      }
    }
  };
  for (std::uint64_t type = 0; type < 32; ++type) {
    for (const std::uint64_t offset : {1ULL, 2ULL, 4ULL, 8ULL, 0x12345ULL, 0x3fffffffffffULL}) {
      check(format(12, 2), swap_2(type, offset), type, offset);
      check(format(12, 3), swap_3(type, offset), type, offset);
      check(format(12, 3), swap_3(type, offset) | 4, type, offset);  // exclusive
      check(format(12, 6), swap_6(type, offset), type, offset);
      check(format(12, 6), swap_6(type, offset) | 4, type, offset);
      for (const std::uint64_t raw :
           {swap_2(type, offset), swap_3(type, offset), swap_6(type, offset)}) {
        const Entry e = decode(format(12, 0), 0, raw);
        CHECK(e.state == PageState::special);
        CHECK(e.reason == Reason::unknown_entry);
        CHECK(e.value == 0);
      }
    }
  }
  CHECK(decode(format(12, 6), 0, swap_6(1, 5) | 8).bits == page_bit::uffd_wp);
  CHECK(decode(format(12, 6), 0, swap_6(31, 1)).bits == page_bit::uffd_wp);
  CHECK(decode(format(12, 3), 0, swap_3(1, 5)).bits == 0);
  CHECK(decode(format(12, 2), 0, swap_2(63, 5)).reason == Reason::unknown_entry);
  // With 64K pages a frame has 32 bits or 36: beyond, it may be a migrating page's young bit.
  CHECK(decode(format(16, 6), 0, swap_6(28, 0xffffffff)).value == 0xffffffff);
  CHECK(decode(format(16, 6), 0, swap_6(28, 1ULL << 32)).reason == Reason::unknown_entry);
  CHECK(flag_names(format(12, 6), 0, swap_6(1, 5) | 12) ==
        "swapped,type=1,offset=0x5,exclusive,uffd-wp");
  CHECK(flag_names(format(12, 3), 0, swap_3(31, 4)) == "guard,type=31,offset=0x4");
  CHECK(flag_names(format(12, 2), 0, swap_2(3, 0x99)) == "swapped,type=3,offset=0x99");
  CHECK(flag_names(format(12, 0), 0, 0x1040) == "special,bit6,bit12");
}

TEST_CASE("arm64: empty, and what no kernel makes") {
  const auto invalid = [](const Format& f, unsigned level, std::uint64_t raw) {
    const Entry e = decode(f, level, raw);
    return e.kind == Kind::invalid && e.state == PageState::special &&
           e.reason == Reason::unknown_entry && e.value == 0 && e.pte == 0;
  };
  for (unsigned level = 0; level < 4; ++level) CHECK(decode(format(), level, 0).kind == Kind::none);
  CHECK(invalid(format(), 0, page_readonly & ~2ULL));  // reserved in a PTE
  CHECK(invalid(format(12), 3, page_readonly & ~2ULL));  // 512 GiB
  CHECK(invalid(format(14), 2, page_readonly & ~2ULL));
  CHECK(invalid(format(16), 2, page_readonly & ~2ULL));
  CHECK(invalid(format(), 3, swap_6(0, 1)));  // swap in the root
  CHECK(invalid(format(), 1, page_none));  // an invalidated table
  CHECK(invalid(format(12, 6), 0, 0x0060000000000782));  // bit 1, but not present to anybody
  CHECK(invalid(format(12, 3), 0, page_none));
  CHECK(invalid(format(12, 0), 0, 0x0060000000000782));
  CHECK(flag_names(format(), 0, 0x401) == "invalid,bit0,bit10");
}
