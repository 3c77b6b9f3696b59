// SPDX-License-Identifier: MIT
#include "leaf_comparison.hpp"

#include <algorithm>
#include <bit>
#include <iterator>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace vmem::page_table {

#ifdef __x86_64__

/// Intel SDM volume 1, 14.7.1 and 15.2. Not __builtin_cpu_supports: libgcc then runs a dozen CPUID
/// before main(), and each traps in a virtual machine, which a lookup that reads no page table
/// would pay, too.
LeafComparison::Way LeafComparison::best_way() {
  static const Way best = [] {
    constexpr unsigned leaf_features = 1, leaf_extended = 7;
    constexpr unsigned ymm_state = 0x06, zmm_state = 0xe6;  // of XCR0
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(leaf_features, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0)
      return Way::plain;
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (__get_cpuid_count(leaf_extended, 0, &a, &b, &c, &d) == 0) return Way::plain;
    if ((low & zmm_state) == zmm_state && (b & bit_AVX512F) != 0) return Way::avx512;
    return (low & ymm_state) == ymm_state && (b & bit_AVX2) != 0 ? Way::avx2 : Way::plain;
  }();
  return best;
}

namespace {
/// The sign of each of eight 32-bit lanes.
[[gnu::target("avx2")]] inline std::uint64_t signs(__m256i lanes) {
  return static_cast<std::uint8_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
}
}  // namespace

[[gnu::target("avx2")]] std::size_t LeafComparison::look_avx2(const std::uint64_t* at,
                                                              std::size_t count, Stretch& s,
                                                              std::size_t first) const {
  const __m256i alike = _mm256_set1_epi64x(static_cast<long long>(alike_));
  const __m256i usage = _mm256_set1_epi64x(static_cast<long long>(fields_.usage));
  const __m256i step = _mm256_set1_epi64x(static_cast<long long>(step_));
  const __m128i to_low = _mm_cvtsi32_si128((31 - std::countr_zero(fields_.low_usage())) & 31),
                to_high = _mm_cvtsi32_si128((31 - std::countr_zero(fields_.high_usage())) & 31);
  for (std::size_t i = 0; i < count; ++i, at += window) {
    __m256i differs = _mm256_setzero_si256();
    std::uint64_t jumps = 0, low = 0, high = 0;
#pragma GCC unroll 8
    for (std::size_t n = 0; n < window; n += 8) {
      const auto* const here = reinterpret_cast<const __m256i*>(at + n);
      const auto* const before = reinterpret_cast<const __m256i*>(at + n - 1);
      const __m256i a = _mm256_loadu_si256(here), b = _mm256_loadu_si256(here + 1);
      const __m256i a0 = _mm256_loadu_si256(before), b0 = _mm256_loadu_si256(before + 1);
      differs = _mm256_or_si256(differs,
                                _mm256_or_si256(_mm256_xor_si256(a, a0), _mm256_xor_si256(b, b0)));
      const __m256i delta_a =
          _mm256_sub_epi64(_mm256_andnot_si256(usage, a), _mm256_andnot_si256(usage, a0));
      const __m256i delta_b =
          _mm256_sub_epi64(_mm256_andnot_si256(usage, b), _mm256_andnot_si256(usage, b0));
      // The lower halves of eight lanes, in order.
      const __m256 f = _mm256_castsi256_ps(_mm256_cmpeq_epi64(delta_a, step)),
                   g = _mm256_castsi256_ps(_mm256_cmpeq_epi64(delta_b, step));
      const __m256i follow =
          _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(f, g, 0x88)), 0xd8);
      const __m256 u = _mm256_castsi256_ps(_mm256_and_si256(a, usage)),
                   v = _mm256_castsi256_ps(_mm256_and_si256(b, usage));
      const __m256i used =
          _mm256_permute4x64_epi64(_mm256_castps_si256(_mm256_shuffle_ps(u, v, 0x88)), 0xd8);
      jumps |= (signs(follow) ^ 0xff) << n;
      low |= signs(_mm256_sll_epi32(used, to_low)) << n;
      high |= signs(_mm256_sll_epi32(used, to_high)) << n;
    }
    s.jumps[first + i] = jumps;
    s.low[first + i] = low;
    s.high[first + i] = high;
    if (_mm256_testz_si256(differs, alike) == 0) return i;
  }
  return count;
}

