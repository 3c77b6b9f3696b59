// SPDX-License-Identifier: MIT
#include "support/naive_twin.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <sstream>
#include <stdexcept>
#include <utility>

namespace vmem::test {
namespace {

bool bit(std::uint64_t entry, unsigned number) { return (entry / (1ULL << number)) % 2 == 1; }

std::string at(std::uint64_t va, const std::string& what) {
  std::ostringstream text;
  text << std::hex << va << ": " << what;
  return text.str();
}

std::string text_of(const TwinPage& page) {
  std::ostringstream text;
  text << to_string(page.state) << " number=" << page.number << " type=" << unsigned{page.swap_type}
       << " bits=" << unsigned{page.bits} << " reason=" << static_cast<unsigned>(page.reason);
  return text.str();
}

bool counts(const Extent& e) {
  return e.state == PageState::resident || names_frame(e) ||
         (e.state == PageState::swapped && e.reason == Reason::none);
}

std::uint64_t number_of(const Extent& e) {
  return e.state == PageState::resident || names_frame(e) ? e.pfn.value : e.swap_offset;
}

/// Whether two neighbours should have been one: the rule in pages.hpp.
bool should_be_one(const Extent& a, const Extent& b, std::uint64_t page_size) {
  return a.va.value + a.bytes == b.va.value && a.state == b.state && a.reason == b.reason &&
         a.leaf_shift == b.leaf_shift && a.bits == b.bits &&
         ((a.state != PageState::swapped && !names_frame(a)) || a.swap_type == b.swap_type) &&
         (!counts(a) || number_of(a) + a.bytes / page_size == number_of(b));
}

}  // namespace

TwinPage twin_decode(std::uint64_t entry, bool proven) {
  TwinPage page;
  const std::uint64_t field = entry % (1ULL << 55);
  const std::uint64_t type = field % 32;
  const std::uint64_t offset = field / 32;
  if (bit(entry, 63) && field >= 1ULL << 48) {
    page.state = PageState::special;
    page.reason = Reason::unknown_entry;
  } else if (bit(entry, 63)) {
    page.state = field == 0 && !proven ? PageState::hidden : PageState::resident;
    page.number = field;
  } else if (bit(entry, 58)) {
    page.state = PageState::guard;
  } else if (bit(entry, 62) && field == 0 && !proven) {
    page.state = PageState::swapped;
    page.reason = Reason::swap_fields_hidden;
  } else if (bit(entry, 62) && type == 31 && offset == 4) {
    page.state = PageState::guard;
  } else if (bit(entry, 62) && type == 31) {
    page.state = PageState::special;
    page.reason = offset == 1   ? Reason::uffd_wp_marker
                  : offset == 2 ? Reason::poison_marker
                                : Reason::other_marker;
  } else if (bit(entry, 62) && type >= 23) {
    page.state = PageState::special;
    page.reason = offset >> 48 == 0 ? Reason::migration_or_device : Reason::unknown_entry;
    if (offset >> 48 == 0) page.number = offset;
    if (offset >> 48 == 0) page.swap_type = static_cast<std::uint8_t>(type);
  } else if (bit(entry, 62)) {
    page.state = PageState::swapped;
    page.number = offset;
    page.swap_type = static_cast<std::uint8_t>(type);
  }
  if (page.state == PageState::absent) return page;
  if (bit(entry, 55)) page.bits |= page_bit::soft_dirty;
  if (bit(entry, 56)) page.bits |= page_bit::exclusive;
  if (bit(entry, 57)) page.bits |= page_bit::uffd_wp;
  if (bit(entry, 61)) page.bits |= page_bit::file;
  return page;
}

NaiveTwin::NaiveTwin(const std::filesystem::path& tree, TwinProcess process)
    : process_(std::move(process)) {
  const std::string path = tree / "proc" / std::to_string(process_.pid) / "pagemap";
  fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd_ < 0) throw std::runtime_error("opening " + path);
}

NaiveTwin::~NaiveTwin() { ::close(fd_); }

std::optional<std::uint64_t> NaiveTwin::entry_of(std::uint64_t index) {
  if (index < buffer_first_ || index >= buffer_first_ + buffer_.size()) {
    buffer_.resize(1024);
    buffer_first_ = index / 512 * 512;
    const ssize_t n =
        pread(fd_, buffer_.data(), buffer_.size() * 8, static_cast<off_t>(buffer_first_ * 8));
    buffer_.resize(n < 0 ? 0 : static_cast<std::size_t>(n) / 8);
    if (index >= buffer_first_ + buffer_.size()) return {};
  }
  return buffer_[index - buffer_first_];
}

