// SPDX-License-Identifier: MIT
#include "page_table.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <iterator>
#include <string_view>
#include <utility>

#include "leaf_comparison.hpp"
#include "pagemap_decode.hpp"

namespace vmem::page_table {
namespace {

constexpr std::uint64_t bit(unsigned n) { return std::uint64_t{1} << n; }
/// Bits `low` to `high`, both included, as manuals count them.
constexpr std::uint64_t bits(unsigned high, unsigned low) {
  return (~std::uint64_t{0} >> (63 - high)) & (~std::uint64_t{0} << low);
}

constexpr unsigned varies_factor = pte_bit::accessed_varies / pte_bit::accessed;
static_assert(pte_bit::dirty_varies / pte_bit::dirty == varies_factor);

/// arch/x86/include/asm/pgtable_types.h; Intel SDM volume 3A, 4.5.
namespace x86 {

constexpr std::uint64_t present = bit(0);
constexpr std::uint64_t writable = bit(1);
constexpr std::uint64_t user = bit(2);
constexpr std::uint64_t pwt = bit(3);
constexpr std::uint64_t pcd = bit(4);
constexpr std::uint64_t accessed = bit(5);
constexpr std::uint64_t dirty = bit(6);
constexpr std::uint64_t pse = bit(7);  // above the PTEs; in a PTE it is the PAT bit
constexpr unsigned pat_bit = 7;
constexpr unsigned pat_large_bit = 12;
constexpr std::uint64_t global = bit(8);
constexpr std::uint64_t prot_none = bit(8);  // only if not present
constexpr std::uint64_t special = bit(9);
constexpr std::uint64_t uffd_wp = bit(10);
constexpr std::uint64_t soft_dirty = bit(11);
constexpr std::uint64_t soft5 = bit(58);
constexpr unsigned pkey_shift = 59;
constexpr std::uint64_t pkey = bits(62, 59);
constexpr std::uint64_t nx = bit(63);
// Of a swap entry (pgtable_64.h)
constexpr std::uint64_t swap_soft_dirty = bit(1);
constexpr std::uint64_t swap_uffd_wp = bit(2);
constexpr std::uint64_t swap_exclusive = bit(3);

constexpr unsigned highest_leaf = 2;  // PUD: 1 GiB
static_assert(writable == pte_bit::writable && user == pte_bit::user &&
              accessed == pte_bit::accessed && dirty == pte_bit::dirty);

/// Where the address of what an entry of `shift` maps, or of a table (shift 12), stands.
constexpr std::uint64_t address(const Format& f, unsigned shift) {
  return bits(51, shift) & ~f.encryption_mask;
}

static_assert(std::popcount(accessed | dirty) == 2 && (accessed | dirty) < bit(32));
constexpr Fields fields(const Format& f, unsigned shift) {
  return {address(f, shift), accessed | dirty};
}

/// Knights Landing may set A and D in an empty entry (_PAGE_KNL_ERRATUM_MASK).
constexpr bool none(std::uint64_t raw) { return (raw & ~(accessed | dirty)) == 0; }

/// 2M and 1G leaves: bits 13 and up, to where the address starts, are not used. If the entry is not
/// present they may be inverted like the PFN: pte_modify(), which hugetlb uses, inverts from bit 12
/// on; pmd_modify() only the PMD's address.
constexpr std::uint64_t below_frame(unsigned shift) { return bits(shift - 1, 13); }

Kind kind(const Format& f, unsigned level, std::uint64_t raw) {
  if (none(raw)) return Kind::none;
  const bool is_present = (raw & present) != 0;
  if (level == 0) return (raw & (present | prot_none)) != 0 ? Kind::leaf : Kind::swap;
  if (is_present && (raw & pse) == 0) return Kind::table;
  if (level > highest_leaf) return Kind::invalid;
  // pmd_present(): while a huge page is split its PMD has neither bit, but still PSE.
  if ((raw & pse) == 0) return (raw & prot_none) != 0 ? Kind::invalid : Kind::swap;
  const std::uint64_t unused = below_frame(f.shift(level));
  const std::uint64_t rest = raw & unused;
  return rest == 0 || (!is_present && rest == unused) ? Kind::leaf : Kind::invalid;
}

/// PWT | PCD << 1 | PAT << 2
unsigned pat_index(unsigned level, std::uint64_t raw) {
  std::uint64_t pat = raw >> (level == 0 ? pat_bit : pat_large_bit);
  if (level != 0 && (raw & present) == 0) pat ^= raw >> (pat_large_bit + 1);  // below_frame()
  return static_cast<unsigned>((raw / pwt & 3) | (pat & 1) << 2);
}

/// Whether a leaf's bit 58 keeps the dirty bit that a read-only entry must not have, lest it be a
/// shadow stack (mksaveddirty_shift()). Until 6.5 it was _PAGE_DEVMAP, in PTEs never without
/// _PAGE_SPECIAL (pte_mkdevmap()).
bool saved_dirty(const Format& f, unsigned level, std::uint64_t raw) {
  if ((raw & (soft5 | writable)) != soft5) return false;
  return f.saved_dirty || (level == 0 && (raw & special) == 0);
}

void decode_leaf(const Format& f, unsigned level, std::uint64_t raw, Entry& e) {
  // pgtable-invert.h: the PFN of what is not present is inverted, against L1TF.
  const std::uint64_t mask = address(f, f.shift(level));
  e.value = ((raw & present) != 0 ? raw : ~raw) & mask;
  e.state = PageState::resident;
  unsigned pte = pte_bit::known | static_cast<unsigned>(raw & (accessed | dirty)) |
                 pte_bit::cache(f.pat[pat_index(level, raw)]);
  if ((raw & present) != 0) {
    pte |= static_cast<unsigned>(raw & (writable | user));
    if ((raw & nx) == 0) pte |= pte_bit::executable;
    if ((raw & global) != 0) pte |= pte_bit::global;
  }
  if (saved_dirty(f, level, raw)) pte |= pte_bit::dirty;
  e.pte = static_cast<std::uint16_t>(pte);
  if ((raw & soft_dirty) != 0) e.bits |= page_bit::soft_dirty;
  if ((raw & uffd_wp) != 0) e.bits |= page_bit::uffd_wp;
}

void decode_table(const Format& f, std::uint64_t raw, Entry& e) {
  e.value = raw & address(f, f.page_shift);
  e.pte = static_cast<std::uint16_t>(pte_bit::known |
                                     static_cast<unsigned>(raw & (writable | user | accessed)) |
                                     ((raw & nx) == 0 ? pte_bit::executable : 0U));
}

struct Swap {
  std::uint8_t type;
  std::uint64_t offset;
};
/// The offset is inverted, as a PFN is.
constexpr Swap swap(std::uint64_t raw) {
  return {static_cast<std::uint8_t>(raw >> 59), ~raw << 5 >> (5 + 9)};
}

}  // namespace x86

/// arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h, pgtable.h; Arm ARM D8.3.
namespace arm64 {

constexpr std::uint64_t valid = bit(0);
constexpr std::uint64_t table = bit(1);  // in a PTE: page
constexpr unsigned attribute_shift = 2;
constexpr std::uint64_t non_secure = bit(5);
constexpr std::uint64_t user = bit(6);
constexpr std::uint64_t read_only = bit(7);
constexpr std::uint64_t shareable = bits(9, 8);  // with LPA2: address bits 51:50
constexpr std::uint64_t accessed = bit(10);
constexpr std::uint64_t not_global = bit(11);
constexpr std::uint64_t no_translation = bit(16);  // nT, of blocks
constexpr std::uint64_t guarded = bit(50);
constexpr std::uint64_t write = bit(51);  // PTE_WRITE is DBM
constexpr std::uint64_t contiguous = bit(52);
constexpr std::uint64_t pxn = bit(53);
constexpr std::uint64_t uxn = bit(54);
constexpr std::uint64_t dirty = bit(55);
constexpr std::uint64_t special = bit(56);
constexpr std::uint64_t devmap = bit(57);
constexpr std::uint64_t uffd_wp = bit(58);
// Not valid, but present all the same
constexpr std::uint64_t old_prot_none = bit(58);
constexpr std::uint64_t old_pmd_invalid = bit(59);
constexpr std::uint64_t present_invalid = bit(11);
// Of table entries
constexpr std::uint64_t table_pxn = bit(59);
constexpr std::uint64_t table_uxn = bit(60);
constexpr std::uint64_t table_no_user = bit(61);
constexpr std::uint64_t table_read_only = bit(62);
constexpr std::uint64_t table_non_secure = bit(63);
// Of a swap entry
constexpr std::uint64_t swap_exclusive = bit(2);  // swap_type_shift 3 and 6
constexpr std::uint64_t swap_uffd_wp = bit(3);  // swap_type_shift 6

/// PMD; with 4K pages also PUD (pud_sect_supported()).
constexpr unsigned highest_leaf(const Format& f) { return f.page_shift == 12 ? 2 : 1; }

/// The address bits that stand where they are in the address.
constexpr std::uint64_t low_address(const Format& f, unsigned shift) {
  const bool high_in_place = f.lpa2 && f.page_shift != 16;
  return bits(high_in_place ? 49 : 47, shift) & ~f.encryption_mask;
}

/// And those that do not: 51:48 of 64K pages in 15:12, 51:50 of LPA2 in 9:8.
constexpr std::uint64_t high_address(const Format& f) {
  if (f.page_shift == 16) return bits(15, 12);
  return f.lpa2 ? shareable : 0;
}

constexpr std::uint64_t address(const Format& f, unsigned shift, std::uint64_t raw) {
  const std::uint64_t high = (raw & high_address(f)) << (f.page_shift == 16 ? 36 : 42);
  return (raw & low_address(f, shift)) | (high & ~f.encryption_mask);
}

constexpr Fields fields(const Format& f, unsigned shift) { return {low_address(f, shift), 0}; }

/// An entry that the processor does not take for valid and the kernel for present: PROT_NONE, NUMA
/// hinting, a huge page while it is split. Kernels until 6.10 mark it by bit 58, or 59 in PMDs;
/// later ones by bit 11.
bool is_present_invalid(const Format& f, unsigned level, std::uint64_t raw) {
  const bool old_mark = (raw & old_prot_none) != 0 || (level == 1 && (raw & old_pmd_invalid) != 0);
  switch (f.swap_type_shift) {
    case 2:
    case 3:
      return old_mark;
    case 6:
      return (raw & present_invalid) != 0;
    default:
      break;
  }
  // Swap entries never have bit 1, and PTEs that were valid keep it.
  if (level == 0) return (raw & table) != 0 && (raw & (old_prot_none | present_invalid)) != 0;
  // Blocks do not have it either. No offset or PFN in a swap entry is so large that it reaches bit
  // 53, where every user mapping has PXN; in the old format bit 11 alone may be of an offset.
  return old_mark || ((raw & present_invalid) != 0 && (raw & pxn) != 0);
}

Kind kind(const Format& f, unsigned level, std::uint64_t raw) {
  if (raw == 0) return Kind::none;
  if ((raw & valid) != 0) {
    if (level == 0) return (raw & table) != 0 ? Kind::leaf : Kind::invalid;
    if ((raw & table) != 0) return Kind::table;
    return level <= highest_leaf(f) ? Kind::leaf : Kind::invalid;
  }
  if (level > highest_leaf(f)) return Kind::invalid;
  if (is_present_invalid(f, level, raw)) {
    return level != 0 && (raw & table) != 0 ? Kind::invalid : Kind::leaf;
  }
  return (raw & table) == 0 ? Kind::swap : Kind::invalid;
}

constexpr unsigned attribute_index(std::uint64_t raw) {
  return static_cast<unsigned>(raw >> attribute_shift) & 7;
}

/// MAIR_ATTR_* in arch/arm64/include/asm/sysreg.h
CacheAttribute cache(const Format& f, std::uint64_t raw) {
  if (f.mair == 0) return CacheAttribute::unknown;
  switch (f.mair >> (attribute_index(raw) * 8) & 0xff) {
    case 0x00:
      return CacheAttribute::device_ngnrne;
    case 0x04:
      return CacheAttribute::device_ngnre;
    case 0x44:
      return CacheAttribute::normal_nc;
    case 0xbb:  // MT_NORMAL_WT, until 5.17
      return CacheAttribute::wt;
    case 0xf0:
      return CacheAttribute::normal_tagged;
    case 0xff:
      return CacheAttribute::normal;
    default:
      return CacheAttribute::unknown;
  }
}

/// Bit 58 of what is not valid was PROT_NONE before it was uffd-wp.
bool is_uffd_wp(const Format& f, std::uint64_t raw) {
  return (raw & uffd_wp) != 0 && ((raw & valid) != 0 || f.swap_type_shift == 6);
}

void decode_leaf(const Format& f, unsigned level, std::uint64_t raw, Entry& e) {
  e.value = address(f, f.shift(level), raw);
  e.state = PageState::resident;
  unsigned pte = pte_bit::known | pte_bit::cache(cache(f, raw));
  if ((raw & valid) != 0) {
    // PTE_WRITE with AP[2] set is writable and clean: the first write, by the processor or by a
    // fault, clears it.
    if ((raw & write) != 0 || (raw & read_only) == 0) pte |= pte_bit::writable;
    // Execute-only pages (PAGE_EXECONLY) are the user's without AP[1].
    if ((raw & user) != 0 || (raw & uxn) == 0) pte |= pte_bit::user;
    if ((raw & uxn) == 0) pte |= pte_bit::executable;
    if ((raw & not_global) == 0) pte |= pte_bit::global;
  }
  if ((raw & accessed) != 0) pte |= pte_bit::accessed;
  // pte_dirty(): the kernel's bit, or the processor's, which is write without read_only.
  if ((raw & dirty) != 0 || (raw & (write | read_only)) == write) pte |= pte_bit::dirty;
  e.pte = static_cast<std::uint16_t>(pte);
  if (is_uffd_wp(f, raw)) e.bits |= page_bit::uffd_wp;
}

void decode_table(const Format& f, std::uint64_t raw, Entry& e) {
  e.value = address(f, f.page_shift, raw);
  unsigned pte = pte_bit::known;
  if ((raw & table_read_only) == 0) pte |= pte_bit::writable;
  if ((raw & table_no_user) == 0) pte |= pte_bit::user;
  if ((raw & table_uxn) == 0) pte |= pte_bit::executable;
  if ((raw & accessed) != 0) pte |= pte_bit::accessed;
  e.pte = static_cast<std::uint16_t>(pte);
}

constexpr x86::Swap swap(const Format& f, std::uint64_t raw) {
  const unsigned offset_shift = f.swap_type_shift == 6 ? 12 : 8;
  return {static_cast<std::uint8_t>(raw >> f.swap_type_shift & (f.swap_type_shift == 2 ? 63 : 31)),
          raw >> offset_shift & bits(49, 0)};
}

}  // namespace arm64

bool is_x86(const Format& f) { return f.architecture == Architecture::x86_64; }

void unknown_entry(Entry& e) {
  e.state = PageState::special;
  e.reason = Reason::unknown_entry;
}

/// Type and offset of a swap entry; false where the format is not known.
bool swap_fields(const Format& f, std::uint64_t raw, x86::Swap& swap) {
  if (is_x86(f)) {
    swap = x86::swap(raw);
    return true;
  }
  if (f.swap_type_shift == 0) return false;
  swap = arm64::swap(f, raw);
  return swap.type <= pagemap::marker_type;
}

/// An entry that names a frame may keep the young and dirty bits of a migrating page right above it
/// (SWP_MIG_YOUNG_BIT in include/linux/swapops.h, Linux 6.1), which pagemap leaves out. False
/// where these cannot be told from the frame: arm64 with 64K pages has it of 32 or 36 bits
/// (CONFIG_ARM64_PA_BITS), and no machine known needs more than 32.
bool take_frame(const Format& f, std::uint64_t& offset) {
  unsigned frame_bits = 0;
  if (is_x86(f))
    frame_bits = f.levels == 5 ? 40 : 34;  // MAX_PHYSMEM_BITS - PAGE_SHIFT
  else if (f.page_shift == 16)
    return offset < bit(32);
  else
    frame_bits = (f.lpa2 ? 52U : 48U) - f.page_shift;
  offset &= bit(frame_bits) - 1;
  return true;
}

void decode_swap(const Format& f, std::uint64_t raw, Entry& e) {
  x86::Swap swap{};
  if (!swap_fields(f, raw, swap)) return unknown_entry(e);
  if (swap.type >= pagemap::first_special_type && swap.type != pagemap::marker_type &&
      !take_frame(f, swap.offset)) {
    return unknown_entry(e);
  }
  pagemap::Decoded d;
  pagemap::decode_swap(swap.type, swap.offset, d);
  e.state = d.state;
  e.reason = d.reason;
  e.swap_type = d.swap_type;
  e.value = d.value;
  // pte_to_pagemap_entry() says of a marker as of an entry that it is write-protected.
  if (d.reason == Reason::uffd_wp_marker) e.bits |= page_bit::uffd_wp;
  if (is_x86(f)) {
    if ((raw & x86::swap_soft_dirty) != 0) e.bits |= page_bit::soft_dirty;
    if ((raw & x86::swap_uffd_wp) != 0) e.bits |= page_bit::uffd_wp;
  } else if (f.swap_type_shift == 6 && (raw & arm64::swap_uffd_wp) != 0) {
    e.bits |= page_bit::uffd_wp;
  }
}

Extent extent_of(const Format& f, unsigned level, VirtAddr va, const Entry& entry, Limits above,
                 Backend backend) {
  Extent run;
  run.va = va;
  run.bytes = bit(f.shift(level));
  run.state = entry.state;
  run.reason = entry.reason;
  run.bits = entry.bits;
  run.swap_type = entry.swap_type;
  run.backend = backend;
  if (entry.kind == Kind::leaf) {
    run.pfn = {entry.value >> f.page_shift};
    run.leaf_shift = static_cast<std::uint8_t>(f.shift(level));
    run.pte = limited(entry.pte, above);
  } else if (names_frame(run)) {
    run.pfn = {entry.value};
  } else {
    run.swap_offset = entry.value;
  }
  return run;
}

/// Which bits of usage some of a run's leaves have, and which all.
class Usage {
 public:
  explicit Usage(const Fields& fields)
      : low_(fields.low_usage()), high_(fields.high_usage()), all_(fields.usage) {}
  void add(std::uint64_t leaf) {
    some_ |= leaf & (low_ | high_);
    all_ &= leaf;
  }
  /// Those of 64 entries that `which` marks.
  void add(const Stretch& s, std::size_t word, std::uint64_t which) {
    const std::uint64_t low = s.low[word], high = s.high[word];
    some_ |= low_ * ((low & which) != 0) | high_ * ((high & which) != 0);
    all_ &= ~(low_ * ((~low & which) != 0) | high_ * ((~high & which) != 0));
  }
  /// As Extent::pte has it, beside what `pte` says of all of them.
  std::uint16_t in(std::uint16_t pte) const {
    const std::uint64_t unlike = some_ & ~all_ & ~std::uint64_t{pte};
    return static_cast<std::uint16_t>(pte | all_ | unlike * varies_factor);
  }

