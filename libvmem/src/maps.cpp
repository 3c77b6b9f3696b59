// SPDX-License-Identifier: MIT
#include "vmem/maps.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "hex_text.hpp"
#include "line_chunks.hpp"
#include "vma_query.hpp"

namespace vmem {
namespace {

/// The value of a hex digit as the kernel prints it (lower case), 16 for any other byte.
constexpr auto hex_values = [] {
  std::array<std::uint8_t, 256> table{};
  table.fill(16);
  for (unsigned i = 0; i < 16; ++i) {
    table[static_cast<unsigned char>("0123456789abcdef"[i])] = static_cast<std::uint8_t>(i);
  }
  return table;
}();

/// Reads 1 to 16 hex digits off the front.
bool take_hex(const char*& p, const char* end, std::uint64_t& value) {
  std::uint64_t v = 0;
  const char* const start = p;
  for (; p != end; ++p) {
    const std::uint8_t digit = hex_values[static_cast<unsigned char>(*p)];
    if (digit == 16) break;
    v = v << 4 | digit;
  }
  value = v;
  return p != start && p - start <= 16;
}

bool take(const char*& p, const char* end, char wanted) {
  if (p == end || *p != wanted) return false;
  ++p;
  return true;
}

/// The four letters of the permissions at `p`.
inline bool take_permissions(const char* p, Vma& vma) {
  // How they differ from "---p": not at all, or as much as the other letter does, which one bit of
  // each tells.
  constexpr auto unset = text_word<std::uint32_t>("---p");
  constexpr auto set = text_word<std::uint32_t>("rwxs") ^ unset;
  constexpr std::uint32_t r = 0x40, w = r << 8, x = w << 8, s = 1 << 24;
  static_assert((set & (r | w | x | s)) == (r | w | x | s));
  const std::uint32_t differs = load_text<std::uint32_t>(p) ^ unset;
  vma.readable = (differs & r) != 0;
  vma.writable = (differs & w) != 0;
  vma.executable = (differs & x) != 0;
  vma.shared = (differs & s) != 0;
  const std::uint32_t whole =
      (differs & (r | w | x)) / r * 0xff | (differs & s) * std::uint32_t{0xff};
  return differs == (whole & set);
}

/// "OFFSET MAJOR:MINOR INODE", before a space or the end.
bool take_file(const char*& p, const char* end, Vma& vma) {
  std::uint64_t major = 0;
  std::uint64_t minor = 0;
  if (!take_hex(p, end, vma.offset) || !take(p, end, ' ')) return false;
  if (!take_hex(p, end, major) || !take(p, end, ':')) return false;
  if (!take_hex(p, end, minor) || !take(p, end, ' ')) return false;
  if (major > UINT32_MAX || minor > UINT32_MAX) return false;
  vma.dev_major = static_cast<std::uint32_t>(major);
  vma.dev_minor = static_cast<std::uint32_t>(minor);
  std::uint64_t inode = 0;
  const char* const digits = p;
  while (p != end && static_cast<unsigned>(*p - '0') < 10) {
    const auto digit = static_cast<unsigned>(*p++ - '0');
    if (inode > (UINT64_MAX - digit) / 10) return false;
    inode = inode * 10 + digit;
  }
  if (p == digits || (p != end && *p != ' ')) return false;
  vma.inode = inode;
  return true;
}

/// Undoes seq_path()'s escape of the newline, the only character it escapes in maps.
void assign_unescaped(std::string& out, std::string_view raw) {
  out.assign(raw);
  std::size_t at = out.find("\\012");
  while (at != std::string::npos) {
    out.replace(at, 4, 1, '\n');
    at = out.find("\\012", at + 1);
  }
}

/// What follows the permissions.
bool take_rest(const char* p, const char* end, Vma& vma) {
  // Most mappings have no file. The rest of their lines is always the same.
  constexpr std::string_view no_file = "00000000 00:00 0 ";
  if (static_cast<std::size_t>(end - p) >= no_file.size() &&
      std::memcmp(p, no_file.data(), no_file.size()) == 0) {
    p += no_file.size();
    vma.offset = vma.inode = vma.dev_major = vma.dev_minor = 0;
  } else if (!take_file(p, end, vma)) {
    return false;
  }
  // Names start with '/', '[' or a word, never with a space: all spaces here are padding.
  while (p != end && *p == ' ') ++p;
  const std::string_view raw(p, static_cast<std::size_t>(end - p));
  if (memchr(raw.data(), '\\', raw.size()) == nullptr)
    vma.path.assign(raw);
  else
    assign_unescaped(vma.path, raw);
  return vma.range.start < vma.range.end;
}

/// Reads line after line.
class LineParser {
 public:
  /// Parses the first line of `text` as parse_maps_line() does, but sooner: addresses mostly have
  /// as many digits as in the line before, so what follows them is looked for where it stood there
  /// before they are read. Returns the line's length with its newline; 0 if it is not sound.
  [[gnu::always_inline]] std::size_t take(std::string_view text, Vma& vma) {
    const char* const p = text.data();
    // " rwxp 00000000 00:00 0 \n" is what follows the second address of a mapping without a name.
    constexpr std::size_t rest = 24;
    const std::size_t head = 2 * digits_ + 1;
    if (text.size() >= head + rest) {
      const char* const tail = p + head;
      std::uint64_t bad = 0;
      vma.range.start.value = hex_number(p, digits_, bad);
      vma.range.end.value = hex_number(p + digits_ + 1, digits_, bad);
      bad |= static_cast<unsigned char>(p[digits_] ^ '-') | static_cast<unsigned char>(*tail ^ ' ');
      bad |= take_permissions(tail + 1, vma) ? 0 : 1;
      bad |= vma.range.start < vma.range.end ? 0 : 1;
      const std::uint64_t named =
          (load_text<std::uint64_t>(tail + 5) ^ text_word<std::uint64_t>(" 0000000")) |
          (load_text<std::uint64_t>(tail + 13) ^ text_word<std::uint64_t>("0 00:00 ")) |
          (load_text<std::uint64_t>(tail + 16) ^ text_word<std::uint64_t>("0:00 0 \n"));
      if ((bad | named) == 0) {
        vma.offset = vma.inode = vma.dev_major = vma.dev_minor = 0;
        if (!vma.path.empty()) vma.path.clear();
        return head + rest;
      }
      if (bad == 0 && tail[5] == ' ') {
        const std::string_view line = take_line(text);
        return take_rest(tail + 6, p + line.size(), vma) ? static_cast<std::size_t>(text.data() - p)
                                                         : 0;
      }
    }
    return take_any(text, vma);
  }