std::uint64_t NaiveTwin::entry(std::uint64_t va) {
  const auto found = entry_of(va / process_.page_size);
  if (!found) throw std::runtime_error("the twin read beyond pagemap");
  return *found;
}

const TwinVma* NaiveTwin::vma_at(std::uint64_t va) const {
  for (const TwinVma& vma : process_.vmas) {
    if (vma.start <= va && va < vma.end) return &vma;
  }
  return nullptr;
}

const TwinVma* NaiveTwin::vma_after(std::uint64_t va) const {
  for (const TwinVma& vma : process_.vmas) {
    if (vma.start >= va) return &vma;
  }
  return nullptr;
}

bool NaiveTwin::shows_nothing(std::uint64_t from, std::uint64_t to) {
  for (std::uint64_t va = from; va < to; va += process_.page_size) {
    if (twin_decode(entry(va), process_.proven).state != PageState::absent) return false;
  }
  return true;
}

/// Whether the page could lie in a PMD leaf: all of the leaf present, frames consecutive
/// and as far into the leaf as the addresses, flags equal (but for bit 56).
bool NaiveTwin::may_be_huge_leaf(std::uint64_t va) {
  const std::uint64_t pages = process_.page_size / 8;
  const std::uint64_t base = va / process_.page_size / pages * pages;
  const std::uint64_t mine = entry(va);
  const std::uint64_t frame0 = mine % (1ULL << 55) - (va / process_.page_size - base);
  const bool hidden = !process_.proven && mine % (1ULL << 55) == 0;
  for (std::uint64_t i = 0; i < pages; ++i) {
    const auto found = entry_of(base + i);
    if (!found) return false;
    const std::uint64_t flags = (*found >> 55) & ~2ULL;
    if (!bit(*found, 63) || flags != ((mine >> 55) & ~2ULL)) return false;
    const std::uint64_t frame = *found % (1ULL << 55);
    if (hidden ? frame != 0 : frame != frame0 + i || frame0 % pages != 0) return false;
  }
  return true;
}

std::string NaiveTwin::compare(const Extent& extent, std::uint64_t va, const TwinPage& page) {
  const std::uint64_t index = (va - extent.va.value) / process_.page_size;
  const auto wrong = [&](const char* what) {
    return at(va, std::string(what) + ": got " + describe(extent, PageSize{process_.page_size}) +
                      ", the twin sees " + text_of(page));
  };
  if (extent.state != page.state) return wrong("state");
  // What the frame tells of the entry is not the twin's matter.
  const bool refined = page.reason == Reason::migration_or_device &&
                       (names_frame(extent) || extent.reason == Reason::uffd_wp_marker ||
                        extent.reason == Reason::other_marker);
  if (extent.reason != page.reason && !refined) return wrong("reason");
  if (extent.bits != page.bits) return wrong("bits");
  if (counts(extent) && number_of(extent) + index != page.number) return wrong("number");
  if (extent.state == PageState::swapped && extent.swap_type != page.swap_type)
    return wrong("swap type");
  if (extent.backend != Backend::pagemap || extent.pte != 0) return wrong("backend");
  const bool has_leaf = extent.state == PageState::resident || extent.state == PageState::hidden;
  if (extent.leaf_shift != 0) {
    if (!has_leaf) return wrong("a leaf without a page");
    if (extent.leaf_shift != std::countr_zero(process_.page_size)) return wrong("leaf size");
    // A sample is enough: the check reads a whole leaf.
    if ((va == extent.va.value || va + process_.page_size == extent.end().value) &&
        may_be_huge_leaf(va))
      return wrong("leaf size unproven");
  }
  return {};
}

TwinPage NaiveTwin::in_vma(const TwinVma& vma, std::uint64_t va, bool vma_part_empty) {
  TwinPage page;
  if (vma.sight == TwinVma::Sight::gate) {
    page.state = PageState::unseen;
    page.reason = Reason::gate_vma;
    return page;
  }
  page = twin_decode(entry(va), process_.proven);
  if (page.state == PageState::absent && vma_part_empty && vma.sight != TwinVma::Sight::ordinary) {
    page.state = PageState::unseen;
    page.reason = vma.sight == TwinVma::Sight::pfnmap ? Reason::pfnmap : Reason::maybe_pfnmap;
  }
  return page;
}

