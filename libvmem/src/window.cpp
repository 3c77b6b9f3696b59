// SPDX-License-Identifier: MIT
/// Judging mappings: the sweep over their extents, in step with what a check expects.
#include "vmem/window.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "extent_builder.hpp"

namespace vmem {
namespace {

/// Reads of a mapping that does not fit, the first included.
constexpr int reads = 3;
/// Going on through what nobody asked about costs less than reading maps once more, for so
/// many bytes of it for each VMA that maps lists before it.
constexpr std::uint64_t bridged_per_vma = 64 << 10;

/// Whether an address lies in one of some ranges, and how far on the answer is the same.
struct Membership {
  bool inside;
  PhysAddr run_end;
};

Membership membership(std::span<const PaRange> ranges, PhysAddr at) {
  const auto after = std::ranges::upper_bound(ranges, at, {}, &PaRange::start);
  if (after != ranges.begin() && std::prev(after)->contains(at))
    return {true, std::prev(after)->end};
  return {false, after == ranges.end() ? PhysAddr{UINT64_MAX} : after->start};
}

std::string size_text(unsigned shift) {
  constexpr std::string_view units = " KMGTPE";
  return std::to_string(std::uint64_t{1} << (shift % 10)) + units[shift / 10];
}

constexpr unsigned first_of_arm = static_cast<unsigned>(CacheAttribute::device_ngnrne);

/// The word of a rule that `attribute` belongs to; on x86 it is the attribute's own name.
std::string_view rule_word(CacheAttribute attribute) {
  if (static_cast<unsigned>(attribute) < first_of_arm) return to_string(attribute);
  for (const std::string_view word : {"uc", "wc", "wb"}) {
    if ((*cache_set(word) >> static_cast<unsigned>(attribute) & 1) != 0) return word;
  }
  return to_string(attribute);
}

/// "normal-nc (wc)": an attribute and the word that a rule has for it, where that is another one.
std::string cache_text(CacheAttribute attribute) {
  std::string text(to_string(attribute));
  const std::string_view word = rule_word(attribute);
  if (word != text) text.append(" (").append(word).append(")");
  return text;
}

/// What is allowed, on the architecture of `instead`: "uc (device-nGnRnE or device-nGnRE)".
std::string cache_text(CacheSet set, CacheAttribute instead) {
  const bool arm = static_cast<unsigned>(instead) >= first_of_arm;
  constexpr unsigned bits = sizeof(CacheSet) * 8;
  constexpr auto of_x86 = static_cast<CacheSet>((1U << first_of_arm) - 1);
  const auto here = static_cast<CacheSet>(arm ? ~of_x86 : of_x86);
  std::string text;
  const auto append = [](std::string& list, std::string_view word) {
    if (!list.empty()) list += " or ";
    list += word;
  };
  const auto names = [&](CacheSet of) {
    std::string list;
    for (unsigned i = 0; i < bits; ++i)
      if ((of >> i & 1) != 0) append(list, to_string(static_cast<CacheAttribute>(i)));
    return list;
  };
  auto left = set;
  if (arm) {
    for (const std::string_view word : {"uc", "wc", "wb"}) {
      const auto group = static_cast<CacheSet>(*cache_set(word) & here);
      if ((left & group) != group) continue;
      append(text, std::string(word) + " (" + names(group) + ")");
      left = static_cast<CacheSet>(left & ~*cache_set(word));
    }
  }
  if ((left & here) != 0) append(text, names(static_cast<CacheSet>(left & here)));
  if (text.empty()) text = names(set) + " (this architecture has no such attribute)";
  return text;
}

/// What judging takes besides the pages: looked up once, when a page first asks.
class Facts {
 public:
  Facts(WindowSources& sources, PageSize page_size) : sources_(sources), page_size_(page_size) {}

  PageSize page_size() const { return page_size_; }

  /// System RAM; null where /proc/iomem does not tell.
  const std::vector<PaRange>* ram() {
    if (!ram_) ram_ = sources_.ram();
    return *ram_ ? &(*ram_)->ranges : nullptr;
  }
  const Result<NumaMap>& nodes() { return sources_.nodes(); }