[[gnu::target("avx512f")]] std::size_t LeafComparison::look_avx512(const std::uint64_t* at,
                                                                   std::size_t count, Stretch& s,
                                                                   std::size_t first) const {
  const __m512i alike = _mm512_set1_epi64(static_cast<long long>(alike_));
  const std::uint64_t no_usage = ~fields_.usage;
  const __m512i compared = _mm512_set1_epi64(static_cast<long long>(no_usage));
  const __m512i step = _mm512_set1_epi64(static_cast<long long>(step_));
  const __m512i low_bit = _mm512_set1_epi64(static_cast<long long>(fields_.low_usage())),
                high_bit = _mm512_set1_epi64(static_cast<long long>(fields_.high_usage()));
  constexpr int or_unlike = 0xf6;  // first | (second ^ third)
  for (std::size_t i = 0; i < count; ++i, at += window) {
    __m512i differs = _mm512_setzero_si512();
    std::uint64_t jumps = 0, low = 0, high = 0;
#pragma GCC unroll 8
    for (std::size_t n = 0; n < window; n += 8) {
      const __m512i a = _mm512_loadu_si512(at + n), a0 = _mm512_loadu_si512(at + n - 1);
      differs = _mm512_ternarylogic_epi64(differs, a, a0, or_unlike);
      const __m512i delta =
          _mm512_sub_epi64(_mm512_and_si512(a, compared), _mm512_and_si512(a0, compared));
      jumps |= std::uint64_t{_mm512_cmpneq_epi64_mask(delta, step)} << n;
      low |= std::uint64_t{_mm512_test_epi64_mask(a, low_bit)} << n;
      high |= std::uint64_t{_mm512_test_epi64_mask(a, high_bit)} << n;
    }
    s.jumps[first + i] = jumps;
    s.low[first + i] = low;
    s.high[first + i] = high;
    if (_mm512_test_epi64_mask(differs, alike) != 0) return i;
  }
  return count;
}

#else

LeafComparison::Way LeafComparison::best_way() { return Way::plain; }

#endif

std::size_t LeafComparison::look_plain(const std::uint64_t* at, std::size_t count, Stretch& s,
                                       std::size_t first) const {
  for (std::size_t i = 0; i < count; ++i, at += window) {
    std::uint64_t differs = 0, jumps = 0, low = 0, high = 0;
    for (std::size_t n = 0; n < window; ++n) {
      differs |= at[n] ^ *(at + n - 1);
      add_bits(at + n, n, jumps, low, high);
    }
    s.jumps[first + i] = jumps;
    s.low[first + i] = low;
    s.high[first + i] = high;
    if ((differs & alike_) != 0) return i;
  }
  return count;
}

std::size_t LeafComparison::look_at_windows(const std::uint64_t* at, std::size_t count, Stretch& s,
                                            std::size_t first) const {
#ifdef __x86_64__
  if (way_ == Way::avx512) return look_avx512(at, count, s, first);
  if (way_ == Way::avx2) return look_avx2(at, count, s, first);
#endif
  return look_plain(at, count, s, first);
}

void LeafComparison::look_at_few(const std::uint64_t* at, std::size_t count, Stretch& s) const {
  std::uint64_t jumps = 0, low = 0, high = 0;
  for (std::size_t n = 0; n < count; ++n) add_bits(at + n, n, jumps, low, high);
  s.jumps[0] = jumps;
  s.low[0] = low;
  s.high[0] = high;
}

void LeafComparison::look(const std::uint64_t* at, std::size_t most, Stretch& s) const {
  s.count = 0;
  // Where leaves of several kinds alternate, or are few, the rest would take longer than they.
  while (s.count < std::min(most, few) && alike(at + s.count)) ++s.count;
  if (s.count < few) return look_at_few(at, s.count, s);

  const std::size_t whole = most / window, rest = most % window;
  std::size_t done = look_at_windows(at, whole, s, 0);
  s.count = done * window;
  if (done == whole && rest != 0) {
    // The window that ends with the last entry. The first bits of it are known already, or of
    // entries that are made up.
    std::array<std::uint64_t, window + 1> made_up;
    const std::uint64_t* from = at + most - window;
    if (whole == 0) {
      std::fill_n(made_up.begin(), made_up.size() - rest, at[-1]);
      std::copy_n(at, rest, made_up.end() - static_cast<std::ptrdiff_t>(rest));
      from = &made_up[1];
    }
    done += look_at_windows(from, 1, s, whole);
    s.jumps[whole] >>= window - rest;
    s.low[whole] >>= window - rest;
    s.high[whole] >>= window - rest;
    if (done > whole) s.count = most;
  }
  while (s.count < most && alike(at + s.count)) ++s.count;
}

}  // namespace vmem::page_table
