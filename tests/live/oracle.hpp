// SPDX-License-Identifier: MIT
/// What plain readers say of a process, and how the library's answers compare. Nothing here
/// calls the library but to learn its answer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/subprocess.hpp"
#include "vmem/pages.hpp"

namespace vmem::test {

inline constexpr std::uint64_t base_page = 4096;

/// Some pages of equal state, from plain-pagemap.
struct PlainRun {
  std::uint64_t va = 0, pages = 0;
  std::string state;
  std::uint64_t value = 0;
  unsigned type = 0, bits = 0;
  std::uint64_t end() const { return va + pages * base_page; }
  bool counts_up() const { return state == "resident" || state == "swapped"; }
  /// The number of the page at `at`, which lies in it.
  std::uint64_t value_at(std::uint64_t at) const {
    return value + (counts_up() ? (at - va) / base_page : 0);
  }
  /// Both tell the same of the page at `at`.
  bool agrees_at(std::uint64_t at, const PlainRun& other) const {
    return state == other.state && value_at(at) == other.value_at(at) && bits == other.bits;
  }
};

struct PlainVma {
  std::uint64_t start = 0, end = 0;
  std::string rest;  ///< the line of maps after the addresses
  std::vector<PlainRun> runs;
};

inline std::string plain_pagemap_path() {
  return program_path("PLAIN_PAGEMAP", VMEM_PLAIN_PAGEMAP_PATH);
}

inline std::vector<PlainVma> plain_read(pid_t pid, const RunOptions& options = {}) {
  const RunResult result = run({plain_pagemap_path(), std::to_string(pid)}, options);
  if (result.status != 0 || !result.out.ends_with("end\n")) {
    throw std::runtime_error("plain-pagemap: " + result.err);
  }
  std::vector<PlainVma> vmas;
  std::istringstream lines(result.out);
  std::string line, word;
  while (std::getline(lines, line)) {
    std::istringstream in(line);
    in >> word;
    if (word == "vma") {
      PlainVma vma;
      in >> std::hex >> vma.start >> vma.end;
      std::getline(in >> std::ws, vma.rest);
      vmas.push_back(vma);
    } else if (word == "run") {
      PlainRun r;
      in >> std::hex >> r.va >> std::dec >> r.pages >> r.state >> std::hex >> r.value >> std::dec >>
          r.type >> r.bits;
      if (!in) throw std::runtime_error("plain-pagemap said: " + line);
      vmas.back().runs.push_back(r);
    }
  }
  return vmas;
}

/// One entry of smaps, by plain means.
struct PlainSmaps {
  std::uint64_t start = 0, end = 0;
  std::map<std::string, std::uint64_t> kilobytes;
  std::string flags;  ///< " rd wr "
  bool has(const std::string& code) const {
    return flags.find(" " + code + " ") != std::string::npos;
  }
};

inline std::vector<PlainSmaps> plain_smaps(pid_t pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/smaps");
  std::vector<PlainSmaps> all;
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t colon = line.find(':');
    if (line.find('-') < line.find(' ') && std::isxdigit(static_cast<unsigned char>(line[0]))) {
      PlainSmaps entry;
      char dash = 0;
      std::istringstream(line) >> std::hex >> entry.start >> dash >> entry.end;
      all.push_back(entry);
    } else if (line.starts_with("VmFlags:")) {
      all.back().flags = line.substr(colon + 1) + " ";
    } else if (line.ends_with(" kB")) {
      std::istringstream(line.substr(colon + 1)) >> all.back().kilobytes[line.substr(0, colon)];
    }
  }
  return all;
}

/// All VMAs, look by look. They must come in ascending order.
inline std::vector<FlaggedVma> all_flags(Translator& source) {
  std::vector<FlaggedVma> all;
  for (VirtAddr from{};;) {
    const auto some = source.vm_flags(from);
    if (!some) throw std::runtime_error(to_string(some.error()));
    if (some->empty()) return all;
    for (const FlaggedVma& vma : *some) {
      if (vma.range.end <= from) throw std::runtime_error("VMAs are not in order");
      from = vma.range.end;
      all.push_back(vma);
    }
  }
}

struct FlagTally {
  std::size_t named = 0, unnamed = 0;
  std::vector<std::string> faults;
};
/// VmFlags of all VMAs as the source tells them, against smaps. [vsyscall] is in no process's list.
inline FlagTally check_flags(Translator& source, pid_t pid) {
  FlagTally tally;
  const std::vector<FlaggedVma> told = all_flags(source);
  auto smaps = plain_smaps(pid);
  std::erase_if(smaps, [](const PlainSmaps& s) { return s.start >> 63 != 0; });
  if (told.size() != smaps.size())
    tally.faults.push_back(std::to_string(told.size()) + " VMAs, smaps has " +
                           std::to_string(smaps.size()));
  for (std::size_t i = 0; i < std::min(told.size(), smaps.size()); ++i) {
    const FlaggedVma& vma = told[i];
    const std::string codes =
        vma.flags ? " " + std::string(vma.flags->text()) + "  " : smaps[i].flags;
    ++(vma.flags ? tally.named : tally.unnamed);
    if (vma.range != VaRange{{smaps[i].start}, {smaps[i].end}} || codes != smaps[i].flags) {
      std::ostringstream fault;
      fault << std::hex << vma.range.start.value << ":" << codes << "; smaps " << smaps[i].start
            << ":" << smaps[i].flags;
      tally.faults.push_back(fault.str());
    }
  }
  return tally;
}