 private:
  WindowSources& sources_;
  PageSize page_size_;
  std::optional<Result<Window>> ram_;
};

/// Findings as they come, by kind: neighbours that go on are one.
class Findings {
 public:
  explicit Findings(std::uint64_t page) : page_(page) {}

  void add(Finding finding) {
    std::vector<Finding>& same = by_kind_[static_cast<std::size_t>(finding.kind)];
    if (!same.empty() && goes_on(same.back(), finding)) {
      same.back().bytes += finding.bytes;
      return;
    }
    if (falls(same, finding)) {
      if (!same.back().descends) {
        same.pop_back();
        --count_;
        same.back().bytes += page_;
        same.back().descends = true;
      }
      same.back().bytes += page_;
      return;
    }
    if (count_ == most_findings) {
      ++more_;
      if (!is_failure(finding.kind) || !drop_unjudged()) return;
    }
    ++count_;
    same.push_back(std::move(finding));
  }

  void take(CheckResult& result) {
    for (std::vector<Finding>& same : by_kind_) {
      std::ranges::move(same, std::back_inserter(result.findings));
      same.clear();
    }
    // Not a stable sort: libstdc++'s of GCC 12 makes clang warn.
    std::ranges::sort(result.findings, {},
                      [](const Finding& f) { return std::pair(f.va, f.kind); });
    result.more_findings = more_;
  }

 private:
  bool follows(const Finding& run, const Finding& next) const {
    if (run.va + run.bytes != next.va || run.detail != next.detail ||
        run.expected.has_value() != next.expected.has_value() ||
        run.actual.has_value() != next.actual.has_value()) {
      return false;
    }
    return !run.expected || *run.expected + run.bytes == *next.expected;
  }
  bool goes_on(const Finding& run, const Finding& next) const {
    // An attribute is wrong wherever the frames lie.
    if (run.kind == FindingKind::wrong_cache || run.kind == FindingKind::wrong_leaf ||
        run.kind == FindingKind::wrong_node || run.kind == FindingKind::unseen) {
      return run.va + run.bytes == next.va && run.detail == next.detail;
    }
    return !run.descends && follows(run, next) &&
           (!run.actual || *run.actual + run.bytes == *next.actual);
  }
  bool one_below(const Finding& run, const Finding& next) const {
    return run.actual && next.actual && next.bytes == page_ && follows(run, next) &&
           run.actual->value - next.actual->value == run.bytes;
  }
  /// A failure decides, so one that does not fail makes room for it.
  bool drop_unjudged() {
    for (const FindingKind kind : {FindingKind::unseen, FindingKind::changed}) {
      std::vector<Finding>& same = by_kind_[static_cast<std::size_t>(kind)];
      if (same.empty()) continue;
      same.pop_back();
      --count_;
      return true;
    }
    return false;
  }
  /// Frames that fall page by page: three in a row, since two are a swap.
  bool falls(const std::vector<Finding>& same, const Finding& next) const {
    if (same.empty() || !one_below(same.back(), next)) return false;
    if (same.back().descends) return true;
    return same.size() > 1 && same.back().bytes == page_ && same.end()[-2].bytes == page_ &&
           one_below(same.end()[-2], same.back());
  }

  std::uint64_t page_;
  std::array<std::vector<Finding>, static_cast<std::size_t>(FindingKind::changed) + 1> by_kind_;
  std::size_t count_ = 0;
  std::uint64_t more_ = 0;
};

/// One mapping against one check. Extents come in order.
class Judge {
 public:
  Judge(const Check& check, const Vma& vma, VmaInspector& inspector, Facts& facts)
      : check_(check),
        vma_(vma),
        facts_(facts),
        page_size_(facts.page_size()),
        findings_(page_size_.bytes()),
        cursor_(vma.range.start) {
    if (in_order()) {
      const auto offset =
          check.offset ? check.offset : window_offset(check.window, vma, inspector.classify(vma));
      if (offset) {
        offset_ = *offset;
        if (offset_ != UINT64_MAX && page_size_.offset({offset_}) != 0)
          cannot_ = "the offset into the window is not one of whole pages";
      } else {
        cannot_ =
            "the file offset of a driver's private mapping does not tell where in the window "
            "it begins: the check must say (offset)";
      }
    }
    mapping_itself(inspector);
  }

