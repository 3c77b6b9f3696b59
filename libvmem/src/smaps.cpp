// SPDX-License-Identifier: MIT
#include <algorithm>
#include <charconv>
#include <utility>

#include "line_chunks.hpp"
#include "vmem/maps.hpp"

namespace vmem {

bool VmFlags::has(std::string_view code) const {
  for (std::string_view rest = codes_; rest.size() >= code.size();) {
    const std::size_t space = rest.find(' ');
    if (rest.substr(0, space) == code) return true;
    if (space == std::string_view::npos) break;
    rest.remove_prefix(space + 1);
  }
  return false;
}

struct SmapsReader::State {
  const Process* process;
  std::optional<LineChunks> chunks;
  std::string_view rest;
  std::uint64_t chunk_size = 0;
  std::optional<Error> odd;  ///< the first line that is none of smaps
  std::optional<SmapsEntry> current;  ///< complete
  std::optional<SmapsEntry> next;     ///< its header has been read, its fields not yet
  bool at_end = false;
  VirtAddr previous_end;  ///< of the entry before `current`: between the two there is none
  unsigned private_parts = 0;  ///< of `next`: of Private_Clean and Private_Dirty
  bool flags_line = false;  ///< of `next`: the last line of an entry was there
  Vma line;

  Result<void> restart() {
    auto fd = process->open_file("smaps");
    if (!fd) return std::unexpected(std::move(fd.error()));
    chunks.emplace(std::move(*fd), process->path("smaps"));
    rest = {};
    current.reset();
    next.reset();
    at_end = false;
    previous_end = {};
    return {};
  }

  /// Makes the following entry `current`, or empties it at the end.
  Result<void> advance() {
    if (current) previous_end = current->range.end;
    current.reset();
    while (!at_end) {
      if (rest.empty()) {
        auto chunk = chunks->next();
        if (!chunk) return std::unexpected(std::move(chunk.error()));
        rest = *chunk;
        chunk_size = rest.size();
        if (rest.empty()) {
          at_end = true;
          break;
        }
      }
      const std::uint64_t at = chunks->offset() + (chunk_size - rest.size());
      const std::string_view text = take_line(rest);
      // Headers begin with a lower-case hex digit, fields with a capital letter.
      if (!text.empty() && text[0] >= 'A' && text[0] <= 'Z') {
        if (next && !read_field(text)) {
          note_odd(at);
          next.reset();
        }
        continue;
      }
      std::optional<SmapsEntry> started;
      if (parse_maps_line(text, line)) {
        started.emplace().range = line.range;
      } else {
        note_odd(at);
        // Whose the fields are that follow is not known. VmFlags are the last: with them the
        // entry before is whole.
        if (next && !next->flags) next.reset();
      }
      complete(std::move(started));
      if (current) return {};
    }
    complete(std::nullopt);
    return {};
  }

  /// `next` becomes `current`. Sums of which a part has not been seen are none: the file ends
  /// there, or a line is missing.
  void complete(std::optional<SmapsEntry> started) {
    if (next && private_parts != 2) next->uss.reset();
    current = std::exchange(next, std::move(started));
    private_parts = 0;
    flags_line = false;
  }

  void note_odd(std::uint64_t at) {
    if (odd) return;
    odd = Error{.code = Errc::malformed,
                .what = "parsing smaps",
                .path = chunks->path(),
                .line = chunks->line_at(at),
                .reason = "neither a mapping nor a field"};
  }

  /// False: the entry is not what the kernel wrote. A part of a sum is lost, or the next entry's
  /// header, whose fields then follow here.
  bool read_field(std::string_view text) {
    const std::size_t colon = text.find(':');
    if (colon == std::string_view::npos) return false;
    const std::string_view key = text.substr(0, colon);
    if (key.find(' ') != std::string_view::npos || flags_line) return false;
    text.remove_prefix(colon + 1);
    while (text.starts_with(' ')) text.remove_prefix(1);
    while (text.ends_with(' ')) text.remove_suffix(1);
    if (key == "VmFlags") {
      flags_line = true;
      for (std::string_view words = text; !words.empty();) {
        const std::size_t space = std::min(words.find(' '), words.size());
        if (space != 2) return false;
        words.remove_prefix(std::min(space + 1, words.size()));
      }
      // No VMA is without flags: an empty line (qemu-user prints one) tells nothing.
      if (!text.empty()) next->flags.emplace(text);
      return true;
    }
    std::uint64_t kib = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), kib);
    if (error != std::errc{} || kib > (std::uint64_t{1} << 53))
      return !key.starts_with("Private_") && key != "AnonHugePages" && !key.ends_with("PmdMapped");
    const std::uint64_t bytes = kib * 1024;
    constexpr std::pair<std::string_view, std::optional<std::uint64_t> SmapsEntry::*> sums[] = {
        {"Rss", &SmapsEntry::rss},           {"Pss", &SmapsEntry::pss},
        {"Swap", &SmapsEntry::swap},         {"Pss_Dirty", &SmapsEntry::pss_dirty},
        {"LazyFree", &SmapsEntry::lazyfree}, {"Referenced", &SmapsEntry::referenced},
        {"SwapPss", &SmapsEntry::swap_pss},  {"Locked", &SmapsEntry::locked}};
    if (key == "KernelPageSize") {
      if (PageSize::valid(bytes)) next->kernel_page_size = PageSize{bytes};
    } else if (key == "Private_Clean" || key == "Private_Dirty") {
      next->uss = next->uss.value_or(0) + bytes;
      ++private_parts;
    } else if (key == "AnonHugePages" || key == "ShmemPmdMapped" || key == "FilePmdMapped") {
      next->pmd_mapped = next->pmd_mapped.value_or(0) + bytes;
    } else if (key == "THPeligible") {
      next->thp_eligible = kib != 0;
    } else {
      for (const auto& [name, field] : sums) {
        if (key != name) continue;
        if (next.value().*field) return false;
        next.value().*field = bytes;
      }
    }
    return true;
  }
};

SmapsReader::SmapsReader(const Process& process) : state_(std::make_unique<State>()) {
  state_->process = &process;
}
SmapsReader::SmapsReader(SmapsReader&&) noexcept = default;
SmapsReader& SmapsReader::operator=(SmapsReader&&) noexcept = default;
SmapsReader::~SmapsReader() = default;

const Error* SmapsReader::odd_line() const { return state_->odd ? &*state_->odd : nullptr; }

Result<std::optional<SmapsEntry>> SmapsReader::find(VirtAddr address, std::size_t most) {
  State& s = *state_;
  // A recording stays as it is: what is in none of its entries is not looked for again.
  if (s.chunks && s.process->root().recorded() && address >= s.previous_end &&
      (s.current ? address < s.current->range.start : s.at_end))
    return std::nullopt;
  if (!s.chunks || !s.current || address < s.current->range.start) {
    if (auto restarted = s.restart(); !restarted) {
      return std::unexpected(std::move(restarted.error()));
    }
    if (auto first = s.advance(); !first) return std::unexpected(std::move(first.error()));
  }
  for (; s.current && s.current->range.end <= address; --most) {
    if (most == 0) return std::nullopt;
    if (auto next = s.advance(); !next) return std::unexpected(std::move(next.error()));
  }
  if (s.current && s.current->range.contains(address)) return s.current;
  return std::nullopt;
}

}  // namespace vmem
