// SPDX-License-Identifier: MIT
/// What page-table entries mean, per architecture: the one copy of their layout. Pure: no
/// memory is read here, so the BPF and the kmod backend share it and tests need no machine.
/// Sources: arch/x86/include/asm/pgtable_types.h, pgtable_64.h, pgtable-invert.h;
/// arch/arm64/include/asm/pgtable-hwdef.h, pgtable-prot.h, pgtable.h.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "extent_builder.hpp"
#include "vmem/function_ref.hpp"
#include "vmem/pages.hpp"

namespace vmem::page_table {

enum class Architecture : std::uint8_t { x86_64, arm64 };

/// What decoding needs to know of a machine besides the entry.
struct Format {
  Architecture architecture = Architecture::x86_64;
  std::uint8_t levels = 4;       ///< x86-64: 4 or 5; arm64: 2 to 5
  std::uint8_t page_shift = 12;  ///< x86-64: 12; arm64: 12, 14 or 16
  /// x86: bit 58 of a read-only leaf is certain to be its dirty bit (_PAGE_SAVED_DIRTY, Linux 6.6;
  /// before, it marked DAX pages). A written private page that mprotect() makes read-only shows it:
  /// bit 6 gone, bit 58 set. While this is false it counts only where it cannot be the other.
  bool saved_dirty = false;
  bool lpa2 = false;  ///< arm64: 52-bit addresses with 4K or 16K granules (not by 64K's layout)
  /// arm64: __SWP_TYPE_SHIFT, which stands for how the kernel writes entries that are not valid: 2
  /// (until 5.18), 3 (until 6.10: PTE_SWP_EXCLUSIVE came), 6 (PTE_PRESENT_INVALID moved to bit 11,
  /// uffd-wp came). 0: not known; PROT_NONE is then still told from swap, but swap entries are
  /// Reason::unknown_entry.
  std::uint8_t swap_type_shift = 0;
  /// x86: PAT entry -> memory type, by PWT | PCD << 1 | PAT << 2, as Linux programs the MSR
  /// (pat_bp_init() in arch/x86/mm/pat/memtype.c). Without PAT the last four repeat the first.
  std::array<CacheAttribute, 8> pat = {
      CacheAttribute::wb, CacheAttribute::wc, CacheAttribute::uc_minus, CacheAttribute::uc,
      CacheAttribute::wb, CacheAttribute::wp, CacheAttribute::uc_minus, CacheAttribute::wt};
  /// Bits of an address that mark encryption (SME's C bit, TDX's shared bit); not part of it.
  std::uint64_t encryption_mask = 0;
  /// arm64: MAIR_EL1, the meaning of AttrIndx; 0: not known, and so are the cache attributes.
  std::uint64_t mair = 0;

  /// Levels are counted from the leaf: 0 is the PTE level, levels - 1 the root.
  constexpr unsigned index_bits() const { return page_shift - 3U; }
  /// Of a whole table. The root of arm64 has fewer where VA_BITS leaves it some bits only.
  constexpr unsigned entries() const { return 1U << index_bits(); }
  constexpr unsigned shift(unsigned level) const { return page_shift + level * index_bits(); }
  constexpr unsigned index(unsigned level, VirtAddr va) const {
    return static_cast<unsigned>(va.value >> shift(level)) & (entries() - 1);
  }
  friend constexpr bool operator==(const Format&, const Format&) = default;
};

enum class Kind : std::uint8_t {
  none,  ///< empty
  table,  ///< points to the next lower table
  leaf,  ///< maps memory; PROT_NONE and NUMA-hinting entries too
  swap,  ///< not present, but not empty: state and reason say what it is
  /// No entry that Linux makes here: reserved bits, a leaf or swap entry too high up. Special,
  /// unknown_entry. Where it was copied from a living table it rather is a sign that the copy is of
  /// something else.
  invalid,
};

/// What one entry says.
struct Entry {
  Kind kind = Kind::none;
  PageState state = PageState::absent;  ///< of a leaf or of what is not present; tables: absent
  Reason reason = Reason::none;
  std::uint8_t bits = 0;  ///< page_bit::soft_dirty, uffd_wp
  std::uint8_t swap_type = 0;
  std::uint16_t pte = 0;  ///< pte_bit; of this level alone
  /// Table, leaf: physical address in bytes; swap: offset in pages, or the frame that it names
  std::uint64_t value = 0;
};

/// `level` is 0 for PTEs. A swap entry follows the rules of pagemap_decode.hpp for what its
/// type means (markers, migration, device-private), so that both backends say the same.
Entry decode(const Format& format, unsigned level, std::uint64_t raw);

/// Permissions that upper levels take away (x86: RW, US and NX of every level; arm64: the
/// table entries' APTable and UXNTable).
struct Limits {
  bool writable = true;
  bool user = true;
  bool executable = true;
  friend constexpr bool operator==(const Limits&, const Limits&) = default;
};
/// What holds below a table entry of `level`. NX in x86's root does not count: page-table isolation
/// sets it in the kernel's copy, the one that is read, and the process runs on the other
/// (pti_set_user_pgtbl()).
Limits limits(const Format& format, unsigned level, Limits above, std::uint64_t table_entry);
std::uint16_t limited(std::uint16_t pte, Limits limits);

/// x86: this is a read-only leaf whose dirty bit is kept in bit 58, if it was written.
bool shows_saved_dirty(std::uint64_t raw);

/// The kernel's name of a level, counted from the leaf: "pte", "pmd", "pud", "p4d", "pgd".
/// The root is always "pgd" (levels between it and the top existing one are folded).
const char* level_name(const Format& format, unsigned level);

/// Every flag of an entry by its name, and bits without one as `bitN`; comma separated. What is
/// not present: its state, type and offset. All zero: "none".
std::string flag_names(const Format& format, unsigned level, std::uint64_t raw);

/// Table entries: descend(VirtAddr va, std::uint64_t raw). False to stop.
using Descend = FunctionRef<bool(VirtAddr, std::uint64_t)>;

/// Decodes one table (all of it or a part): entries of `level`, the first of them for `va`. What is
/// not a table goes to `out`, tiling, and table entries to `descend`, all in ascending order. False
/// once one of them had enough. The entries are a copy: nothing else writes to them meanwhile. (The
/// processor's reading of a contiguous range as one is only a flag: a leaf is what one entry maps.)
bool decode_entries(const Format& format, unsigned level, VirtAddr va,
                    std::span<const std::uint64_t> entries, Limits above, Backend backend,
                    ExtentBuilder& out, Descend descend);

/// The same, with merged runs for `run`; `descend` is called when all before it was handed on.
bool decode_entries(const Format& format, unsigned level, VirtAddr va,
                    std::span<const std::uint64_t> entries, Limits above, Backend backend,
                    ExtentSink run, Descend descend);

}  // namespace vmem::page_table
