// SPDX-License-Identifier: MIT
#include "recorded_extents.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <memory>
#include <utility>

#include "backends.hpp"
#include "errors.hpp"
#include "extent_builder.hpp"
#include "line_chunks.hpp"
#include "pagemap_decode.hpp"

namespace vmem {
namespace {

/// Words are separated by one space: two have an empty one between them.
std::string_view take_word(std::string_view& text) { return take_until(text, ' '); }

bool number(std::string_view text, std::uint64_t& value, int base = 0) {
  if (base == 0) {
    base = text.starts_with("0x") ? 16 : 10;
    if (base == 16) text.remove_prefix(2);
  }
  const char* const begin = text.data();
  const char* const end = begin + text.size();
  const auto parsed = std::from_chars(begin, end, value, base);
  return parsed.ec == std::errc{} && parsed.ptr == end;
}

/// Of a literal, so that it is compared in line.
template <std::size_t N>
[[gnu::always_inline]] inline bool take_prefix(std::string_view& word, const char (&prefix)[N]) {
  if (!word.starts_with(std::string_view{prefix, N - 1})) return false;
  word.remove_prefix(N - 1);
  return true;
}

template <class Bits>
struct Named {
  std::string_view name;
  Bits bit;
};
constexpr std::array page_bits{Named{"soft-dirty", page_bit::soft_dirty},
                               Named{"exclusive", page_bit::exclusive},
                               Named{"uffd-wp", page_bit::uffd_wp}, Named{"file", page_bit::file},
                               Named{"leaf-sampled", page_bit::leaf_sampled}};
constexpr std::array pte_bits{Named{"writable", pte_bit::writable},
                              Named{"user", pte_bit::user},
                              Named{"executable", pte_bit::executable},
                              Named{"global", pte_bit::global},
                              Named{"accessed", pte_bit::accessed},
                              Named{"dirty", pte_bit::dirty},
                              Named{"accessed-varies", pte_bit::accessed_varies},
                              Named{"dirty-varies", pte_bit::dirty_varies}};

/// Adds the bits of a comma separated list; false if it has another name.
template <class Bits>
bool add_bits(std::string_view list, const auto& known, Bits& bits) {
  for (bool more = true; more;) {
    const std::size_t comma = list.find(',');
    const std::string_view name = list.substr(0, comma);
    const auto* const found =
        std::ranges::find(known, name, [](const auto& named) { return named.name; });
    if (found == known.end()) return false;
    bits = static_cast<Bits>(bits | found->bit);
    more = comma != std::string_view::npos;
    if (more) list.remove_prefix(comma + 1);
  }
  return true;
}

bool add_cache(std::string_view name, std::uint16_t& pte) {
  for (auto c = static_cast<unsigned>(CacheAttribute::uc);
       c <= static_cast<unsigned>(CacheAttribute::normal_tagged); ++c) {
    const auto cache = static_cast<CacheAttribute>(c);
    if (name != to_string(cache)) continue;
    pte = static_cast<std::uint16_t>(pte | pte_bit::cache(cache));
    return true;
  }
  return false;
}

/// WHAT of a line. The last number that it counts up to must be one, too.
const char* add_state(std::string_view what, std::uint64_t pages, bool proven, Extent& run) {
  pagemap::Decoded page;
  std::uint64_t value = 0;
  if (take_prefix(what, "pfn=")) {
    if (!number(what, value) || value >= pagemap::pfn_end) return "not a frame number";
    page = {.state = PageState::resident, .value = value};
  } else if (take_prefix(what, "entry=")) {
    if (!number(what, value)) return "not a pagemap entry";
    page = pagemap::decode(value, proven);
  } else if (what == "hidden") {
    page.state = PageState::hidden;
  } else if (what == "guard") {
    page.state = PageState::guard;
  } else {
    return "not pfn=, entry=, hidden or guard";
  }
  run.state = page.state;
  run.reason = page.reason;
  run.bits = page.state == PageState::absent ? 0 : page.bits;
  run.swap_type = page.swap_type;
  const bool frame = run.state == PageState::resident || names_frame(run);
  if (frame)
    run.pfn = {page.value};
  else
    run.swap_offset = page.value;
  constexpr std::uint64_t swap_end = (pagemap::pfn_mask >> 5) + 1;
  const std::uint64_t end = frame ? pagemap::pfn_end : swap_end;
  if (step_of(run) != 0 && pages > end - page.value) return "numbers that grow too large";
  return nullptr;
}

/// A leaf maps neighbours in one address space to neighbours in the other, aligned in both.
bool leaf_fits(const Extent& run, std::uint64_t leaf, PageSize page_size) {
  if (!std::has_single_bit(leaf) || leaf < page_size.bytes()) return false;
  if (run.state == PageState::hidden) return true;
  if (run.state != PageState::resident) return false;
  const std::uint64_t within = page_size.pages(leaf) - 1;
  return ((page_size.pages(run.va.value) ^ run.pfn.value) & within) == 0;
}

/// Whether of each leaf all pages are there, one line after the other. Null: before the first line,
/// behind the last.
bool leaves_whole(const Extent* run, const Extent* next, PageSize page_size) {
  const auto cut = [](VirtAddr at, unsigned shift) {
    return (at.value & ((std::uint64_t{1} << shift) - 1)) != 0;
  };
  const bool ends = run == nullptr || !cut(run->end(), run->leaf_shift);
  const bool begins = next == nullptr || !cut(next->va, next->leaf_shift);
  if (ends && begins) return true;
  return run != nullptr && next != nullptr && run->end() == next->va && run->state == next->state &&
         run->leaf_shift == next->leaf_shift &&
         number_of(*run) + step_of(*run) * page_size.pages(run->bytes) == number_of(*next);
}

std::uint8_t bits_known_to(Backend source) {
  return source == Backend::pagemap ? 0xff : page_bit::soft_dirty | page_bit::uffd_wp;
}

/// Of the words of a line together: null, or what no source says.
const char* contradiction(const Extent& run) {
  const bool in_memory = run.state == PageState::resident || run.state == PageState::hidden;
  if (run.pte != 0 && (!in_memory || run.backend == Backend::pagemap))
    return "pte= or cache= where there is no page-table entry";
  constexpr std::uint16_t both = pte_bit::accessed | pte_bit::dirty;
  if (((run.pte & both) * 4 & run.pte) != 0) return "a bit that varies and is set";
  if (run.bits != 0 && run.state == PageState::absent) return "bits of no page";
  if ((run.bits & ~bits_known_to(run.backend)) != 0) return "a bit that this source does not tell";
  return nullptr;
}

class RecordedExtents final : public Translator {
 public:
  RecordedExtents(PageSize page_size, Backend source, std::vector<Extent> extents)
      : page_size_(page_size), source_(source), extents_(std::move(extents)) {}