 private:
  [[gnu::noinline]] std::size_t take_any(std::string_view text, Vma& vma) {
    const std::size_t size = text.size();
    const std::string_view line = take_line(text);
    const std::size_t dash = line.find('-');
    if (dash >= 8 && dash <= 16) digits_ = static_cast<unsigned>(dash);
    return parse_maps_line(line, vma) ? size - text.size() : 0;
  }

  unsigned digits_ = 12;  ///< 8 to 16
};

Result<std::optional<Vma>> find_in_text(const Process& process, VirtAddr address) {
  auto reader = VmaReader::open(process);
  if (!reader) return std::unexpected(std::move(reader.error()));
  Vma vma;
  for (;;) {
    auto more = reader->next(vma);
    if (!more) return std::unexpected(std::move(more.error()));
    if (!*more || vma.range.start > address) return std::nullopt;
    if (vma.range.contains(address)) return vma;
  }
}

}  // namespace

std::string permissions(const Vma& vma) {
  return {vma.readable ? 'r' : '-', vma.writable ? 'w' : '-', vma.executable ? 'x' : '-',
          vma.shared ? 's' : 'p'};
}

bool parse_maps_line(std::string_view line, Vma& vma) {
  const char* p = line.data();
  const char* const end = p + line.size();
  if (!take_hex(p, end, vma.range.start.value) || !take(p, end, '-')) return false;
  if (!take_hex(p, end, vma.range.end.value) || !take(p, end, ' ')) return false;
  if (end - p < 5 || !take_permissions(p, vma) || p[4] != ' ') return false;
  return take_rest(p + 5, end, vma);
}

Result<void> parse_maps(std::string_view text, FunctionRef<bool(const Vma&)> sink) {
  const std::string_view whole = text;
  LineParser parser;
  Vma vma;
  while (!text.empty()) {
    const std::size_t line = parser.take(text, vma);
    if (line == 0) {
      const std::string_view before = whole.substr(0, whole.size() - text.size());
      return std::unexpected(
          Error{.code = Errc::malformed,
                .what = "parsing maps",
                .path = {},
                .line = static_cast<std::uint64_t>(std::ranges::count(before, '\n')) + 1});
    }
    text.remove_prefix(line);
    if (!sink(vma)) break;
  }
  return {};
}

struct VmaReader::State {
  LineChunks chunks;
  PageSize page_size;
  bool recorded;
  std::shared_ptr<Process::OddLines> odd_lines;
  unsigned odd_count = 0;
  LineParser parser;
  std::string_view rest;
  std::uint64_t chunk_size = 0;
  VirtAddr previous_end;

