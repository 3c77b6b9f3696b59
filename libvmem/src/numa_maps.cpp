// SPDX-License-Identifier: MIT
#include "numa_maps.hpp"

#include <charconv>
#include <vector>

#include "vmem/types.hpp"

namespace vmem {
namespace {

bool number(std::string_view text, std::uint64_t& value, int base = 10) {
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc{} && at == text.data() + text.size();
}

}  // namespace

std::optional<NumaMapsEntry> parse_numa_maps_line(std::string_view line) {
  NumaMapsEntry entry;
  if (!number(take_until(line, ' '), entry.start.value, 16)) return {};
  entry.policy = take_until(line, ' ');
  if (entry.policy.empty()) return {};
  // Two of the kernel's names have a space in them. A file's name has none: it is escaped.
  if (entry.policy == "weighted" || (entry.policy == "prefer" && line.starts_with("(many)")))
    entry.policy.append(" ").append(take_until(line, ' '));
  std::uint64_t page_kib = 0;
  Tally pages;
  while (!line.empty()) {
    const std::string_view word = take_until(line, ' ');
    const std::size_t equals = word.find('=');
    if (equals == std::string_view::npos) continue;
    const std::string_view key = word.substr(0, equals);
    std::uint64_t node = 0, value = 0;
    if (!number(word.substr(equals + 1), value)) continue;
    if (key == "kernelpagesize_kB")
      page_kib = value;
    else if (key.starts_with('N') && number(key.substr(1), node) && node < 65536)
      pages.add(static_cast<unsigned>(node), value);
  }
  const bool plausible = page_kib < std::uint64_t{1} << 24 && PageSize::valid(page_kib << 10);
  if (plausible || pages.empty()) {
    entry.nodes.emplace();
    for (const auto& [node, count] : pages.entries()) {
      // More pages than an address space holds are a recording's nonsense.
      if (count > (std::uint64_t{1} << 54) / page_kib) return {};
      entry.nodes->add(node, count * (page_kib << 10));
    }
  }
  return entry;
}

/// Makes the next line that is one `current_`.
bool NumaMapsReader::advance() {
  for (;;) {
    if (rest_.empty()) {
      auto chunk = chunks_->next();
      if (!chunk || chunk->empty()) {
        current_.reset();
        refused_ = !chunk;
        return false;
      }
      rest_ = *chunk;
    }
    current_ = parse_numa_maps_line(take_line(rest_));
    if (current_) return true;
  }
}

const NumaMapsEntry* NumaMapsReader::find(VirtAddr start) {
  if (refused_) return nullptr;
  if (!chunks_ || (current_ && start < current_->start)) {
    auto fd = process_.open_file("numa_maps");
    if (!fd) {
      refused_ = true;
      return nullptr;
    }
    chunks_.emplace(std::move(*fd), process_.path("numa_maps"));
    rest_ = {};
    if (!advance()) return nullptr;
  }
  while (current_ && current_->start < start) {
    if (!advance()) return nullptr;
  }
  return current_ && current_->start == start ? &*current_ : nullptr;
}

}  // namespace vmem