  Backend backend() const override { return source_; }
  std::uint8_t known_bits() const override { return bits_known_to(source_); }
  bool sees_pfnmap() const override { return source_ != Backend::pagemap; }

  Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) override {
    ExtentBuilder out{page_size_, sink};
    auto next = std::ranges::upper_bound(extents_, range.start, {}, &Extent::end);
    VirtAddr at = range.start;
    for (; next != extents_.end() && next->va < range.end; ++next) {
      if (options.stopped()) return {};
      Extent run = *next;
      if (run.va < at) cut_front(run, at - run.va, page_size_);
      if (run.bytes > range.end - run.va) run.bytes = range.end - run.va;
      if (at < run.va && !out.add(nothing(at, run.va))) return {};
      if (!out.add(run)) return {};
      at = run.end();
    }
    if (at < range.end && !out.add(nothing(at, range.end))) return {};
    out.flush();
    return {};
  }

  Result<PageWalk> page_walk(VirtAddr page) override {
    return std::unexpected(
        Error{.code = Errc::not_supported,
              .what = "walking page tables",
              .path = {},
              .address = page.value,
              .hint = "a recording holds what page tables map, not the tables themselves"});
  }

 private:
  Extent nothing(VirtAddr start, VirtAddr end) const {
    return {.va = start, .bytes = end - start, .backend = source_};
  }

  PageSize page_size_;
  Backend source_;
  std::vector<Extent> extents_;
};

constexpr const char* part_of_leaf = "a part of a leaf";

}  // namespace

const char* ExtentsParser::line(std::string_view text) {
  if (ended_) return "a line behind the end";
  if (!begun_) return header(text);
  if (text == "end") {
    if (!extents_.empty() && !leaves_whole(&extents_.back(), nullptr, page_size_))
      return part_of_leaf;
    ended_ = true;
    return nullptr;
  }
  return run(text);
}