  static bool takes_tables(const Check& check) {
    return check.cache != 0 || check.leaf.has_value();
  }
  /// Why page tables could not be read, for what only they tell.
  void blind(std::string why) { why_blind_ = std::move(why); }

  const Vma& vma() const { return vma_; }

  void take(const Extent& extent) {
    skip_to(extent.va);
    cursor_ = extent.end();
    result_.backend = extent.backend;
    if (!cannot_.empty()) return;
    switch (extent.state) {
      case PageState::resident:
        resident(extent);
        break;
      case PageState::absent:
        hole(extent, "");
        break;
      case PageState::swapped:
      case PageState::guard:
        hole(extent, std::string(to_string(extent.state)));
        break;
      case PageState::special:
        special(extent);
        break;
      case PageState::hidden:
        not_seen(FindingKind::unseen, extent, "PFNs are hidden from this user");
        break;
      case PageState::unseen:
        not_seen(FindingKind::unseen, extent,
                 why_blind_.empty() ? std::string(to_string(extent.reason))
                                    : std::string(to_string(extent.reason)) + "; " + why_blind_);
        break;
      case PageState::unmapped:
      case PageState::changed:
        not_seen(FindingKind::changed, extent, moved);
        break;
    }
  }

  /// The mapping was another one, or none, when this part of it was read.
  void gone(VaRange part) {
    skip_to(part.start);
    cursor_ = part.end;
    findings_.add(
        {.kind = FindingKind::changed, .va = part.start, .bytes = part.bytes(), .detail = moved});
  }

  /// `error`: what ended the walk, if anything did.
  CheckResult finish(const Error* error) {
    if (cursor_ < vma_.range.end) {
      const bool ended = error == nullptr || error->code == Errc::no_process ||
                         error->code == Errc::process_changed ||
                         error->code == Errc::no_user_memory;
      findings_.add({.kind = ended ? FindingKind::changed : FindingKind::unseen,
                     .va = cursor_,
                     .bytes = vma_.range.end - cursor_,
                     .detail = error != nullptr ? to_string(*error) : moved});
    }
    if (!cannot_.empty()) {
      findings_.add({.kind = FindingKind::unseen,
                     .va = vma_.range.start,
                     .bytes = vma_.range.bytes(),
                     .detail = cannot_});
    }
    findings_.take(result_);
    const bool about_pages =
        check_.window.kind != Window::Kind::any || check_.node || takes_tables(check_);
    const bool about_mapping = !check_.perms.empty() || !check_.flags.empty();
    if ((about_pages || !about_mapping) && resident_ == 0 && result_.findings.empty()) {
      result_.findings.push_back({.kind = FindingKind::unseen,
                                  .va = vma_.range.start,
                                  .bytes = vma_.range.bytes(),
                                  .detail = "no page of it is in memory"});
    }
    result_.verdict = Verdict::pass;
    for (const Finding& finding : result_.findings) {
      if (is_failure(finding.kind)) {
        result_.verdict = Verdict::fail;
        break;
      }
      result_.verdict = Verdict::unverified;
    }
    return std::move(result_);
  }

 private:
  static constexpr const char* moved = "the mapping changed while it was read";

  struct Place {
    std::optional<PhysAddr> at;  ///< empty: beyond the window's end
    std::uint64_t run;           ///< bytes for which it goes on
  };

  bool in_order() const { return check_.window.kind == Window::Kind::physical && !check_.scatter; }