  /// What nearly every line is: there, sound and in order. False, and nothing taken, if it is not.
  [[gnu::always_inline]] bool take_next(Vma& vma) {
    const std::size_t line = rest.empty() ? 0 : parser.take(rest, vma);
    if (line == 0 || !aligned(vma) || vma.range.start < previous_end) return false;
    rest.remove_prefix(line);
    previous_end = vma.range.end;
    return true;
  }
  bool aligned(const Vma& vma) const {
    return page_size.offset(vma.range.start) == 0 && page_size.offset(vma.range.end) == 0;
  }

  /// What is wrong with the line by itself; null: nothing, and it is in `vma`.
  const char* oddness(std::string_view line, Vma& vma) const {
    if (!parse_maps_line(line, vma)) {
      const char* p = line.data();
      const char* const end = p + line.size();
      VaRange range;
      const bool ranged = take_hex(p, end, range.start.value) && take(p, end, '-') &&
                          take_hex(p, end, range.end.value) && take(p, end, ' ');
      const bool empty = ranged && range.start == range.end;
      vma.range = ranged && range.start <= range.end ? range : VaRange{};
      return empty ? "an empty mapping" : "not a line of maps";
    }
    return aligned(vma) ? nullptr : "a mapping that is not aligned to pages";
  }

  Result<bool> next(Vma& vma);
};

VmaReader::VmaReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
VmaReader::VmaReader(VmaReader&&) noexcept = default;
VmaReader& VmaReader::operator=(VmaReader&&) noexcept = default;
VmaReader::~VmaReader() = default;

Result<VmaReader> VmaReader::open(const Process& process) {
  auto fd = process.open_file("maps");
  if (!fd) return std::unexpected(std::move(fd.error()));
  return VmaReader{std::make_unique<State>(LineChunks{std::move(*fd), process.path("maps")},
                                           process.root().page_size(), process.root().recorded(),
                                           process.odd_lines_)};
}

Result<bool> VmaReader::next(Vma& vma) {
  if (state_->take_next(vma)) return true;
  return state_->next(vma);
}

[[gnu::noinline]] Result<bool> VmaReader::State::next(Vma& vma) {
  for (;;) {
    if (rest.empty()) {
      auto chunk = chunks.next();
      if (!chunk) return std::unexpected(std::move(chunk.error()));
      if (chunk->empty()) return false;
      rest = *chunk;
      chunk_size = chunk->size();
    }
    const std::size_t left = rest.size();
    const char* const odd = oddness(take_line(rest), vma);
    const bool ascending = odd == nullptr && vma.range.start >= previous_end;
    if (odd != nullptr || (!ascending && recorded)) {
      const std::uint64_t line = chunks.line_at(chunks.offset() + (chunk_size - left));
      constexpr unsigned most_odd = 4096;  // with more it is no maps at all
      if (odd != nullptr && odd_lines && ++odd_count <= most_odd) {
        odd_lines->add({.what = odd, .path = chunks.path(), .line = line, .range = vma.range});
        continue;
      }
      return std::unexpected(Error{
          .code = Errc::malformed,
          .what = "parsing maps",
          .path = chunks.path(),
          .line = line,
          .reason = odd != nullptr ? odd : "it overlaps the line before, or is out of order"});
    }
    if (!ascending) {
      // VMAs merged between two reads: the kernel goes on by address and prints the
      // merged one, whose first part was handed out already (m_start(), task_mmu.c).
      if (vma.range.end <= previous_end) continue;
      if (vma.inode != 0) vma.offset += previous_end - vma.range.start;
      vma.range.start = previous_end;
    }
    previous_end = vma.range.end;
    return true;
  }
}

bool VmaReader::buffered() const { return !state_->rest.empty(); }

Result<std::vector<Vma>> read_vmas(const Process& process) {
  auto reader = VmaReader::open(process);
  if (!reader) return std::unexpected(std::move(reader.error()));
  std::vector<Vma> vmas;
  Vma vma;
  for (;;) {
    auto more = reader->next(vma);
    if (!more) return std::unexpected(std::move(more.error()));
    if (!*more) break;
    vmas.push_back(vma);
  }
  if (auto alive = process.check_alive(); !alive) return std::unexpected(std::move(alive.error()));
  return vmas;
}

Result<std::optional<Vma>> find_vma(const Process& process, VirtAddr address,
                                    std::optional<PageSize>* kernel_page_size) {
  Vma vma;
  std::optional<PageSize> size;
  const VmaQuery answer = query_vma(process, address, vma, size);
  if (kernel_page_size != nullptr) *kernel_page_size = size;
  // The gate page ([vsyscall], in the upper half) stands in the text alone. A failed
  // query is left to the text too: it says what is wrong if it fails as well.
  constexpr std::uint64_t upper_half = std::uint64_t{1} << 63;
  if (answer == VmaQuery::found) return vma;
  if (answer == VmaQuery::none && address.value < upper_half) return std::nullopt;
  return find_in_text(process, address);
}

}  // namespace vmem
