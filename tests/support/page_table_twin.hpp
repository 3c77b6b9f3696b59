// SPDX-License-Identifier: MIT
/// What decode_entries() must agree with: decode(), entry by entry, and nothing merged. Without
/// Catch2, for the fuzzer too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "page_table.hpp"

namespace vmem::test {

/// What decode_entries() called, in order.
struct Decoding {
  struct Call {
    bool table = false;
    VirtAddr va;
    std::uint64_t raw = 0;  ///< of a table
    Extent run;
  };
  std::vector<Call> calls;
  bool finished = false;
};

enum class Into : std::uint8_t { builder, sink };

/// Stops after `calls` calls.
inline Decoding decode_all(const page_table::Format& format, unsigned level, VirtAddr va,
                           std::span<const std::uint64_t> entries, page_table::Limits above,
                           Into into, std::size_t calls = ~std::size_t{0}) {
  Decoding d;
  const auto run = [&](const Extent& extent) {
    d.calls.push_back({.va = extent.va, .run = extent});
    return d.calls.size() < calls;
  };
  if (into == Into::sink) {
    const auto table = [&](VirtAddr at, std::uint64_t raw) {
      d.calls.push_back({.table = true, .va = at, .raw = raw, .run = {}});
      return d.calls.size() < calls;
    };
    d.finished =
        page_table::decode_entries(format, level, va, entries, above, Backend::kmod, run, table);
  } else {
    ExtentBuilder builder{PageSize{std::uint64_t{1} << format.page_shift}, run};
    const auto table = [&](VirtAddr at, std::uint64_t raw) {
      if (!builder.flush()) return false;
      d.calls.push_back({.table = true, .va = at, .raw = raw, .run = {}});
      return d.calls.size() < calls;
    };
    d.finished = page_table::decode_entries(format, level, va, entries, above, Backend::kmod,
                                            builder, table);
    d.finished = builder.flush() && d.finished;
  }
  return d;
}

/// What is wrong with `d`; empty if nothing is. The entries' own decoding is taken for right.
inline std::string complaint(const page_table::Format& format, unsigned level, VirtAddr va,
                             std::span<const std::uint64_t> entries, page_table::Limits above,
                             const Decoding& d) {
  using page_table::Entry;
  using page_table::Kind;
  const unsigned shift = format.shift(level);
  const PageSize page{std::uint64_t{1} << format.page_shift};
  std::size_t i = 0;
  const auto at = [&](std::string_view what) {
    return std::string(what) + ", entry " + std::to_string(i);
  };
  const Decoding::Call* before = nullptr;
  for (const Decoding::Call& call : d.calls) {
    if (call.va.value != va.value + (std::uint64_t{i} << shift)) return at("not tiled");
    if (call.table) {
      if (i >= entries.size() || page_table::decode(format, level, entries[i]).kind != Kind::table)
        return at("no table");
      if (call.raw != entries[i]) return at("another table entry");
      ++i;
      before = nullptr;
      continue;
    }
    const Extent& run = call.run;
    if (run.bytes == 0 || run.bytes % (std::uint64_t{1} << shift) != 0)
      return at("not whole entries");
    if (before != nullptr && continues(before->run, run, page)) return at("two that are one");
    before = &call;
    bool all_accessed = true, some_accessed = false, all_dirty = true, some_dirty = false;
    for (std::uint64_t offset = 0; offset < run.bytes; offset += std::uint64_t{1} << shift, ++i) {
      if (i >= entries.size()) return at("past the end");
      const Entry e = page_table::decode(format, level, entries[i]);
      if (e.kind == Kind::table) return at("a table in a run");
      if (e.state != run.state || e.reason != run.reason || e.bits != run.bits ||
          run.backend != Backend::kmod)
        return at("state, reason, bits or backend");
      if (e.swap_type != run.swap_type) return at("swap type");
      const std::uint64_t pages = offset >> format.page_shift;
      if (e.kind == Kind::leaf) {
        if (e.value != (run.pfn.value + pages) << format.page_shift) return at("frame");
        if (run.leaf_shift != shift) return at("leaf");
        const std::uint16_t pte = page_table::limited(e.pte, above);
        if (((pte ^ run.pte) & ~pte_bit::usage) != 0) return at("attributes");
        if ((pte & (pte_bit::accessed_varies | pte_bit::dirty_varies)) != 0)
          return at("one entry varies");
        all_accessed &= (pte & pte_bit::accessed) != 0;
        some_accessed |= (pte & pte_bit::accessed) != 0;
        all_dirty &= (pte & pte_bit::dirty) != 0;
        some_dirty |= (pte & pte_bit::dirty) != 0;
      } else {
        if (run.leaf_shift != 0 || run.pte != 0) return at("leaf facts of no leaf");
        if (e.state == PageState::swapped && e.value != run.swap_offset + pages)
          return at("swap offset");
        if (names_frame(run) && e.value != run.pfn.value + pages) return at("frame of an entry");
        all_accessed = all_dirty = false;
      }
    }
    const unsigned usage = (all_accessed ? pte_bit::accessed : 0U) |
                           (all_dirty ? pte_bit::dirty : 0U) |
                           (some_accessed && !all_accessed ? pte_bit::accessed_varies : 0U) |
                           (some_dirty && !all_dirty ? pte_bit::dirty_varies : 0U);
    if ((run.pte & pte_bit::usage) != usage) return at("accessed or dirty");
  }
  if (d.finished && i != entries.size()) return at("ends early");
  return "";
}

/// Both ways of decode_entries(), to the end.
inline std::string complaint(const page_table::Format& format, unsigned level, VirtAddr va,
                             std::span<const std::uint64_t> entries, page_table::Limits above) {
  for (const Into into : {Into::builder, Into::sink}) {
    const Decoding d = decode_all(format, level, va, entries, above, into);
    if (!d.finished) return "did not finish";
    if (std::string why = complaint(format, level, va, entries, above, d); !why.empty()) return why;
  }
  return "";
}

/// What is wrong with the answers about one entry, whatever it is.
inline std::string complaint(const page_table::Format& format, unsigned level, std::uint64_t raw) {
  using page_table::Entry;
  using page_table::Kind;
  const Entry e = page_table::decode(format, level, raw);
  const bool mapped = e.kind == Kind::leaf || e.kind == Kind::table;
  if ((e.kind == Kind::leaf) != (e.state == PageState::resident))
    return "a leaf is resident, and nothing else is";
  if (mapped != ((e.pte & pte_bit::known) != 0)) return "attributes of what is not mapped, or none";
  if ((e.bits & ~(page_bit::soft_dirty | page_bit::uffd_wp)) != 0)
    return "bits that no entry tells";
  if ((e.pte & (pte_bit::accessed_varies | pte_bit::dirty_varies)) != 0) return "one entry varies";
  if (mapped) {
    const std::uint64_t bytes = std::uint64_t{1}
                                << (e.kind == Kind::leaf ? format.shift(level) : format.page_shift);
    if (e.value >> 52 != 0 || e.value % bytes != 0) return "no address";
    if ((e.value & format.encryption_mask) != 0) return "an encryption bit in an address";
    if (e.reason != Reason::none || e.swap_type != 0)
      return "a reason or swap type of what is mapped";
  } else if (e.state == PageState::swapped) {
    if (e.value >> 50 != 0 || e.swap_type >= 23) return "no swap slot";
  } else if (e.reason == Reason::migration_or_device) {
    if (e.value >> 40 != 0 || e.swap_type < 23 || e.swap_type > 30) return "no frame of an entry";
  } else if (e.value != 0 || e.swap_type != 0) {
    return "a number of what has none";
  }
  if ((e.kind == Kind::invalid) && e.reason != Reason::unknown_entry)
    return "invalid without a reason";
  if ((e.kind == Kind::none) != (e.kind != Kind::table && e.state == PageState::absent))
    return "absent";

  const std::string names = page_table::flag_names(format, level, raw);
  if (names.empty() || names.size() > 512) return "flags: length";
  if (names.front() == ',' || names.back() == ',' || names.find(",,") != std::string::npos)
    return "flags: empty name";
  if (names.find_first_not_of("abcdefghijklmnopqrstuvwxyzGRE0123456789-=,") != std::string::npos)
    return "flags: letters";
  return "";
}

}  // namespace vmem::test
