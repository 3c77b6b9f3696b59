// SPDX-License-Identifier: MIT
#include "vm_flags.hpp"

#include <string>
#include <string_view>
#include <utility>

#include "errors.hpp"

namespace vmem {
namespace {

/// include/linux/mm.h and show_smap_vma_flags(); two letters a bit, from bit 0 on. Bit 11 was free
/// from 5.15 (VM_DENYWRITE) to 6.18 (VM_MAYBE_GUARD).
constexpr std::string_view names =
    "rdwrexsh"
    "mrmwmems"
    "gdumpfgu"
    "uwloiosr"
    "rrdcdelf"
    "acnrhtsf"
    "arwfddsd"
    "mmhgnhmg";
static_assert(names.size() == 64);

std::optional<VmFlags> by_bits(std::uint64_t word) {
  std::string codes;
  for (std::size_t bit = 0; bit < 64; ++bit) {
    if ((word >> bit & 1) == 0) continue;
    if (bit >= names.size() / 2) return {};
    if (!codes.empty()) codes += ' ';
    codes += names.substr(2 * bit, 2);
  }
  return VmFlags{codes};
}

/// Whether the line has just those names of bits 0 to 31 that the word has.
bool low_bits_agree(std::uint64_t word, const VmFlags& line) {
  for (std::size_t bit = 0; bit < names.size() / 2; ++bit) {
    if (((word >> bit & 1) != 0) != line.has(names.substr(2 * bit, 2))) return false;
  }
  return true;
}

}  // namespace

Result<VmFlagNames> VmFlagNames::learn(const Process& self, std::span<const VmaWord> own) {
  VmFlagNames learnt;
  SmapsReader smaps{self};
  for (const VmaWord& vma : own) {
    const auto entry = smaps.find(vma.range.start);
    if (!entry) return std::unexpected(entry.error());
    // This process maps memory, too, between the one look and the other.
    if (!*entry || (*entry)->range != vma.range || !(*entry)->flags) continue;
    const VmFlags& flags = *(*entry)->flags;
    // A thread of ours may have given it other flags meanwhile, too.
    const auto ours = by_bits(vma.flags);
    if (ours ? ours->text() != flags.text() : !low_bits_agree(vma.flags, flags))
      return fail(Errc::not_supported, "naming vm_flags", self.path("smaps"));
    learnt.seen_.insert_or_assign(vma.flags, flags);
  }
  if (learnt.seen_.empty()) return fail(Errc::not_supported, "naming vm_flags", self.path("smaps"));
  return learnt;
}

std::optional<VmFlags> VmFlagNames::of(std::uint64_t word) const {
  if (const auto seen = seen_.find(word); seen != seen_.end()) return seen->second;
  return by_bits(word);
}

}  // namespace vmem