  /// Where the page at `va` must be. Windows have few ranges, and most have one.
  Place place(VirtAddr va) const {
    std::uint64_t left = va - vma_.range.start;
    if (!in_order() || left > UINT64_MAX - offset_) return {{}, UINT64_MAX};
    left += offset_;
    for (const PaRange& range : check_.window.ranges) {
      if (left < range.bytes()) return {range.start + left, range.bytes() - left};
      left -= range.bytes();
    }
    return {{}, UINT64_MAX};
  }

  /// What is to be said of the mapping and not of its pages.
  void mapping_itself(VmaInspector& inspector) {
    const auto of_mapping = [&](FindingKind kind, std::string detail) {
      findings_.add({.kind = kind,
                     .va = vma_.range.start,
                     .bytes = vma_.range.bytes(),
                     .detail = std::move(detail)});
    };
    const std::string perms = permissions(vma_);
    for (std::size_t i = 0; i < check_.perms.size(); ++i) {
      if (check_.perms[i] == '?' || (i < perms.size() && check_.perms[i] == perms[i])) continue;
      of_mapping(FindingKind::wrong_perms, perms + ", not " + check_.perms);
      break;
    }
    if (check_.flags.empty()) return;
    const auto flags = inspector.flags(vma_);
    if (!flags) {
      of_mapping(FindingKind::unseen, "its VmFlags cannot be read");
      return;
    }
    std::string missing, unwanted;
    for (const std::string& flag : check_.flags) {
      const bool negated = flag.starts_with('!');
      const std::string_view code = std::string_view(flag).substr(negated ? 1 : 0);
      if (flags->has(code) != negated) continue;
      (negated ? unwanted : missing).append(" ").append(code);
    }
    if (!missing.empty()) of_mapping(FindingKind::wrong_flags, "missing:" + missing);
    if (!unwanted.empty()) of_mapping(FindingKind::wrong_flags, "unwanted:" + unwanted);
  }

  void skip_to(VirtAddr va) {
    if (cursor_ < va) {
      findings_.add(
          {.kind = FindingKind::changed, .va = cursor_, .bytes = va - cursor_, .detail = moved});
    }
  }

  void not_seen(FindingKind kind, const Extent& extent, std::string detail) {
    findings_.add(
        {.kind = kind, .va = extent.va, .bytes = extent.bytes, .detail = std::move(detail)});
  }

  void special(const Extent& extent) {
    if (extent.reason == Reason::uffd_wp_marker || extent.reason == Reason::poison_marker ||
        extent.reason == Reason::poison)
      hole(extent, reason_of(extent));
    else
      not_seen(FindingKind::unseen, extent, reason_of(extent));
  }

  void hole(Extent extent, const std::string& detail) {
    if (check_.sparse) return;
    result_.pages_checked += page_size_.pages(extent.bytes);
    while (extent.bytes != 0) {
      const Place expected = place(extent.va);
      const std::uint64_t run = std::min(extent.bytes, expected.run);
      findings_.add({.kind = FindingKind::hole,
                     .va = extent.va,
                     .bytes = run,
                     .expected = expected.at,
                     .detail = detail});
      extent.va = extent.va + run;
      extent.bytes -= run;
    }
  }

  void resident(Extent rest) {
    const CacheAttribute cache =
        (rest.pte & pte_bit::known) != 0 ? pte_bit::cache(rest.pte) : CacheAttribute::unknown;
    const std::uint64_t pages = page_size_.pages(rest.bytes);
    // Of a recorded system with large pages.
    if (rest.pfn.value + pages > UINT64_MAX >> page_size_.shift()) {
      not_seen(FindingKind::unseen, rest, "frames whose addresses 64 bits do not hold");
      return;
    }
    result_.pages_checked += pages;
    resident_ += pages;
    remember(rest, cache);
    while (rest.bytes != 0) one_run(rest, cache);
  }