/// The library's name for what the plain reader saw, where smaps shows the VMA's flags.
inline std::string expected_state(const PlainRun& plain, const PlainSmaps& smaps) {
  return plain.state == "eof" || smaps.has("pf") ? "unseen" : plain.state;
}

inline std::string hex(std::uint64_t value) {
  std::ostringstream out;
  out << std::hex << value;
  return out.str();
}

inline std::string describe(const Extent& e) {
  return std::string(to_string(e.state)) + " " + hex(e.va.value) + "+" + std::to_string(e.bytes) +
         " pfn " + hex(e.pfn.value) + " bits " + std::to_string(e.bits) + " leaf " +
         std::to_string(e.leaf_shift);
}

/// Whether the library's extent says of the page at `va` what the plain run says. `known`: the
/// page_bits that the library's source tells.
inline bool agrees(const PlainRun& plain, const PlainSmaps& smaps, const Extent& extent,
                   std::uint64_t va, unsigned known = 15) {
  const std::string state = expected_state(plain, smaps);
  if (to_string(extent.state) != state) return false;
  const std::uint64_t plain_value = plain.value + (va - plain.va) / base_page;
  const std::uint64_t extent_page = (va - extent.va.value) / base_page;
  if (state == "resident" && extent.pfn.value + extent_page != plain_value) return false;
  if (state == "swapped" &&
      (extent.swap_offset + extent_page != plain_value || extent.swap_type != plain.type)) {
    return false;
  }
  if (state == "unseen") return extent.reason != Reason::none;
  // `exclusive` is the leaf's first page's where one entry was read for all of it.
  unsigned compared = known;
  // pagemap's bit 55 is set in all of a new VMA; of what is not there the library tells no bits.
  if (state == "absent") return extent.bits == 0;
  if ((extent.bits & page_bit::leaf_sampled) != 0) compared &= ~2U;
  return ((extent.bits ^ plain.bits) & compared) == 0;
}

/// A VMA and the extents that the library gave for it.
struct Answer {
  Vma vma;
  Classification classification;
  std::vector<Extent> extents;
};

inline Process process_of(pid_t pid) {
  auto root = SysRoot::live();
  REQUIRE(root);
  auto process = root->process(pid);
  REQUIRE(process);
  return std::move(*process);
}

inline const Answer& answer_at(const std::vector<Answer>& answers, std::uint64_t va) {
  for (const Answer& a : answers) {
    if (a.vma.range.contains({va})) return a;
  }
  throw std::runtime_error("no VMA at " + hex(va));
}

inline const Extent& extent_at(const std::vector<Answer>& answers, std::uint64_t va) {
  for (const Extent& e : answer_at(answers, va).extents) {
    if (e.va.value <= va && va < e.end().value) return e;
  }
  throw std::runtime_error("no extent at " + hex(va));
}

/// All of a process from one source, through translate_all(), without classifications.
inline std::vector<Answer> library_read(const Process& process, Translator& translator,
                                        const WalkOptions& options) {
  VmaInspector inspector(process);
  std::vector<Answer> answers;
  const auto result = translate_all(
      process, translator, inspector, options, [&](const Vma* vma, const Extent& extent) {
        if (vma == nullptr) throw std::runtime_error("translate_all reported a gap");
        if (answers.empty() || answers.back().vma.range != vma->range) {
          answers.push_back({*vma, {}, {}});
        }
        answers.back().extents.push_back(extent);
        return true;
      });
  if (!result) throw std::runtime_error(to_string(result.error()));
  return answers;
}

/// The same from pagemap, with classifications.
inline std::vector<Answer> library_read(const Process& process, const WalkOptions& options = {}) {
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  auto answers = library_read(process, **translator, options);
  VmaInspector second(process);
  for (Answer& answer : answers) answer.classification = second.classify(answer.vma);
  return answers;
}

/// Whether two extents of one VMA should have been one.
inline bool mergeable(const Extent& a, const Extent& b) {
  if (a.state != b.state || a.reason != b.reason || a.leaf_shift != b.leaf_shift ||
      a.bits != b.bits || ((a.pte ^ b.pte) & ~pte_bit::usage) != 0) {
    return false;
  }
  const std::uint64_t pages = a.bytes / base_page;
  if (a.state == PageState::resident) return a.pfn.value + pages == b.pfn.value;
  if (names_frame(a)) return a.swap_type == b.swap_type && a.pfn.value + pages == b.pfn.value;
  if (a.state == PageState::swapped) {
    return a.swap_type == b.swap_type && a.swap_offset + pages == b.swap_offset;
  }
  return true;
}

