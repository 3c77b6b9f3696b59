// SPDX-License-Identifier: MIT
#include "vmem/maps.hpp"

#include <array>
#include <cstring>
#include <utility>

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

bool take_flag(const char*& p, char set, bool& value) {
  value = *p == set;
  return value || *p == '-' ? (++p, true) : false;
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
  if (end - p < 5) return false;
  if (!take_flag(p, 'r', vma.readable) || !take_flag(p, 'w', vma.writable) ||
      !take_flag(p, 'x', vma.executable)) {
    return false;
  }
  vma.shared = *p == 's';
  if (!vma.shared && *p != 'p') return false;
  ++p;
  if (!take(p, end, ' ')) return false;
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

Result<void> parse_maps(std::string_view text, FunctionRef<bool(const Vma&)> sink) {
  const std::size_t total = text.size();
  Vma vma;
  while (!text.empty()) {
    const std::size_t offset = total - text.size();
    if (!parse_maps_line(take_line(text), vma)) {
      return std::unexpected(
          Error{.code = Errc::malformed, .what = "parsing maps", .path = {}, .address = offset});
    }
    if (!sink(vma)) break;
  }
  return {};
}

struct VmaReader::State {
  LineChunks chunks;
  PageSize page_size;
  bool recorded;
  std::string_view rest;
  std::uint64_t chunk_size = 0;
  VirtAddr previous_end;
};

VmaReader::VmaReader(std::unique_ptr<State> state) : state_(std::move(state)) {}
VmaReader::VmaReader(VmaReader&&) noexcept = default;
VmaReader& VmaReader::operator=(VmaReader&&) noexcept = default;
VmaReader::~VmaReader() = default;

Result<VmaReader> VmaReader::open(const Process& process) {
  auto fd = process.open_file("maps");
  if (!fd) return std::unexpected(std::move(fd.error()));
  return VmaReader{std::make_unique<State>(LineChunks{std::move(*fd), process.path("maps")},
                                           process.root().page_size(), process.root().recorded())};
}

Result<bool> VmaReader::next(Vma& vma) {
  State& s = *state_;
  for (;;) {
    if (s.rest.empty()) {
      auto chunk = s.chunks.next();
      if (!chunk) return std::unexpected(std::move(chunk.error()));
      if (chunk->empty()) return false;
      s.rest = *chunk;
      s.chunk_size = chunk->size();
    }
    const std::uint64_t offset = s.chunks.offset() + (s.chunk_size - s.rest.size());
    const bool valid = parse_maps_line(take_line(s.rest), vma) &&
                       s.page_size.offset(vma.range.start) == 0 &&
                       s.page_size.offset(vma.range.end) == 0;
    const bool ascending = valid && vma.range.start >= s.previous_end;
    if (!valid || (!ascending && s.recorded)) {
      return std::unexpected(Error{.code = Errc::malformed,
                                   .what = "parsing maps",
                                   .path = s.chunks.path(),
                                   .address = offset});
    }
    if (!ascending) {
      // VMAs merged between two reads: the kernel goes on by address and prints the
      // merged one, whose first part was handed out already (m_start(), task_mmu.c).
      if (vma.range.end <= s.previous_end) continue;
      if (vma.inode != 0) vma.offset += s.previous_end - vma.range.start;
      vma.range.start = s.previous_end;
    }
    s.previous_end = vma.range.end;
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
