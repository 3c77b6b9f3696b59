// SPDX-License-Identifier: MIT
#include "addresses.hpp"

#include <charconv>

namespace vmem::tools {
namespace {

/// Hexadecimal with or without 0x; nothing else may stand there.
std::optional<std::uint64_t> parse_hex(std::string_view text) {
  if (text.starts_with("0x") || text.starts_with("0X")) text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

}  // namespace

std::optional<std::uint64_t> parse_size(std::string_view text) {
  unsigned shift = 0;
  // In 0x…, no suffix letter is a hex digit, so there is no doubt.
  if (!text.empty()) {
    switch (text.back()) {
      case 'K':
      case 'k':
        shift = 10;
        break;
      case 'M':
      case 'm':
        shift = 20;
        break;
      case 'G':
      case 'g':
        shift = 30;
        break;
      case 'T':
      case 't':
        shift = 40;
        break;
      default:
        break;
    }
  }
  if (shift != 0) text.remove_suffix(1);
  const bool hex = text.starts_with("0x") || text.starts_with("0X");
  if (hex) text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, hex ? 16 : 10);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  if (value > (UINT64_MAX >> shift)) return {};
  return value << shift;
}

std::expected<AddressExpression, std::string> parse_address(std::string_view text) {
  using Form = AddressExpression::Form;
  AddressExpression result;
  if (text.empty()) return std::unexpected("an empty line is no address");

  if (text.front() == '[') {
    const std::size_t close = text.rfind(']');
    if (close == std::string_view::npos) return std::unexpected("no closing ']'");
    result.form = Form::name;
    result.name = text.substr(0, close + 1);
    const std::string_view rest = text.substr(close + 1);
    if (rest.empty()) return result;
    const auto offset = rest.front() == '+' ? parse_size(rest.substr(1)) : std::nullopt;
    if (!offset) return std::unexpected("junk after the name (wanted [name] or [name]+OFFSET)");
    result.form = Form::name_offset;
    result.offset = *offset;
    return result;
  }

  if (const std::size_t plus = text.rfind('+'); plus != std::string_view::npos) {
    const std::string_view left = text.substr(0, plus);
    const auto size = parse_size(text.substr(plus + 1));
    if (left.empty() || !size) return std::unexpected("not START+LEN or FILE+OFFSET");
    if (const auto start = parse_hex(left)) {
      if (*size == 0) return std::unexpected("an empty range");
      if (*size - 1 > UINT64_MAX - *start) return std::unexpected("the range ends above 2^64");
      result.form = Form::range;
      result.start = {*start};
      result.end = {*start + (*size - 1)};
      if (result.end.value != UINT64_MAX) result.end = result.end + 1;  // 2^64 has no value
      return result;
    }
    result.form = Form::file_offset;
    result.name = left;
    result.offset = *size;
    return result;
  }

  if (const std::size_t dash = text.find('-'); dash != std::string_view::npos) {
    const auto start = parse_hex(text.substr(0, dash));
    const auto end = parse_hex(text.substr(dash + 1));
    if (!start || !end) return std::unexpected("not START-END in hexadecimal");
    if (*start == *end) return std::unexpected("an empty range");
    if (*start > *end) return std::unexpected("an inverted range: it ends before it starts");
    result.form = Form::range;
    result.start = {*start};
    result.end = {*end};
    return result;
  }

  const auto start = parse_hex(text);
  if (!start)
    return std::unexpected(
        "not a hexadecimal address, START-END, START+LEN, [name] or FILE+OFFSET");
  result.start = {*start};
  return result;
}

}  // namespace vmem::tools
