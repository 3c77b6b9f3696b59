// SPDX-License-Identifier: MIT
/// What is made of checks once the mappings have been swept: results that grow, frames that two
/// mappings cache in conflicting ways, and the names of it all.
#include <algorithm>
#include <array>
#include <utility>

#include "hex_text.hpp"
#include "vmem/window.hpp"

namespace vmem {
namespace {

/// Cached runs conflict where these differ.
enum class CacheGroup : std::uint8_t { unknown, uncached, combining, through, protect, back };
constexpr std::size_t cache_groups = static_cast<std::size_t>(CacheGroup::back) + 1;

CacheGroup group_of(CacheAttribute cache) {
  switch (cache) {
    case CacheAttribute::unknown:
      return CacheGroup::unknown;
    case CacheAttribute::uc:
    case CacheAttribute::uc_minus:
    case CacheAttribute::device_ngnrne:
    case CacheAttribute::device_ngnre:
      return CacheGroup::uncached;
    case CacheAttribute::wc:
    case CacheAttribute::normal_nc:
      return CacheGroup::combining;
    case CacheAttribute::wt:
      return CacheGroup::through;
    case CacheAttribute::wp:
      return CacheGroup::protect;
    case CacheAttribute::wb:
    case CacheAttribute::normal:
    case CacheAttribute::normal_tagged:
      return CacheGroup::back;
  }
  return CacheGroup::unknown;
}

}  // namespace

void CheckResult::add(Finding finding) {
  const bool failed = verdict == Verdict::fail;
  if (is_failure(finding.kind))
    verdict = Verdict::fail;
  else if (verdict == Verdict::pass)
    verdict = Verdict::unverified;
  if (findings.size() < most_findings) {
    findings.push_back(std::move(finding));
    return;
  }
  ++more_findings;
  // The one that decides is kept: none of these does.
  if (is_failure(finding.kind) && !failed) findings.back() = std::move(finding);
}

void find_overlaps(std::span<const ResultOf> results) {
  struct Entry {
    const CachedRun* run;
    std::size_t owner;
    CacheGroup group;
  };
  std::vector<Entry> entries;
  for (std::size_t i = 0; i < results.size(); ++i) {
    for (const CachedRun& run : results[i].result->cached)
      entries.push_back({&run, i, group_of(run.cache)});
  }
  std::ranges::sort(entries, {}, [](const Entry& e) { return e.run->range.start; });

  // What each group covers, as disjoint pieces, each of some entry that is the example.
  struct Piece {
    PaRange range;
    const Entry* entry;
  };
  std::array<std::vector<Piece>, cache_groups> covered;
  for (const Entry& entry : entries) {
    std::vector<Piece>& pieces = covered[static_cast<std::size_t>(entry.group)];
    PaRange range = entry.run->range;
    if (!pieces.empty()) range.start = std::max(range.start, pieces.back().range.end);
    if (range.start < range.end) pieces.push_back({range, &entry});
  }
  for (const Entry& entry : entries) {
    CheckResult& result = *results[entry.owner].result;
    const PaRange mine = entry.run->range;
    for (std::size_t group = 0; group < cache_groups; ++group) {
      if (group == static_cast<std::size_t>(entry.group)) continue;
      const std::vector<Piece>& pieces = covered[group];
      auto piece = std::ranges::upper_bound(pieces, mine.start, {},
                                            [](const Piece& p) { return p.range.end; });
      for (; piece != pieces.end() && piece->range.start < mine.end; ++piece) {
        const PhysAddr start = std::max(mine.start, piece->range.start);
        const CachedRun& theirs = *piece->entry->run;
        result.add({.kind = FindingKind::overlap,
                    .va = entry.run->va + (start - mine.start),
                    .bytes = std::min(mine.end, piece->range.end) - start,
                    .expected = {},
                    .actual = start,
                    .detail = std::string(to_string(entry.run->cache)) + ", but " +
                              std::string(to_string(theirs.cache)) + " in process " +
                              std::to_string(results[piece->entry->owner].pid) + " at " +
                              hex_text((theirs.va + (start - theirs.range.start)).value)});
      }
    }
  }
}

std::string_view to_string(FindingKind kind) {
  switch (kind) {
    case FindingKind::outside_window:
      return "outside-window";
    case FindingKind::wrong_address:
      return "wrong-address";
    case FindingKind::hole:
      return "hole";
    case FindingKind::wrong_perms:
      return "wrong-perms";
    case FindingKind::wrong_cache:
      return "wrong-cache";
    case FindingKind::wrong_leaf:
      return "wrong-leaf";
    case FindingKind::wrong_node:
      return "wrong-node";
    case FindingKind::wrong_flags:
      return "wrong-flags";
    case FindingKind::not_device:
      return "not-device";
    case FindingKind::overlap:
      return "overlap";
    case FindingKind::unseen:
      return "unseen";
    case FindingKind::changed:
      return "changed";
  }
  return "unseen";
}

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::pass:
      return "pass";
    case Verdict::fail:
      return "fail";
    case Verdict::unverified:
      return "unverified";
  }
  return "unverified";
}

}  // namespace vmem
