// SPDX-License-Identifier: MIT
/// Compares the leaves of a page table with their neighbours, many at a time. Which bits of an
/// entry are what is for page_table.cpp to say; here they are numbers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vmem::page_table {

/// How the raw values of neighbouring leaves are alike: all of it that is neither the frame nor set
/// by the processor page by page must be the same for them to differ in nothing else.
struct Fields {
  std::uint64_t frame = 0;  ///< of the address, the bits that stand where they are in the address
  std::uint64_t usage = 0;  ///< the accessed and the dirty bit: two of bits 0 to 31, or none

  constexpr std::uint64_t low_usage() const { return usage & (~usage + 1); }
  constexpr std::uint64_t high_usage() const { return usage & ~low_usage(); }
};

/// What is found in a stretch of leaves. Bit n % 64 of number n / 64 is for entry n; bits from
/// `count` on mean nothing.
struct Stretch {
  static constexpr std::size_t most = 512;
  using Bits = std::array<std::uint64_t, most / 64>;

  std::size_t count = 0;  ///< alike in all but frame and usage: the next one, if any, is not
  Bits jumps;  ///< its frame does not follow that of the entry before
  Bits low, high;  ///< it has low_usage(), high_usage()
};

/// The frames of a process jump where it cannot be foreseen, and so do accessed bits where the
/// kernel samples them: nothing here branches on either.
class LeafComparison {
 public:
  /// With which instructions: those of every CPU, or 256 or 512 bits at a time.
  enum class Way : std::uint8_t { plain, avx2, avx512 };
  /// What this CPU has, and the kernel saves the registers of.
  static Way best_way();

  /// `step`: from one entry to the next, if their frames are consecutive.
  LeafComparison(Fields fields, std::uint64_t step, Way way = best_way())
      : alike_(~(fields.frame | fields.usage)), fields_(fields), step_(step), way_(way) {}

  /// Looks at up to `most` (1 to Stretch::most) entries; at[-1] is the leaf before them.
  void look(const std::uint64_t* at, std::size_t most, Stretch& s) const;

 private:
  static constexpr std::size_t window = 64;
  static constexpr std::size_t few = 8;  ///< these are looked at one by one

  bool alike(const std::uint64_t* at) const { return ((at[0] ^ at[-1]) & alike_) == 0; }

  /// Adds bit `n` for the entry `at`. (What is carried out of the frame is not alike.)
  void add_bits(const std::uint64_t* at, std::size_t n, std::uint64_t& jumps, std::uint64_t& low,
                std::uint64_t& high) const {
    const bool jumped = (at[0] & ~fields_.usage) - (at[-1] & ~fields_.usage) != step_;
    jumps |= std::uint64_t{jumped} << n;
    low |= std::uint64_t{(at[0] & fields_.low_usage()) != 0} << n;
    high |= std::uint64_t{(at[0] & fields_.high_usage()) != 0} << n;
  }
  /// All of them are alike.
  void look_at_few(const std::uint64_t* at, std::size_t count, Stretch& s) const;

  /// Fills in the numbers of `s` from `first` on, for whole windows of entries: up to `count` of
  /// them, and not past one in which not all are alike. Returns how many are.
  std::size_t look_at_windows(const std::uint64_t* at, std::size_t count, Stretch& s,
                              std::size_t first) const;
  std::size_t look_plain(const std::uint64_t* at, std::size_t count, Stretch& s,
                         std::size_t first) const;
  std::size_t look_avx2(const std::uint64_t* at, std::size_t count, Stretch& s,
                        std::size_t first) const;
  std::size_t look_avx512(const std::uint64_t* at, std::size_t count, Stretch& s,
                          std::size_t first) const;

  std::uint64_t alike_;  ///< the bits in which all leaves are the same
  Fields fields_;
  std::uint64_t step_;
  Way way_;
};

}  // namespace vmem::page_table