/// Faults of tiling: gaps, overlaps, and neighbours that should be one.
inline void check_tiling(const Answer& answer, std::vector<std::string>& faults) {
  std::uint64_t at = answer.vma.range.start.value;
  const Extent* before = nullptr;
  for (const Extent& e : answer.extents) {
    if (e.va.value != at) faults.push_back("gap or overlap at " + hex(at) + ": " + describe(e));
    if (e.bytes == 0 || e.bytes % base_page != 0) faults.push_back("size of " + describe(e));
    if (before != nullptr && mergeable(*before, e)) {
      faults.push_back("not merged: " + describe(*before) + " and " + describe(e));
    }
    at = e.end().value;
    before = &e;
  }
  if (at != answer.vma.range.end.value) faults.push_back("ends at " + hex(at));
}

/// Whether processes that are none of ours map the same file, those of other tests among them: as
/// they start and end, the shares change at any time, also to what they were before, and so does
/// whether a page is mapped once.
inline bool mapped_by_others(const Vma& vma) {
  static const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  return vma.path == self || vma.path.ends_with("/memory-kinds") ||
         vma.path.find(".so") != std::string::npos;
}

struct Comparison {
  std::vector<std::string> faults;
  std::uint64_t pages = 0, resident = 0, moved = 0;
};

inline const PlainRun* run_at(const PlainVma& vma, std::uint64_t va) {
  const auto after = std::upper_bound(vma.runs.begin(), vma.runs.end(), va,
                                      [](std::uint64_t v, const PlainRun& r) { return v < r.va; });
  if (after == vma.runs.begin()) return nullptr;
  return va < std::prev(after)->end() ? &*std::prev(after) : nullptr;
}

/// Every page of the library's answers against the plain reader's. `later`: a second plain
/// reading, made after the library's. A page that these two tell differently has moved while
/// it was looked at (reclaim, migration), and proves nothing.
inline Comparison compare(const std::vector<PlainVma>& plain, const std::vector<PlainVma>& later,
                          const std::vector<PlainSmaps>& smaps,
                          const std::vector<Answer>& answers) {
  Comparison c;
  if (plain.size() != answers.size() || later.size() != plain.size() ||
      smaps.size() != plain.size()) {
    c.faults.push_back("VMAs: plain " + std::to_string(plain.size()) + ", library " +
                       std::to_string(answers.size()));
    return c;
  }
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const Answer& answer = answers[i];
    if (answer.vma.range.start.value != plain[i].start ||
        answer.vma.range.end.value != plain[i].end || smaps[i].start != plain[i].start) {
      c.faults.push_back("VMA " + hex(plain[i].start) + " is not the library's");
      continue;
    }
    check_tiling(answer, c.faults);
    const unsigned known = 15U - (mapped_by_others(answer.vma) ? page_bit::exclusive : 0U);
    for (const Extent& extent : answer.extents) {
      for (std::uint64_t va = extent.va.value; va < extent.end().value;) {
        const PlainRun* const first = run_at(plain[i], va);
        const PlainRun* const second = run_at(later[i], va);
        if (first == nullptr || second == nullptr) {
          c.faults.push_back("the plain reader has no page " + hex(va));
          break;
        }
        // To the next border of either; both are linear up to there.
        const std::uint64_t end = std::min({extent.end().value, first->end(), second->end()});
        const std::uint64_t pages = (end - va) / base_page;
        c.pages += pages;
        c.resident += first->state == "resident" ? pages : 0;
        if (!agrees(*first, smaps[i], extent, va, known)) {
          if (!first->agrees_at(va, *second)) {
            c.moved += pages;
          } else {
            c.faults.push_back("page " + hex(va) + " of " + plain[i].rest + ": plain " +
                               first->state + " " + hex(first->value_at(va)) + " bits " +
                               std::to_string(first->bits) + "; library " + describe(extent));
          }
        }
        va = end;
      }
    }
  }
  return c;
}

inline std::string first_faults(const Comparison& c) {
  std::string text = std::to_string(c.faults.size()) + " faults";
  for (std::size_t i = 0; i < std::min<std::size_t>(c.faults.size(), 12); ++i) {
    text += "\n" + c.faults[i];
  }
  return text;
}

/// Whether this process is shown page frame numbers: plain-pagemap's word on a page of ours.
inline bool shown_pfns() {
  static const bool shown = [] {
    static char page[2 * base_page] = {1};
    page[base_page] = 1;
    const auto va = reinterpret_cast<std::uint64_t>(&page[base_page]) / base_page * base_page;
    const RunResult result =
        run({plain_pagemap_path(), std::to_string(getpid()), hex(va) + "-" + hex(va + base_page)});
    return result.out.find(" resident ") != std::string::npos;
  }();
  return shown;
}

}  // namespace vmem::test