const char* ExtentsParser::finish() const { return ended_ ? nullptr : "no line `end`"; }

const char* ExtentsParser::header(std::string_view text) {
  if (!take_prefix(text, "vmem-extents ")) return "it does not begin with vmem-extents";
  if (!take_prefix(text, "1 ")) return "an unknown version";
  for (const Backend source : {Backend::pagemap, Backend::bpf, Backend::kmod}) {
    if (text != to_string(source)) continue;
    source_ = source;
    begun_ = true;
    return nullptr;
  }
  return "an unknown source";
}

const char* ExtentsParser::run(std::string_view text) {
  Extent run{.backend = source_};
  const bool more_words = text.ends_with(' ');
  std::uint64_t pages = 0;
  if (!number(take_word(text), run.va.value, 16) || page_size_.offset(run.va) != 0)
    return "not the address of a page";
  if (!number(take_word(text), pages) || pages == 0 || pages > page_size_.pages(~run.va.value))
    return "not a number of pages";
  run.bytes = pages * page_size_.bytes();
  if (!extents_.empty() && run.va < extents_.back().end()) return "lines that do not ascend";
  if (const char* const wrong = add_state(take_word(text), pages, proven_, run)) return wrong;
  std::uint64_t leaf = 0;
  while (!text.empty()) {
    std::string_view word = take_word(text);
    if (take_prefix(word, "bits=")) {
      if (!add_bits(word, page_bits, run.bits)) return "an unknown bit";
    } else if (take_prefix(word, "leaf=")) {
      if (run.leaf_shift != 0 || !number(word, leaf) || !leaf_fits(run, leaf, page_size_))
        return "not a leaf of these";
      run.leaf_shift = static_cast<std::uint8_t>(std::countr_zero(leaf));
    } else if (take_prefix(word, "pte=")) {
      if (!add_bits(word, pte_bits, run.pte)) return "an unknown bit";
      run.pte |= pte_bit::known;
    } else if (take_prefix(word, "cache=")) {
      if (pte_bit::cache(run.pte) != CacheAttribute::unknown || !add_cache(word, run.pte))
        return "not a cache attribute";
      run.pte |= pte_bit::known;
    } else {
      return "an unknown word";
    }
  }
  if (more_words) return "an unknown word";
  if (const char* const wrong = contradiction(run)) return wrong;
  if (!leaves_whole(extents_.empty() ? nullptr : &extents_.back(), &run, page_size_))
    return part_of_leaf;
  extents_.push_back(run);
  return nullptr;
}

Result<std::unique_ptr<Translator>> open_recorded_extents(const Process& process) {
  auto fd = process.open_file("extents");
  if (!fd) return std::unexpected(std::move(fd.error()));
  struct stat file{};
  const bool sized = fstat(fd->get(), &file) == 0 && S_ISREG(file.st_mode);
  const PageSize page_size = process.root().page_size();
  ExtentsParser parser{page_size, process.root().pfn_access() == PfnAccess::full};
  // Lines as long as those of page tables are. A sparse file may claim any size.
  constexpr std::size_t most = std::size_t{1} << 20;
  if (sized) parser.reserve(std::min(static_cast<std::size_t>(file.st_size) / 64, most));
  LineChunks chunks{std::move(*fd), process.path("extents")};
  const auto malformed = [&](const char* why, std::uint64_t offset) {
    return std::unexpected(Error{.code = Errc::malformed,
                                 .what = "parsing recorded extents",
                                 .path = chunks.path(),
                                 .address = offset,
                                 .hint = why});
  };
  for (;;) {
    const auto chunk = chunks.next();
    if (!chunk) return std::unexpected(chunk.error());
    if (chunk->empty()) break;
    std::string_view rest = *chunk;
    while (!rest.empty()) {
      const std::uint64_t offset = chunks.offset() + (chunk->size() - rest.size());
      if (const char* const wrong = parser.line(take_line(rest))) return malformed(wrong, offset);
    }
  }
  if (const char* const wrong = parser.finish()) return malformed(wrong, 0);
  return std::make_unique<RecordedExtents>(page_size, parser.source(), std::move(parser.extents()));
}

}  // namespace vmem