 private:
  std::uint64_t low_, high_, some_ = 0, all_;
};

/// Adds the leaf at the front of `entries`, and those after it that differ from it in frame and
/// usage alone. Returns how many; 0 once the builder's sink had enough. `leaf` is the first's
/// extent without the usage bits that stand in its entry: they are taken from each.
std::size_t add_leaves(const Fields fields, bool inverted, std::span<const std::uint64_t> entries,
                       const Extent& leaf, unsigned page_shift, ExtentBuilder& out) {
  const std::uint64_t* const raw = entries.data();
  const LeafComparison compare{fields, inverted ? 0 - leaf.bytes : leaf.bytes};
  const std::uint64_t flip = inverted ? fields.frame : 0;
  const std::uint64_t high_pfn = leaf.pfn.value & ~(fields.frame >> page_shift);
  const auto leaf_shift = static_cast<unsigned>(std::countr_zero(leaf.bytes));

  Extent run = leaf;
  std::size_t start = 0, at = 1;
  const Usage none{fields};
  Usage usage = none;
  usage.add(raw[0]);
  const auto end_run = [&](std::size_t end) {
    run.va = leaf.va + (start << leaf_shift);
    run.bytes = (end - start) << leaf_shift;
    run.pfn = {high_pfn | ((raw[start] ^ flip) & fields.frame) >> page_shift};
    run.pte = usage.in(leaf.pte);
  };
  Stretch s;
  for (bool more = true; more && at < entries.size();) {
    compare.look(raw + at, std::min(entries.size() - at, Stretch::most), s);
    more = s.count == Stretch::most;
    for (std::size_t done = 0; done < s.count; done += 64) {
      const std::size_t word = done / 64;
      const std::size_t here = std::min<std::size_t>(s.count - done, 64);
      std::uint64_t rest = ~std::uint64_t{0} >> (64 - here);
      for (std::uint64_t jumps = s.jumps[word] & rest; jumps != 0; jumps &= jumps - 1) {
        const std::uint64_t before = (jumps & (~jumps + 1)) - 1;
        usage.add(s, word, rest & before);
        rest &= ~before;
        const std::size_t next = at + static_cast<unsigned>(std::countr_zero(jumps));
        end_run(next);
        // A run in the middle goes on nothing: its neighbours are of its kind, and their frames are
        // others.
        if (start == 0 ? !out.add(run) : !out.hand_on(run)) return 0;
        start = next;
        usage = none;
      }
      usage.add(s, word, rest);
      at += here;
    }
  }
  end_run(at);
  return out.add(run) ? at : 0;
}

/// Collects names. Each bit is named once; what is left over at the end is `bitN`.
class Names {
 public:
  explicit Names(std::uint64_t raw) : raw_(raw), rest_(raw) {}

