// SPDX-License-Identifier: MIT
#include "vmastat_pool.hpp"

#include <charconv>
#include <string>
#include <string_view>

namespace vmem::tools {
namespace {

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (read.ec != std::errc{}) return std::nullopt;
  return value;
}

}  // namespace

std::optional<HugePagePool> read_huge_page_pool(const SysRoot& root) {
  const std::string folder = "sys/kernel/mm/hugepages";
  const auto names = root.list(folder.c_str());
  if (!names) return {};
  HugePagePool pool;
  for (const std::string_view name : *names) {
    constexpr std::string_view prefix = "hugepages-";
    if (!name.starts_with(prefix)) continue;
    const std::string path = folder + "/" + std::string(name) + "/";
    const auto pages = [&](const char* file) {
      const auto text = root.read_file((path + file).c_str(), 4096);
      return text ? number(*text) : std::nullopt;
    };
    const auto kib = number(name.substr(prefix.size()));
    const auto total = pages("nr_hugepages"), unused = pages("free_hugepages"),
               promised = pages("resv_hugepages");
    if (!kib || *kib == 0 || *kib > std::uint64_t{1} << 30 || !total || !unused || !promised)
      return {};
    // More than any address space holds is no number to count with.
    if (*total > (std::uint64_t{1} << 46) / *kib || *unused > *total || *promised > *unused)
      return {};
    pool.used += (*total - *unused) * (*kib << 10);
    pool.reserved += *promised * (*kib << 10);
  }
  return pool;
}

}  // namespace vmem::tools
