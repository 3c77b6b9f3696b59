// SPDX-License-Identifier: MIT
/// Hexadecimal numbers as the kernel prints them (lower case): read many digits at a time, and
/// written.
#pragma once

#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>

#if defined(__SSE2__) && defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace vmem {

/// What stands at `p`, the first byte the lowest.
template <class T>
inline T load_text(const char* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return std::endian::native == std::endian::little ? value : std::byteswap(value);
}

/// What load_text() returns where `text` stands.
template <class T>
constexpr T text_word(const char (&text)[sizeof(T) + 1]) {
  T value = 0;
  for (unsigned i = 0; i < sizeof(T); ++i)
    value |= static_cast<T>(T{static_cast<unsigned char>(text[i])} << (8 * i));
  return value;
}

/// The number that eight digits at `p` are. `bad` gets a bit set if one of them is none.
inline std::uint64_t hex8(const char* p, std::uint64_t& bad) {
  constexpr std::uint64_t each = 0x0101010101010101;
  const std::uint64_t text = std::byteswap(load_text<std::uint64_t>(p));
  // Letters have bit 6, and their low bits are 9 less than what they stand for.
  const std::uint64_t letter = text >> 6 & each;
  std::uint64_t digits = (text & 0xf * each) + letter * 9;
  // 16 and more is no digit; what is 10 and more must be a letter, and nothing else; and made to
  // text again it must be the same.
  bad |= (digits & 0x10 * each) | ((((digits + 6 * each) >> 4) & each) ^ letter) |
         ((digits + 0x30 * each + letter * 39) ^ text);
  digits = (digits | digits >> 4) & 0x00ff00ff00ff00ff;
  digits = (digits | digits >> 8) & 0x0000ffff0000ffff;
  return (digits | digits >> 16) & 0xffffffff;
}

/// The number that `count` (8 to 16) digits at `p` are, by portable means. `bad` gets a bit set if
/// one of them is no digit. Reads nothing beyond the digits.
inline std::uint64_t hex_number_plain(const char* p, unsigned count, std::uint64_t& bad) {
  const std::uint64_t high = hex8(p, bad);
  // The two overlap, and are the same where they do.
  return high << (4 * (count - 8)) | hex8(p + count - 8, bad);
}

/// The same. May read up to 16 bytes from `p` on.
inline std::uint64_t hex_number(const char* p, unsigned count, std::uint64_t& bad) {
#if defined(__SSE2__) && defined(__x86_64__)
  const __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const auto all = [](char value) { return _mm_set1_epi8(value); };
  // Unsigned x <= n is min(x, n) == x.
  const __m128i digit = _mm_sub_epi8(text, all('0'));
  const __m128i is_digit = _mm_cmpeq_epi8(_mm_min_epu8(digit, all(9)), digit);
  const __m128i letter = _mm_sub_epi8(text, all('a'));
  const __m128i is_letter = _mm_cmpeq_epi8(_mm_min_epu8(letter, all(5)), letter);
  const auto good = static_cast<unsigned>(_mm_movemask_epi8(_mm_or_si128(is_digit, is_letter)));
  bad |= ~good & ((1U << count) - 1);
  // Also of what is no digit it is four bits.
  const __m128i value =
      _mm_add_epi8(_mm_and_si128(text, all(15)), _mm_and_si128(is_letter, all(9)));
  // Two digits to a byte, then the bytes together, the first in front.
  const __m128i pairs = _mm_and_si128(
      _mm_or_si128(_mm_slli_epi16(value, 4), _mm_srli_epi16(value, 8)), _mm_set1_epi16(0xff));
  const auto bytes = static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs)));
  return std::byteswap(bytes) >> (64 - 4 * count);
#else
  return hex_number_plain(p, count, bad);
#endif
}

/// "0x7f00": for messages.
inline std::string hex_text(std::uint64_t value) {
  char digits[16];
  return "0x" + std::string(digits, std::to_chars(digits, std::end(digits), value, 16).ptr);
}

}  // namespace vmem