std::string NaiveTwin::check_pages(const Extent& extent, const TwinVma* vma, bool vma_part_empty) {
  if (extent.bytes == 0 || extent.bytes % process_.page_size != 0)
    return at(extent.va.value, "not whole pages");
  for (std::uint64_t va = extent.va.value; va < extent.end().value; va += process_.page_size) {
    const TwinPage page =
        vma == nullptr ? twin_decode(entry(va), process_.proven) : in_vma(*vma, va, vma_part_empty);
    if (std::string wrong = compare(extent, va, page); !wrong.empty()) return wrong;
  }
  return {};
}

std::string NaiveTwin::check_walk(VaRange range, const std::vector<Extent>& extents) {
  std::uint64_t cursor = range.start.value;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const Extent& extent = extents[i];
    if (extent.va.value != cursor)
      return at(cursor, "not tiled: next is " + describe(extent, PageSize{process_.page_size}));
    if (std::string wrong = check_pages(extent, nullptr, false); !wrong.empty()) return wrong;
    if (i > 0 && should_be_one(extents[i - 1], extent, process_.page_size))
      return at(cursor, "not maximal");
    cursor += extent.bytes;
  }
  return cursor == range.end.value ? std::string{} : at(cursor, "ends too early or too late");
}

std::string NaiveTwin::check_translate(VaRange range, const std::vector<VmaExtent>& extents,
                                       bool gaps) {
  const std::uint64_t p = process_.page_size;
  const std::uint64_t first = range.start.value / p * p;
  // 0 stands for 2^64: the last page of all belongs to a range that reaches into it.
  const std::uint64_t last = (range.end.value + p - 1) / p * p;
  const auto up_to_last = [last](std::uint64_t end) {
    return last == 0 ? end : std::min(last, end);
  };
  std::uint64_t cursor = first;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    const auto& [vma_start, extent] = extents[i];
    const PageSize page_size{p};
    const TwinVma* vma = vma_at(cursor);
    if (vma == nullptr && !gaps) {
      vma = vma_after(cursor);
      if (vma == nullptr) return at(cursor, "more than the last VMA");
      cursor = vma->start;
    }
    if (extent.va.value != cursor)
      return at(cursor, "not tiled: next is " + describe(extent, page_size));
    if (vma == nullptr) {
      const TwinVma* const next = vma_after(cursor);
      const std::uint64_t end = next == nullptr ? last : up_to_last(next->start);
      if (vma_start != 0 || extent.state != PageState::unmapped || extent.end().value != end ||
          extent.reason != Reason::none) {
        return at(cursor, "a gap, but got " + describe(extent, page_size));
      }
    } else {
      if (vma_start != vma->start) return at(cursor, "delivered with another VMA");
      if (extent.end().value > up_to_last(vma->end))
        return at(cursor, "crosses a border: " + describe(extent, page_size));
      const std::uint64_t part_start = std::max(first, vma->start);
      const std::uint64_t part_end = up_to_last(vma->end);
      const bool blind =
          vma->sight == TwinVma::Sight::pfnmap || vma->sight == TwinVma::Sight::maybe_blind;
      if (std::string wrong =
              check_pages(extent, vma, blind && shows_nothing(part_start, part_end));
          !wrong.empty())
        return wrong;
      if (i > 0 && extents[i - 1].vma_start == vma_start &&
          should_be_one(extents[i - 1].extent, extent, p))
        return at(cursor, "not maximal");
    }
    cursor = extent.end().value;
  }
  if (!gaps)
    return vma_at(cursor) == nullptr && vma_after(cursor) == nullptr ? std::string{}
                                                                     : at(cursor, "ends too early");
  return cursor == last ? std::string{} : at(cursor, "ends too early or too late");
}

std::string NaiveTwin::check_one(VirtAddr address, const Translation& translation) {
  const std::uint64_t page = address.value / process_.page_size * process_.page_size;
  const Extent& extent = translation.extent;
  if (extent.va.value != page || extent.bytes != process_.page_size)
    return at(page, "not one page");
  const TwinVma* const vma = vma_at(page);
  if (vma == nullptr) {
    const bool right =
        !translation.vma && extent.state == PageState::unmapped && extent.reason == Reason::none;
    return right ? std::string{} : at(page, "not unmapped");
  }
  if (!translation.vma || translation.vma->range != VaRange{{vma->start}, {vma->end}})
    return at(page, "another VMA");
  // One absent page of a VMA that may be blind proves nothing, whatever its others show.
  return check_pages(extent, vma,
                     vma->sight != TwinVma::Sight::gate &&
                         twin_decode(entry(page), process_.proven).state == PageState::absent);
}

}  // namespace vmem::test