  /// Judges the first part of `rest` of which the same is to be said, and cuts it off.
  void one_run(Extent& rest, CacheAttribute cache) {
    const PhysAddr at = page_size_.address(rest.pfn);
    std::uint64_t run = rest.bytes;
    const auto until = [&](PhysAddr end) {
      // Borders within a page count for the page's first byte.
      run = std::min(run, std::max((end - at) & ~(page_size_.bytes() - 1), page_size_.bytes()));
    };
    std::optional<PhysAddr> expected;
    std::optional<FindingKind> fault;
    if (in_order()) {
      const Place place = this->place(rest.va);
      run = std::min(run, place.run);
      expected = place.at;
      if (place.at != at) {
        const Membership member = membership(check_.window.ranges, at);
        until(member.run_end);
        fault = member.inside ? FindingKind::wrong_address : FindingKind::outside_window;
      }
    } else if (check_.window.kind != Window::Kind::any) {
      const Membership member = membership(check_.window.ranges, at);
      until(member.run_end);
      if (!member.inside) fault = FindingKind::outside_window;
    }
    if (fault == FindingKind::outside_window || check_.window.device) {
      const auto* const ram = expects_ram() ? nullptr : facts_.ram();
      if (ram != nullptr) {
        const Membership member = membership(*ram, at);
        until(member.run_end);
        if (member.inside) fault = FindingKind::not_device;
      }
    }
    std::optional<std::pair<FindingKind, std::string>> node;
    if (check_.node) node = judge_node(at, until);

    bool good = true;
    const auto add = [&](FindingKind kind, std::string detail) {
      good = false;
      findings_.add({.kind = kind,
                     .va = rest.va,
                     .bytes = run,
                     .expected = expected,
                     .actual = at,
                     .detail = std::move(detail)});
    };
    if (fault) add(*fault, in_order() && !expected ? "beyond the window's end" : "");
    if (node) add(node->first, std::move(node->second));
    if (check_.cache != 0) judge_cache(cache, add);
    if (check_.leaf) judge_leaf(rest, run, add);
    if (good) result_.pages_ok += page_size_.pages(run);
    cut_front(rest, run, page_size_);
  }

  /// Whether the window is itself System RAM: then RAM elsewhere is merely elsewhere.
  bool expects_ram() {
    if (check_.window.kind != Window::Kind::physical) return true;
    if (check_.window.device || check_.window.ranges.empty()) return false;
    if (!expects_ram_) {
      const auto* const ram = facts_.ram();
      expects_ram_ = ram != nullptr && membership(*ram, check_.window.ranges.front().start).inside;
    }
    return *expects_ram_;
  }

  std::optional<std::pair<FindingKind, std::string>> judge_node(PhysAddr at, auto until) {
    const Result<NumaMap>& nodes = facts_.nodes();
    if (!nodes) return std::pair{FindingKind::unseen, to_string(nodes.error())};
    until(nodes->run_end(at));
    const auto node = nodes->node(at);
    if (!node) return std::pair{FindingKind::unseen, std::string("its NUMA node is not known")};
    if (*node == *check_.node) return {};
    return std::pair{FindingKind::wrong_node,
                     "node " + std::to_string(*node) + ", not " + std::to_string(*check_.node)};
  }

  void judge_cache(CacheAttribute cache, auto add) {
    if (cache == CacheAttribute::unknown) {
      add(FindingKind::unseen, only_tables("the cache attribute"));
    } else if ((check_.cache >> static_cast<unsigned>(cache) & 1) == 0) {
      add(FindingKind::wrong_cache, cache_text(cache) + ", not " + cache_text(check_.cache, cache));
    }
  }

  void judge_leaf(const Extent& extent, std::uint64_t bytes, auto add) {
    const unsigned shift = extent.leaf_shift;
    if (shift == 0) {
      add(FindingKind::unseen, only_tables("the leaf size"));
    } else if (shift != check_.leaf->shift()) {
      add(FindingKind::wrong_leaf, size_text(shift) + ", not " + size_text(check_.leaf->shift()));
    } else if (!within_mapping(extent.va, extent.va + bytes, shift)) {
      add(FindingKind::unseen, size_text(shift) + " leaves that the mapping does not hold");
    }
  }

