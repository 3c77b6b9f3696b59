// SPDX-License-Identifier: MIT
#include "addresses.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
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

/// Whether this kernel gives no process a mapping at `address`: found by trying, since 5-level page
/// tables and arm64's 52 bits open more to who asks for an address up there.
bool beyond_processes(std::uint64_t address) {
  const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const auto map = [&](std::uint64_t at, int flags) {
    const int all = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags;
#ifdef __LP64__
    // Not mmap(): ThreadSanitizer's puts 0 in the place of addresses that it does not know.
    const long page = syscall(SYS_mmap, at, bytes, PROT_NONE, all, -1, 0L);
    if (page == -1) return errno;
    (void)syscall(SYS_munmap, page, bytes);
#else
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    void* const page = mmap(reinterpret_cast<void*>(at), bytes, PROT_NONE, all, -1, 0);
    if (page == MAP_FAILED) return errno;
    munmap(page, bytes);
#endif
    return 0;
  };
  // ENOMEM is also what a limit of address space or of mappings says.
  return map(address & ~std::uint64_t{bytes - 1}, MAP_FIXED_NOREPLACE) == ENOMEM && map(0, 0) == 0;
}

}  // namespace

std::optional<VirtAddr> decimal_reading(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return VirtAddr{value};
}

std::optional<AddressDoubt> not_user_address(const SysRoot& root, VirtAddr asked,
                                             std::string_view text) {
  // No 64-bit machine of the recorded ones gives processes more than x86-64 with 5 levels does.
  constexpr std::uint64_t most_known = std::uint64_t{1} << 56;
  constexpr std::uint64_t least_doubted = std::uint64_t{1} << 38;
  if (asked.value < least_doubted) return {};
  if (asked.value < most_known && (root.recorded() || !beyond_processes(asked.value))) return {};
  if (const auto decimal = decimal_reading(text)) {
    return AddressDoubt{fmt::format("not a user address; addresses are hexadecimal: {:#x} is {}",
                                    decimal->value, text),
                        {}};
  }
  // The upper half of every architecture, where the bits above the page tables' are all ones.
  if (asked.value >= 0xff00000000000000) {
    return AddressDoubt{
        "not a user address: it is the kernel's",
        "this tool tells of processes' addresses alone; crash and drgn translate the kernel's"};
  }
  return AddressDoubt{"not a user address: no process can have a mapping there",
                      "addresses are hexadecimal: is it a physical one, or of another machine?"};
}

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
