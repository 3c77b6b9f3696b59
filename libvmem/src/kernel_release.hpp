// SPDX-License-Identifier: MIT
/// What a kernel's release says of its version, for what no test from outside can tell.
#pragma once

#include <charconv>
#include <optional>
#include <string_view>

namespace vmem {

/// "6.1.0-50-amd64": 601. Empty: not a release.
inline std::optional<unsigned> kernel_number(std::string_view release) {
  unsigned major = 0, minor = 0;
  const char* const begin = release.data();
  const char* const end = begin + release.size();
  const auto first = std::from_chars(begin, end, major);
  if (first.ec != std::errc{} || first.ptr == end || *first.ptr != '.') return {};
  const auto second = std::from_chars(first.ptr + 1, end, minor);
  if (second.ec != std::errc{} || minor > 99) return {};
  return major * 100 + minor;
}

}  // namespace vmem
