// SPDX-License-Identifier: MIT
/// vmastat's sums of a stopped process against the kernel's smaps.
#pragma once

#include "live/oracle.hpp"
#include "vmem/stats.hpp"

namespace vmem::test {

struct StatsAnswer {
  Vma vma;
  Classification classification;
  MemorySums sums;
};

inline std::vector<StatsAnswer> read_stats(const Process& process, StatsOptions options = {},
                                           std::optional<Backend> backend = {}) {
  auto translator = backend ? open_translator(process, *backend) : open_translator(process);
  REQUIRE(translator);
  VmaInspector inspector(process);
  StatsReader reader = StatsReader::open(process.root(), options);
  std::vector<StatsAnswer> answers;
  const auto read = reader.read(process, **translator, inspector, [&](const VmaStats& stats) {
    answers.push_back({stats.vma, stats.classification, stats.sums});
    return true;
  });
  if (!read) throw std::runtime_error(to_string(read.error()));
  return answers;
}

/// Whether every share that can be compared is the kernel's.
inline bool shares_agree(const std::vector<StatsAnswer>& answers, const auto& smaps) {
  for (std::size_t i = 0; i < answers.size() && i < smaps.size(); ++i) {
    const auto& kb = smaps[i].kilobytes;
    if (!kb.empty() && !mapped_by_others(answers[i].vma) &&
        (answers[i].sums.pss() / 1024 != kb.at("Pss") ||
         answers[i].sums.uss != (kb.at("Private_Clean") + kb.at("Private_Dirty")) * 1024))
      return false;
  }
  return true;
}

/// Checks every VMA; returns how many were compared. Where the kernel says two things before and
/// after, it reclaimed meanwhile.
inline unsigned check_stats(pid_t pid, const StatsOptions& options = {},
                            std::optional<Backend> backend = {}) {
  auto before = plain_smaps(pid);
  auto answers = read_stats(process_of(pid), options, backend);
  auto after = plain_smaps(pid);
  for (int again = 0; again < 5 && options.sharing && !shares_agree(answers, before); ++again) {
    before = plain_smaps(pid);
    answers = read_stats(process_of(pid), options, backend);
    after = plain_smaps(pid);
  }
  REQUIRE(before.size() == answers.size());
  REQUIRE(after.size() == answers.size());
  unsigned compared = 0, shares = 0;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    const auto& kb = before[i].kilobytes;
    const MemorySums& s = answers[i].sums;
    INFO(answers[i].vma.path << " " << hex(before[i].start) << " "
                             << to_string(answers[i].classification.kind));
    CHECK(answers[i].vma.range.start.value == before[i].start);
    CHECK(answers[i].vma.range.end.value == before[i].end);
    if (kb.empty()) continue;  // [vsyscall]
    const bool others = mapped_by_others(answers[i].vma);
    if (kb != after[i].kilobytes && (!others || kb.at("Rss") != after[i].kilobytes.at("Rss")))
      continue;
    ++compared;
    REQUIRE(s.known(unknown_sum::rss | unknown_sum::swap | unknown_sum::hugetlb));
    CHECK(s.rss == kb.at("Rss") * 1024);
    CHECK(s.swap == kb.at("Swap") * 1024);
    CHECK(s.hugetlb == (kb.at("Shared_Hugetlb") + kb.at("Private_Hugetlb")) * 1024);
    CHECK(s.size == kb.at("Size") * 1024);
    if (!options.sharing) continue;
    CHECK(s.hugetlb_private == kb.at("Private_Hugetlb") * 1024);
    REQUIRE(s.known(unknown_sum::pss | unknown_sum::uss));
    if (!others) {
      CHECK(s.uss == (kb.at("Private_Clean") + kb.at("Private_Dirty")) * 1024);
      CHECK(s.pss() / 1024 == kb.at("Pss"));
      ++shares;
    }
    std::uint64_t leaf = 0;
    for (const auto& [shift, bytes] : s.leaf.entries()) leaf += bytes;
    CHECK(leaf == s.mapped());
  }
  CHECK((shares > 5 || !options.sharing));
  return compared;
}

}  // namespace vmem::test