  /// No kernel lets a leaf map what is not of its VMA; a record may say so.
  bool within_mapping(VirtAddr start, VirtAddr end, unsigned shift) const {
    const std::uint64_t within = (std::uint64_t{1} << shift) - 1;
    return (start.value & ~within) >= vma_.range.start.value &&
           ((end.value - 1) | within) <= vma_.range.end.value - 1;
  }

  std::string only_tables(const char* what) const {
    return std::string(what) + " is not known: " +
           (why_blind_.empty() ? "page tables tell it (backend bpf or kmod)" : why_blind_);
  }

  void remember(const Extent& extent, CacheAttribute cache) {
    if (cache == CacheAttribute::unknown) return;
    const PhysAddr start = page_size_.address(extent.pfn);
    if (!result_.cached.empty()) {
      CachedRun& last = result_.cached.back();
      if (last.cache == cache && last.range.end == start &&
          last.va + last.range.bytes() == extent.va) {
        last.range.end = last.range.end + extent.bytes;
        return;
      }
    }
    result_.cached.push_back({{start, start + extent.bytes}, extent.va, cache});
  }

  const Check& check_;
  const Vma& vma_;
  Facts& facts_;
  PageSize page_size_;
  Findings findings_;
  VirtAddr cursor_;
  std::uint64_t offset_ = 0;
  std::uint64_t resident_ = 0;
  std::optional<bool> expects_ram_;
  std::string cannot_;
  std::string why_blind_;
  CheckResult result_;
};

/// Reads mappings once, ascending, and lets their judges see them.
class Sweep {
 public:
  Sweep(const Process& process, Translator& translator, VmaInspector& inspector, Facts& facts,
        const WalkOptions& options)
      : process_(process),
        translator_(translator),
        inspector_(inspector),
        facts_(facts),
        options_(options) {}

  /// `which`: indices into `checks`, ascending. One result for each.
  std::vector<CheckResult> run(std::span<const MappingCheck> checks,
                               std::span<const std::size_t> which) {
    judges_.clear();
    mappings_.clear();
    judges_.reserve(which.size());
    for (const std::size_t i : which) {
      const MappingCheck& c = checks[i];
      if (mappings_.empty() || mappings_.back().vma != c.vma)
        mappings_.push_back({c.vma, judges_.size(), 0, false});
      mappings_.back().tables = mappings_.back().tables || Judge::takes_tables(*c.check);
      judges_.emplace_back(*c.check, *c.vma, inspector_, facts_);
      mappings_.back().end = judges_.size();
    }
    tables_ = nullptr;
    if (std::ranges::any_of(mappings_, &Mapping::tables)) tables_ = translator_.page_tables();
    // One source after the other: each walk reads maps from the start.
    if (!one_source()) {
      std::ranges::sort(mappings_, {},
                        [](const Mapping& m) { return std::pair(m.tables, m.vma->range.start); });
    }
    std::vector<CheckResult> results(which.size());
    for (std::size_t first = 0; first < mappings_.size();) {
      const std::size_t last = span_end(first);
      const auto walked = walk(first, last);
      for (; first < last; ++first) {
        for (std::size_t j = mappings_[first].judges; j < mappings_[first].end; ++j)
          results[j] = judges_[j].finish(walked ? nullptr : &walked.error());
      }
    }
    return results;
  }

 private:
  struct Mapping {
    const Vma* vma;
    std::size_t judges, end;  ///< its judges
    bool tables;
  };

  /// Whether page tables are read as all else is, or cannot be.
  bool one_source() const { return tables_ == nullptr || tables_ == &translator_; }

  /// Mappings that one walk had best read together.
  std::size_t span_end(std::size_t first) const {
    std::size_t last = first + 1;
    while (last < mappings_.size() &&
           (one_source() || mappings_[last].tables == mappings_[first].tables) &&
           mappings_[last].vma->range.start - mappings_[last - 1].vma->range.end <=
               bridged_per_vma * (last + 1)) {
      ++last;
    }
    return last;
  }

