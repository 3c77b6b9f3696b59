// SPDX-License-Identifier: MIT
/// The forms in which a user names addresses: see vtop(1), ADDRESSES.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>

#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem::tools {

struct AddressExpression {
  enum class Form : std::uint8_t {
    address,      ///< 7f00…: start
    range,        ///< START-END, START+LEN: start, end
    name,         ///< [heap]: every mapping of that name
    name_offset,  ///< [heap]+OFFSET: from the first mapping of that name
    file_offset,  ///< FILE+OFFSET: where that byte of the file is mapped
  };
  Form form = Form::address;
  VirtAddr start;
  VirtAddr end;              ///< exclusive
  std::string name;          ///< with its brackets; or the file, a path or basename
  std::uint64_t offset = 0;  ///< bytes

  friend bool operator==(const AddressExpression&, const AddressExpression&) = default;
};

/// A size in bytes: decimal or 0x…, then K, M, G or T (powers of 1024).
std::optional<std::uint64_t> parse_size(std::string_view text);

/// The error is a reason in words, without the text itself.
std::expected<AddressExpression, std::string> parse_address(std::string_view text);

/// The other reading of a number in digits alone (logs write addresses in decimal): the address
/// that it is in decimal. Empty for anything else.
std::optional<VirtAddr> decimal_reading(std::string_view text);

/// What is wrong with `asked`, an address where no mapping is, if no process of the system can have
/// one there: beyond what processes get, or not canonical. Empty: one could be there, or nobody can
/// tell (of a recorded system only what holds for every 64-bit machine is said). `text`: the word
/// that was typed for it. Ask where nothing is mapped: [vsyscall] lies beyond the rest.
struct AddressDoubt {
  std::string reason;  ///< to follow "TEXT: "
  std::string hint;  ///< or empty
};
std::optional<AddressDoubt> not_user_address(const SysRoot& root, VirtAddr asked,
                                             std::string_view text);

}  // namespace vmem::tools
