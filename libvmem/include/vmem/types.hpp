// SPDX-License-Identifier: MIT
/// Addresses, frame numbers and ranges. They are separate types so that bytes,
/// pages and frames, virtual and physical, cannot be mixed by accident.
#pragma once

#include <bit>
#include <compare>
#include <cstdint>

namespace vmem {

/// A virtual address, in bytes.
struct VirtAddr {
  std::uint64_t value = 0;
  friend constexpr auto operator<=>(VirtAddr, VirtAddr) = default;
};

/// A physical address, in bytes. 0 is a valid one.
struct PhysAddr {
  std::uint64_t value = 0;
  friend constexpr auto operator<=>(PhysAddr, PhysAddr) = default;
};

/// A page frame number: physical address / page size. 0 is a valid frame.
struct Pfn {
  std::uint64_t value = 0;
  friend constexpr auto operator<=>(Pfn, Pfn) = default;
};

constexpr VirtAddr operator+(VirtAddr a, std::uint64_t bytes) { return {a.value + bytes}; }
constexpr VirtAddr operator-(VirtAddr a, std::uint64_t bytes) { return {a.value - bytes}; }
constexpr std::uint64_t operator-(VirtAddr a, VirtAddr b) { return a.value - b.value; }
constexpr PhysAddr operator+(PhysAddr a, std::uint64_t bytes) { return {a.value + bytes}; }
constexpr std::uint64_t operator-(PhysAddr a, PhysAddr b) { return a.value - b.value; }
constexpr Pfn operator+(Pfn a, std::uint64_t frames) { return {a.value + frames}; }

/// A page size: a power of two, in bytes.
class PageSize {
 public:
  constexpr PageSize() = default;
  /// `bytes` must be a power of two; see valid().
  constexpr explicit PageSize(std::uint64_t bytes)
      : shift_(static_cast<unsigned>(std::countr_zero(bytes))) {}
  static constexpr bool valid(std::uint64_t bytes) {
    return std::has_single_bit(bytes) && bytes >= 4096 && bytes <= (std::uint64_t{1} << 40);
  }

  constexpr std::uint64_t bytes() const { return std::uint64_t{1} << shift_; }
  constexpr unsigned shift() const { return shift_; }
  constexpr std::uint64_t pages(std::uint64_t bytes) const { return bytes >> shift_; }
  constexpr std::uint64_t offset(VirtAddr a) const { return a.value & (bytes() - 1); }
  constexpr VirtAddr floor(VirtAddr a) const { return {a.value & ~(bytes() - 1)}; }
  /// Wraps to 0 above the last page boundary.
  constexpr VirtAddr ceil(VirtAddr a) const { return floor({a.value + bytes() - 1}); }
  constexpr PhysAddr address(Pfn f) const { return {f.value << shift_}; }
  constexpr Pfn frame(PhysAddr a) const { return {a.value >> shift_}; }

  /// The size one page-table level up (a PMD leaf where *this is the base page):
  /// a table fills one page with 8-byte entries. 4K gives 2M, 64K gives 512M.
  constexpr PageSize next_level() const { return PageSize{bytes() * (bytes() / 8)}; }

  friend constexpr bool operator==(PageSize, PageSize) = default;

 private:
  unsigned shift_ = 12;
};

/// Half-open: [start, end), in bytes.
struct VaRange {
  VirtAddr start;
  VirtAddr end;
  constexpr std::uint64_t bytes() const { return end - start; }
  constexpr bool empty() const { return end <= start; }
  constexpr bool contains(VirtAddr a) const { return start <= a && a < end; }
  friend constexpr bool operator==(VaRange, VaRange) = default;
};

/// Half-open: [start, end), in bytes.
struct PaRange {
  PhysAddr start;
  PhysAddr end;
  constexpr std::uint64_t bytes() const { return end - start; }
  constexpr bool contains(PhysAddr a) const { return start <= a && a < end; }
  friend constexpr bool operator==(PaRange, PaRange) = default;
};

/// The part that two ranges share; empty() where they share none.
constexpr VaRange intersect(VaRange a, VaRange b) {
  return {a.start < b.start ? b.start : a.start, a.end < b.end ? a.end : b.end};
}

}  // namespace vmem