  Translator& source(std::size_t first, std::size_t last) {
    if (tables_ != nullptr) return mappings_[first].tables ? *tables_ : translator_;
    if (const Error* const why = translator_.why_blind()) {
      for (std::size_t i = first; i < last; ++i) {
        if (!mappings_[i].tables) continue;
        for (std::size_t j = mappings_[i].judges; j < mappings_[i].end; ++j)
          judges_[j].blind(to_string(*why));
      }
    }
    return translator_;
  }

  Result<void> walk(std::size_t first, std::size_t last) {
    const VaRange range{mappings_[first].vma->range.start, mappings_[last - 1].vma->range.end};
    std::size_t at = first;
    const auto sink = [&](const Vma* vma, const Extent& extent) {
      while (at < last && mappings_[at].vma->range.end <= extent.va) ++at;
      for (std::size_t i = at; i < last && mappings_[i].vma->range.start < extent.end(); ++i) {
        const Vma& wanted = *mappings_[i].vma;
        const bool same = vma != nullptr && *vma == wanted;
        for (std::size_t j = mappings_[i].judges; j < mappings_[i].end; ++j) {
          if (same)
            judges_[j].take(extent);
          else
            judges_[j].gone(intersect(wanted.range, {extent.va, extent.end()}));
        }
      }
      return true;
    };
    return translate(process_, source(first, last), inspector_, range, options_, sink);
  }

  const Process& process_;
  Translator& translator_;
  VmaInspector& inspector_;
  Facts& facts_;
  WalkOptions options_;
  Translator* tables_ = nullptr;  ///< where a mapping takes them and they can be read
  std::vector<Judge> judges_;
  std::vector<Mapping> mappings_;
};

bool of_pages(const Finding& finding) {
  return is_failure(finding.kind) && finding.kind != FindingKind::wrong_perms &&
         finding.kind != FindingKind::wrong_flags;
}

std::vector<Finding> page_failures(const CheckResult& result) {
  std::vector<Finding> found;
  std::ranges::copy_if(result.findings, std::back_inserter(found), of_pages);
  return found;
}

}  // namespace

std::vector<CheckResult> check_mappings(const Process& process, Translator& translator,
                                        VmaInspector& inspector, WindowSources& sources,
                                        std::span<const MappingCheck> checks,
                                        const WalkOptions& options) {
  WalkOptions walk_options = options;
  walk_options.page_bits = false;
  Facts facts{sources, process.root().page_size()};
  Sweep sweep{process, translator, inspector, facts, walk_options};
  std::vector<std::size_t> which(checks.size());
  for (std::size_t i = 0; i < which.size(); ++i) which[i] = i;
  std::vector<CheckResult> results = sweep.run(checks, which);

  // What does not fit is read again: it may have moved between two reads of one walk.
  std::erase_if(which, [&](std::size_t i) { return page_failures(results[i]).empty(); });
  for (int read = 1; read < reads && !which.empty() && !options.stopped(); ++read) {
    std::vector<CheckResult> again = sweep.run(checks, which);
    std::vector<std::size_t> differing;
    for (std::size_t k = 0; k < which.size(); ++k) {
      const std::size_t i = which[k];
      const std::vector<Finding> before = page_failures(results[i]);
      const std::vector<Finding> now = page_failures(again[k]);
      results[i] = std::move(again[k]);
      if (now == before) continue;
      // A page that was missing and has come since is no contradiction.
      const bool came = now.empty() && std::ranges::all_of(before, [](const Finding& finding) {
                          return finding.kind == FindingKind::hole;
                        });
      if (came) continue;
      if (!now.empty() && read + 1 < reads) {
        differing.push_back(i);
        continue;
      }
      results[i].add({.kind = FindingKind::changed,
                      .va = before.front().va,
                      .bytes = before.front().bytes,
                      .expected = before.front().expected,
                      .actual = before.front().actual,
                      .detail = "was not the same when it was read again: " +
                                std::string(to_string(before.front().kind)) + " before"});
    }
    which = std::move(differing);
  }
  return results;
}

}  // namespace vmem