  void say(std::string_view name) {
    if (!text_.empty()) text_ += ',';
    text_ += name;
  }
  void say(std::string_view name, std::uint64_t number, int base = 10) {
    say(name);
    text_ += base == 16 ? "=0x" : "=";
    char digits[20];
    text_.append(digits, std::to_chars(digits, std::end(digits), number, base).ptr);
  }
  /// `name`, if one of `bits` is set.
  void flag(std::uint64_t bits, std::string_view name) {
    if ((raw_ & bits) != 0) say(name);
    done(bits);
  }
  /// These need no name, or have got it.
  void done(std::uint64_t bits) { rest_ &= ~bits; }

  std::string finish() {
    for (unsigned n = 0; n < 64; ++n) {
      if ((rest_ & bit(n)) == 0) continue;
      say("bit");
      char digits[2];
      text_.append(digits, std::to_chars(digits, std::end(digits), n).ptr);
    }
    return std::move(text_);
  }

 private:
  std::uint64_t raw_, rest_;
  std::string text_;
};

void name_cache(std::uint16_t pte, Names& names) {
  names.say(std::string("cache=") += to_string(pte_bit::cache(pte)));
}

void name_swap(const Format& f, std::uint64_t raw, const Entry& e, Names& names) {
  names.say(to_string(e.state));
  x86::Swap swap{};
  if (!swap_fields(f, raw, swap)) return;
  names.say("type", swap.type);
  names.say("offset", swap.offset, 16);
}

namespace x86 {

void name(const Format& f, unsigned level, std::uint64_t raw, const Entry& e, Names& names) {
  switch (e.kind) {
    case Kind::swap:
      name_swap(f, raw, e, names);
      names.done(bits(63, 9));
      names.flag(swap_soft_dirty, "soft-dirty");
      names.flag(swap_uffd_wp, "uffd-wp");
      names.flag(swap_exclusive, "exclusive");
      return;
    case Kind::table:
      names.flag(present, "present");
      names.flag(writable, "writable");
      names.flag(user, "user");
      names.flag(nx, "nx");
      names.flag(pwt, "pwt");
      names.flag(pcd, "pcd");
      names.flag(accessed, "accessed");
      names.flag(dirty, "dirty");  // Linux sets it (_PAGE_TABLE), the processor does not look
      names.done(address(f, f.page_shift));
      names.flag(f.encryption_mask, "encryption");
      return;
    case Kind::leaf:
      break;
    default:
      return;
  }
  names.flag(present, "present");
  if ((raw & present) == 0) {
    names.flag(prot_none, "protnone");
    if ((raw & prot_none) == 0) names.say("splitting");
  }
  names.flag(writable, "writable");
  names.flag(user, "user");
  names.flag(nx, "nx");
  name_cache(e.pte, names);
  names.done(pwt | pcd | (level == 0 ? bit(pat_bit) : bit(pat_large_bit)));
  names.flag(accessed, "accessed");
  names.flag(dirty, "dirty");
  if (saved_dirty(f, level, raw)) names.flag(soft5, "saved-dirty");
  if (level != 0) {
    names.flag(pse, "huge");
    names.done(below_frame(f.shift(level)));
  }
  if ((raw & present) != 0) names.flag(global, "global");
  names.flag(special, "special");
  names.flag(uffd_wp, "uffd-wp");
  names.flag(soft_dirty, "soft-dirty");
  if ((raw & pkey) != 0) names.say("pkey", (raw & pkey) >> pkey_shift);
  names.done(pkey | address(f, f.shift(level)));
  names.flag(f.encryption_mask, "encryption");
}

}  // namespace x86

namespace arm64 {

void name(const Format& f, unsigned level, std::uint64_t raw, const Entry& e, Names& names) {
  switch (e.kind) {
    case Kind::swap:
      name_swap(f, raw, e, names);
      if (f.swap_type_shift == 0) return;
      names.done(f.swap_type_shift == 6 ? bits(61, 12) | bits(10, 6)
                                        : bits(57, 8) | bits(7, f.swap_type_shift));
      if (f.swap_type_shift != 2) names.flag(swap_exclusive, "exclusive");
      if (f.swap_type_shift == 6) names.flag(swap_uffd_wp, "uffd-wp");
      return;
    case Kind::table:
      names.flag(valid, "present");
      names.done(table | low_address(f, f.page_shift) | high_address(f));
      names.flag(accessed, "accessed");
      names.flag(table_pxn, "pxn");
      names.flag(table_uxn, "uxn");
      names.flag(table_no_user, "no-user");
      names.flag(table_read_only, "read-only");
      names.flag(table_non_secure, "ns");
      names.flag(f.encryption_mask, "encryption");
      return;
    case Kind::leaf:
      break;
    default:
      return;
  }
  names.flag(valid, "present");
  if ((raw & valid) == 0) {
    names.say("invalidated");  // PROT_NONE, NUMA hinting, or while it is split
    if (f.swap_type_shift != 6) names.done(old_prot_none | (level == 1 ? old_pmd_invalid : 0));
  }
  names.flag(write, "write");
  names.flag(read_only, "read-only");
  names.flag(user, "user");
  names.flag(uxn, "uxn");
  names.flag(pxn, "pxn");
  if (e.pte >> pte_bit::cache_shift != 0)
    name_cache(e.pte, names);
  else
    names.say("attr", attribute_index(raw));
  names.done(bits(4, 2));
  names.flag(accessed, "accessed");
  names.flag(dirty, "dirty");
  if (level == 0)
    names.done(table);
  else
    names.flag(f.page_shift == 16 || f.lpa2 ? 0 : no_translation, "nt");
  names.done(low_address(f, f.shift(level)) | high_address(f));
  if ((raw & shareable & ~high_address(f)) != 0) {
    constexpr std::string_view domain[] = {"", "sh=1", "outer-shareable", "inner-shareable"};
    names.say(domain[raw >> 8 & 3]);
  }
  names.done(shareable);
  names.flag(not_global, "ng");
  names.flag(contiguous, "contiguous");
  names.flag(guarded, "guarded");
  names.flag(special, "special");
  names.flag(devmap, "devmap");
  if (is_uffd_wp(f, raw)) names.flag(uffd_wp, "uffd-wp");
  names.flag(non_secure, "ns");
  names.flag(f.encryption_mask, "encryption");
}

}  // namespace arm64

}  // namespace

Entry decode(const Format& format, unsigned level, std::uint64_t raw) {
  Entry e;
  const bool x86 = is_x86(format);
  e.kind = x86 ? x86::kind(format, level, raw) : arm64::kind(format, level, raw);
  switch (e.kind) {
    case Kind::none:
      break;
    case Kind::table:
      if (x86)
        x86::decode_table(format, raw, e);
      else
        arm64::decode_table(format, raw, e);
      break;
    case Kind::leaf:
      if (x86)
        x86::decode_leaf(format, level, raw, e);
      else
        arm64::decode_leaf(format, level, raw, e);
      break;
    case Kind::swap:
      decode_swap(format, raw, e);
      break;
    case Kind::invalid:
      unknown_entry(e);
      break;
  }
  return e;
}

Limits limits(const Format& format, unsigned level, Limits above, std::uint64_t table_entry) {
  if (is_x86(format)) {
    const bool root = level + 1 == format.levels;
    above.writable &= (table_entry & x86::writable) != 0;
    above.user &= (table_entry & x86::user) != 0;
    above.executable &= root || (table_entry & x86::nx) == 0;
  } else {
    above.writable &= (table_entry & arm64::table_read_only) == 0;
    above.user &= (table_entry & arm64::table_no_user) == 0;
    above.executable &= (table_entry & arm64::table_uxn) == 0;
  }
  return above;
}

std::uint16_t limited(std::uint16_t pte, Limits limits) {
  unsigned kept = pte;
  if (!limits.writable) kept &= ~unsigned{pte_bit::writable};
  if (!limits.user) kept &= ~unsigned{pte_bit::user};
  if (!limits.executable) kept &= ~unsigned{pte_bit::executable};
  return static_cast<std::uint16_t>(kept);
}

bool shows_saved_dirty(std::uint64_t raw) {
  return (raw & (x86::present | x86::writable | x86::dirty | x86::soft5)) ==
         (x86::present | x86::soft5);
}

const char* level_name(const Format& format, unsigned level) {
  static constexpr const char* names[] = {"pte", "pmd", "pud", "p4d", "pgd"};
  return level + 1 >= format.levels || level >= std::size(names) ? "pgd" : names[level];
}

std::string flag_names(const Format& format, unsigned level, std::uint64_t raw) {
  if (raw == 0) return "none";
  const Entry entry = decode(format, level, raw);
  Names names{raw};
  if (entry.kind == Kind::invalid) names.say("invalid");
  if (is_x86(format))
    x86::name(format, level, raw, entry, names);
  else
    arm64::name(format, level, raw, entry, names);
  return names.finish();
}

bool decode_entries(const Format& format, unsigned level, VirtAddr va,
                    std::span<const std::uint64_t> entries, Limits above, Backend backend,
                    ExtentBuilder& out, Descend descend) {
  const unsigned shift = format.shift(level);
  const Fields fields = is_x86(format) ? x86::fields(format, shift) : arm64::fields(format, shift);
  for (std::size_t i = 0; i < entries.size();) {
    const std::uint64_t raw = entries[i];
    const VirtAddr at = va + (i << shift);
    std::size_t count = 1;
    if (raw == 0) {
      while (i + count < entries.size() && entries[i + count] == 0) ++count;
      if (!out.add({.va = at, .bytes = count << shift, .backend = backend})) return false;
    } else {
      // Without the bits that add_leaves() takes from each entry; no other answer depends on them.
      const Entry entry = decode(format, level, raw & ~fields.usage);
      if (entry.kind == Kind::table) {
        if (!descend(at, raw)) return false;
      } else {
        const Extent run = extent_of(format, level, at, entry, above, backend);
        if (entry.kind == Kind::leaf) {
          const bool inverted = is_x86(format) && (raw & x86::present) == 0;
          count = add_leaves(fields, inverted, entries.subspan(i), run, format.page_shift, out);
          if (count == 0) return false;
        } else if (!out.add(run)) {
          return false;
        }
      }
    }
    i += count;
  }
  return true;
}

bool decode_entries(const Format& format, unsigned level, VirtAddr va,
                    std::span<const std::uint64_t> entries, Limits above, Backend backend,
                    ExtentSink run, Descend descend) {
  ExtentBuilder out{PageSize{bit(format.page_shift)}, run};
  const auto in_order = [&](VirtAddr at, std::uint64_t raw) {
    return out.flush() && descend(at, raw);
  };
  return decode_entries(format, level, va, entries, above, backend, out, in_order) && out.flush();
}

}  // namespace vmem::page_table
