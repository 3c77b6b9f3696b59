// SPDX-License-Identifier: MIT
/// What a mapping is now, as a check that it passes; --print-policy.
#include <algorithm>
#include <unordered_map>

#include "mapcheck_names.hpp"
#include "mapcheck_run.hpp"

namespace vmem::tools {
namespace {

/// What one mapping's pages were.
class Summary {
 public:
  explicit Summary(PageSize page_size) : page_size_(page_size) {}

  void take(const Extent& extent) {
    switch (extent.state) {
      case PageState::resident:
        break;
      case PageState::absent:
      case PageState::swapped:
      case PageState::guard:
        holes_ = true;
        return;
      case PageState::unmapped:
      case PageState::changed:
        changed_ = true;
        return;
      case PageState::special:
        if (extent.reason == Reason::uffd_wp_marker || extent.reason == Reason::poison_marker) {
          holes_ = true;
          return;
        }
        [[fallthrough]];
      case PageState::hidden:
      case PageState::unseen:
        if (seen_) why_ = extent.reason;
        seen_ = false;
        return;
    }
    if (any_ && extent.leaf_shift != leaf_) one_leaf_ = false;
    any_ = true;
    leaf_ = extent.leaf_shift;
    const CacheAttribute attribute =
        (extent.pte & pte_bit::known) != 0 ? pte_bit::cache(extent.pte) : CacheAttribute::unknown;
    if (attribute == CacheAttribute::unknown)
      cache_known_ = false;
    else
      cache_ = static_cast<CacheSet>(cache_ | 1U << static_cast<unsigned>(attribute));
    const PhysAddr start = page_size_.address(extent.pfn);
    const PaRange run{start, start + extent.bytes};
    // Where frames go along with addresses, holes or not, the window begins where they say.
    const std::uint64_t origin = start.value - extent.va.value;
    if (runs_.empty()) origin_ = origin;
    in_step_ = in_step_ && origin == origin_;
    span_ = runs_.empty() ? run
                          : PaRange{std::min(span_.start, run.start), std::max(span_.end, run.end)};
    if (!runs_.empty() && runs_.back().end == start)
      runs_.back().end = run.end;
    else if (runs_.size() < most_runs)
      runs_.push_back(run);
    else
      scattered_ = true;
  }

  bool seen() const { return seen_; }
  /// Why not.
  Reason why() const { return why_; }
  bool changed() const { return changed_; }
  bool any() const { return any_; }  ///< page in memory
  bool cache_known() const { return any_ && cache_known_; }

  /// What the same mapping passes in the next run, too: no frames that the kernel chose for this
  /// one and, with `elsewhere`, nothing that depends on its address. Only of what was seen.
  Check check(const Vma& vma, Classification what, WindowSources& sources, bool elsewhere) const {
    const bool device = what.vma_class == VmaClass::device;
    Check check;
    check.perms = permissions(vma);
    check.sparse = holes_ || !device;
    check.window.text = "any";
    if (any_ && what.vma_class != VmaClass::file) {
      const auto ram = sources.ram();
      const auto in_ram = [&](const PaRange& run) {
        return std::ranges::any_of(ram->ranges, [&](const PaRange& r) {
          return r.start <= run.start && run.end <= r.end;
        });
      };
      // /dev/mem has what its caller asked for.
      if (ram && !scattered_ && what.kind != VmaKind::devmem && std::ranges::all_of(runs_, in_ram))
        check.window = *ram;
      else if (device &&
               !(ram && what.kind != VmaKind::devmem && std::ranges::any_of(runs_, in_ram)))
        driver_window(check, vma, what, sources);
    }
    if (device && any_ && cache_known_) check.cache = cache_;
    const bool device_or_huge = device || what.vma_class == VmaClass::hugepage;
    if (device_or_huge && any_ && one_leaf_ && leaf_ != 0 && (!elsewhere || leaf_is_kept(what)))
      check.leaf = PageSize{std::uint64_t{1} << leaf_};
    return check;
  }

 private:
  void driver_window(Check& check, const Vma& vma, Classification what,
                     WindowSources& sources) const {
    const PhysAddr first{vma.range.start.value + origin_};
    // What a GPU's driver gives is another part of its memory each time.
    if (in_step_ && first <= span_.start && what.kind != VmaKind::gpu) {
      check.window = Window::literal({first, first + vma.range.bytes()}, page_size_);
      check.offset = 0;
      return;
    }
    // In pieces: within the region that they lie in, in any order.
    PaRange within = span_;
    if (const Result<Iomem>& iomem = sources.iomem_regions()) {
      std::optional<PaRange> region;
      for (const IomemRegion& r : iomem->regions()) {
        if (r.range.start <= span_.start && span_.end <= r.range.end &&
            !r.name.starts_with("PCI Bus") && (!region || r.range.bytes() < region->bytes()))
          region = r.range;
      }
      if (region) within = *region;
    }
    check.window = Window::literal(within, page_size_);
    check.scatter = true;
  }

  /// Whether the mapping has leaves of that size at other addresses, too. Those of a driver that
  /// can use larger ones depend on how the mapping's address is aligned.
  bool leaf_is_kept(Classification what) const {
    if (what.vma_class == VmaClass::hugepage || what.kind == VmaKind::dax) return true;
    return leaf_ == page_size_.shift() && what.kind != VmaKind::vfio && what.kind != VmaKind::gpu;
  }

  static constexpr std::size_t most_runs = 4096;
  PageSize page_size_;
  bool seen_ = true, any_ = false, holes_ = false, one_leaf_ = true, cache_known_ = true;
  bool changed_ = false;
  Reason why_ = Reason::none;
  bool scattered_ = false;  ///< in more runs than are kept
  std::uint8_t leaf_ = 0;
  CacheSet cache_ = 0;
  bool in_step_ = true;
  std::uint64_t origin_ = 0;  ///< PA - VA
  PaRange span_;
  std::vector<PaRange> runs_;
};

/// The pages of one mapping, through page tables where they can be read.
Result<Summary> summarize(const Process& process, Translator& translator, VmaInspector& inspector,
                          const Vma& vma) {
  Translator* const tables = translator.page_tables();
  Summary summary{process.root().page_size()};
  bool same = true;
  const WalkOptions walk{.page_bits = false, .stop = interrupted};
  const auto walked = translate(process, tables != nullptr ? *tables : translator, inspector,
                                vma.range, walk, [&](const Vma* now, const Extent& extent) {
                                  same = same && now != nullptr && *now == vma;
                                  summary.take(extent);
                                  return same;
                                });
  if (!walked) return std::unexpected(walked.error());
  if (!same) return std::unexpected(Error{.code = Errc::process_changed, .what = "mapping"});
  return summary;
}

/// A TOML basic string; empty where the text has bytes that such a string cannot hold as they are.
std::string toml_string(std::string_view text) {
  const bool plain = std::ranges::all_of(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 && byte < 0x7f;
  });
  return plain ? json_string(text) : "";
}

/// What of a check its policy says besides the name and what it selects.
std::string toml_keys(const Check& check) {
  std::string text = fmt::format("window = {}\n", json_string(check.window.text));
  if (check.offset) text += fmt::format("offset = {}\n", *check.offset);
  if (check.scatter) text += "scatter = true\n";
  if (check.sparse) text += "sparse = true\n";
  if (!check.perms.empty()) text += fmt::format("perms = \"{}\"\n", check.perms);
  if (check.cache != 0) text += fmt::format("cache = \"{}\"\n", cache_words(check.cache));
  if (check.leaf) text += fmt::format("leaf = \"{}\"\n", size_word(check.leaf->bytes()));
  return text;
}

/// A mapping on its way into the policy.
struct Entry {
  Classification what;
  StableName name;
  std::optional<Check> check;  ///< empty: nothing to be checked
  std::string keys;            ///< of the check, as TOML
  std::string comment;  ///< above the check, or in its place
  bool done = false;    ///< another one's check selects it, too
};

/// The mappings that a name selects.
struct Group {
  std::vector<std::size_t> all;        ///< indices, ascending
  bool alike = true;                   ///< one check says all of them
  /// Objects that one name is for, like memfds and shared memory: how many there are, and in which
  /// order, is another matter in each run.
  bool interchangeable = false;
  std::vector<std::size_t> by_offset;  ///< into the file
  std::uint64_t longest = 0;
};

/// What a check selects by.
struct Choice {
  std::string select;
  std::size_t nth = 0;  ///< 0: all that `select` selects
  std::vector<std::size_t> covered;  ///< these mappings, all of which the check describes
  std::string keys;  ///< of the check
};

/// What holds of both.
void join(Check& all, const Check& one) {
  if (all.window.text != one.window.text || all.offset != one.offset ||
      all.scatter != one.scatter) {
    all.window = {};
    all.window.text = "any";
    all.offset.reset();
    all.scatter = false;
  }
  for (std::size_t i = 0; i < all.perms.size() && i < one.perms.size(); ++i)
    if (all.perms[i] != one.perms[i]) all.perms[i] = '?';
  all.sparse = all.sparse || one.sparse;
  if (all.cache != one.cache) all.cache = 0;
  if (all.leaf != one.leaf) all.leaf.reset();
}

/// Which of the mappings a name selects, as --policy will.
class Names {
 public:
  Names(const std::vector<Vma>& vmas, const std::vector<Entry>& entries)
      : vmas_(vmas), entries_(entries) {
    for (std::size_t i = 0; i < vmas.size(); ++i) {
      if (!vmas[i].path.empty()) by_path_[vmas[i].path].push_back(i);
    }
  }

  /// How the next run's mapping is selected: by its name if the same is to be said of all that
  /// have it; by a byte of the file that it alone has; by which one of them it is.
  std::optional<Choice> choose(std::size_t which) {
    const StableName& name = entries_[which].name;
    const Group& group = selected(name);
    if (!std::ranges::binary_search(group.all, which)) return {};
    const bool by_name = reads_as(name.glob, Selector::Form::name, name.glob);
    const std::string& keys = entries_[which].keys;
    if (by_name && group.alike) return Choice{name.glob, 0, group.all, keys};
    if (by_name && group.interchangeable) {
      Check common = *entries_[which].check;
      std::vector<std::size_t> covered;
      for (const std::size_t i : group.all) {
        if (!entries_[i].check) continue;
        join(common, *entries_[i].check);
        covered.push_back(i);
      }
      return Choice{name.glob, 0, covered, toml_keys(common)};
    }

    const Vma& vma = vmas_[which];
    const auto with = [&](std::uint64_t byte) { return fmt::format("{}+{:#x}", name.glob, byte); };
    if (reads_as(with(vma.offset), Selector::Form::file, name.glob)) {
      const auto first = holders(group, vma.offset);
      if (alike(first, which)) return Choice{with(vma.offset), 0, first, keys};
      // Its own begins where others with some of the same file end.
      for (const std::size_t other : first) {
        const std::uint64_t end = vmas_[other].offset + vmas_[other].range.bytes();
        if (!has(which, end)) continue;
        if (const auto more = holders(group, end); alike(more, which))
          return Choice{with(end), 0, more, keys};
      }
      return Choice{with(vma.offset), place(first, which), {which}, keys};
    }
    if (!by_name) return {};
    return Choice{name.glob, place(group.all, which), {which}, keys};
  }

 private:
  /// Whether `select` is read as it was meant.
  static bool reads_as(const std::string& select, Selector::Form form, std::string_view text) {
    Rule rule;
    return set_select(rule, select) && rule.check.select.form == form &&
           rule.check.select.text == text;
  }
  bool has(std::size_t i, std::uint64_t byte) const {
    return vmas_[i].offset <= byte && byte - vmas_[i].offset < vmas_[i].range.bytes();
  }
  bool alike(const std::vector<std::size_t>& some, std::size_t which) const {
    return std::ranges::all_of(
        some, [&](std::size_t i) { return entries_[i].keys == entries_[which].keys; });
  }
  static std::size_t place(const std::vector<std::size_t>& some, std::size_t which) {
    return static_cast<std::size_t>(std::ranges::lower_bound(some, which) - some.begin()) + 1;
  }

  /// Those of the group that hold this byte of the file; ascending.
  std::vector<std::size_t> holders(const Group& group, std::uint64_t byte) const {
    const std::uint64_t lowest = byte - std::min(byte, group.longest);
    const auto offset = [&](std::size_t i) { return vmas_[i].offset; };
    std::vector<std::size_t> found;
    for (auto at = std::ranges::lower_bound(group.by_offset, lowest, {}, offset);
         at != group.by_offset.end() && offset(*at) <= byte; ++at) {
      if (has(*at, byte)) found.push_back(*at);
    }
    std::ranges::sort(found);
    return found;
  }

  bool interchangeable(const StableName& name, const Group& group) const {
    bool several = false;
    for (const std::size_t i : group.all) {
      const Vma& vma = vmas_[i];
      const Vma& first = vmas_[group.all.front()];
      const Classification what = entries_[i].what;
      if (what.vma_class == VmaClass::device) return false;
      // One that was replaced meanwhile has the same layout.
      if (what.vma_class == VmaClass::file && !name.literal.empty()) return false;
      // Of anonymous memory and anonymous inodes the number says nothing.
      several = several || vma.inode == 0 || vma.inode != first.inode ||
                vma.dev_major != first.dev_major || vma.dev_minor != first.dev_minor ||
                vma.path.starts_with("anon_inode:");
    }
    return several;
  }

  const Group& selected(const StableName& name) {
    const auto [at, fresh] = groups_.try_emplace(name.glob);
    Group& group = at->second;
    if (!fresh) return group;
    const auto add = [&](const std::vector<std::size_t>& more) {
      group.all.insert(group.all.end(), more.begin(), more.end());
    };
    // What matches base names, or more than one name, is held against all of them.
    if (!name.literal.empty() && (name.literal.contains('/') || name.literal.starts_with('['))) {
      for (const std::string& path : {name.literal, name.literal + " (deleted)"}) {
        if (const auto found = by_path_.find(path); found != by_path_.end()) add(found->second);
      }
    } else {
      const Selector select{.form = Selector::Form::name, .text = name.glob, .address = {}};
      for (const auto& [path, indices] : by_path_) {
        if (select.selects(vmas_[indices.front()])) add(indices);
      }
    }
    std::ranges::sort(group.all);
    group.interchangeable = interchangeable(name, group);
    group.alike = group.all.empty() || alike(group.all, group.all.front());
    group.by_offset = group.all;
    std::ranges::sort(group.by_offset, {},
                      [&](std::size_t i) { return std::pair(vmas_[i].offset, i); });
    for (const std::size_t i : group.all)
      group.longest = std::max(group.longest, vmas_[i].range.bytes());
    return group;
  }

  const std::vector<Vma>& vmas_;
  const std::vector<Entry>& entries_;
  std::unordered_map<std::string_view, std::vector<std::size_t>> by_path_;
  std::unordered_map<std::string, Group> groups_;
};

/// A process's mappings, read until none of those to be described changes meanwhile.
struct Snapshot {
  std::vector<Vma> vmas;
  std::vector<Classification> kinds;
  std::vector<Summary> summaries;
  std::vector<bool> stable;
};

/// Whether a policy can say anything of the mapping in the next run.
bool described(const Vma& vma, Classification what) {
  return !vma.path.empty() || what.vma_class == VmaClass::device ||
         what.vma_class == VmaClass::hugepage;
}

Result<Snapshot> take_snapshot(const Process& process, Translator& translator,
                               VmaInspector& inspector) {
  constexpr int attempts = 3;
  for (int attempt = 1;; ++attempt) {
    auto vmas = read_vmas(process);
    if (!vmas) return std::unexpected(vmas.error());
    Snapshot now{.vmas = std::move(*vmas), .kinds = {}, .summaries = {}, .stable = {}};
    for (const Vma& vma : now.vmas) now.kinds.push_back(inspector.classify(vma));
    now.summaries.assign(now.vmas.size(), Summary{process.root().page_size()});
    now.stable.resize(now.vmas.size());
    std::size_t at = 0;
    const WalkOptions walk{.page_bits = false, .stop = interrupted};
    const auto walked = translate_all(
        process, translator, inspector, walk, [&](const Vma* vma, const Extent& extent) {
          while (at < now.vmas.size() && now.vmas[at].range.end <= extent.va) ++at;
          if (at == now.vmas.size() || vma == nullptr || *vma != now.vmas[at]) return true;
          now.summaries[at].take(extent);
          now.stable[at] = true;
          return true;
        });
    if (!walked) return std::unexpected(walked.error());
    bool all = true;
    for (std::size_t i = 0; i < now.vmas.size(); ++i) {
      now.stable[i] = now.stable[i] && !now.summaries[i].changed();
      // A page on its way to another frame will be there at the next look.
      const bool moving = now.summaries[i].why() == Reason::migration_or_device;
      all = all && ((now.stable[i] && !moving) || !described(now.vmas[i], now.kinds[i]));
    }
    if (all || attempt == attempts || process.root().recorded()) return now;
  }
}

std::string plural(std::size_t n, std::string_view noun, std::string_view verb_one,
                   std::string_view verb_many) {
  return fmt::format("{} {}{} {}", n, noun, n == 1 ? "" : "s", n == 1 ? verb_one : verb_many);
}

}  // namespace

std::optional<Check> describe(const Process& process, Translator& translator,
                              VmaInspector& inspector, WindowSources& sources, const Vma& vma,
                              Classification what) {
  const auto summary = summarize(process, translator, inspector, vma);
  if (!summary || !summary->seen() || summary->changed()) return {};
  return summary->check(vma, what, sources, false);
}

std::string expectation(const Check& check) {
  std::string text = check.window.text;
  if (check.offset) text += fmt::format(",offset={:#x}", *check.offset);
  if (check.scatter) text += ",scatter";
  if (check.sparse) text += ",sparse";
  if (!check.perms.empty()) text += ",perms=" + check.perms;
  if (check.cache != 0) text += ",cache=" + cache_words(check.cache);
  if (check.leaf) text += ",leaf=" + size_word(check.leaf->bytes());
  return text;
}

Result<PrintedPolicy> describe_policy(const Process& process, Translator& translator) {
  WindowSources sources{process.root()};
  VmaInspector inspector{process, vm_flags_source(process, translator)};
  auto taken = take_snapshot(process, translator, inspector);
  if (!taken) return std::unexpected(taken.error());
  const std::vector<Vma>& vmas = taken->vmas;
  NextRun next{process};

  PrintedPolicy policy;
  std::size_t lacking = 0, devices = 0, anonymous = 0, kernels = 0;
  const auto lacks = [&](const Vma& vma, bool device, const std::string& why) {
    ++lacking;
    devices += device;
    if (!policy.lacks.empty()) return;
    policy.lacks =
        fmt::format("{} at {:#x}: {}", vma.path.empty() ? "a mapping without a name" : vma.path,
                    vma.range.start.value, why);
  };
  std::vector<Entry> entries(vmas.size());
  for (std::size_t i = 0; i < vmas.size(); ++i) {
    if (interrupted()) return policy;
    const Vma& vma = vmas[i];
    Entry& entry = entries[i];
    entry.what = taken->kinds[i];
    if (!vma.path.empty()) entry.name = next.mapping(vma);
    const bool device = entry.what.vma_class == VmaClass::device;
    if (!described(vma, entry.what)) {
      ++anonymous;
      continue;
    }
    if (entry.what.kind == VmaKind::vvar || entry.what.kind == VmaKind::vsyscall) {
      ++kernels;
      continue;
    }
    if (!taken->stable[i]) {
      entry.comment = "it changed while it was read";
      lacks(vma, device, entry.comment);
      policy.changed = true;
      continue;
    }
    if (vma.path.empty()) {
      entry.comment = "it has no name: nothing but its address would select it";
      lacks(vma, device, entry.comment);
      continue;
    }
    Summary summary = taken->summaries[i];
    // Where pagemap shows the frames, page tables add cache attributes and leaves.
    if (device && (!summary.seen() || !summary.cache_known())) {
      if (auto more = summarize(process, translator, inspector, vma);
          more && more->seen() && !more->changed())
        summary = std::move(*more);
    }
    auto derived = sources.derive(process, vma, entry.what);
    if (!summary.seen()) {
      const bool pfnmap = summary.why() == Reason::pfnmap || summary.why() == Reason::maybe_pfnmap;
      std::string why(to_string(summary.why()));
      if (why.empty()) why = "its pages cannot be seen";
      if (const Error* const blind = translator.why_blind()) why += "; " + to_string(*blind);
      lacks(vma, device || pfnmap, why);
      if (!derived) {
        entry.comment = "its pages cannot be seen";
        continue;
      }
      entry.comment = "its pages cannot be seen: this is what its device says";
      derived->perms = permissions(vma);
      entry.keys = toml_keys(*derived);
      entry.check = std::move(*derived);
      continue;
    }
    if (device && !summary.cache_known() && summary.any()) {
      entry.comment = "its cache attribute cannot be seen";
      if (const Error* const blind = translator.why_blind())
        lacks(vma, device, entry.comment + "; " + to_string(*blind));
    }
    Check check = summary.check(vma, entry.what, sources, true);
    if (derived) {
      derived->perms = check.perms;
      derived->sparse = derived->sparse || check.sparse;
      derived->leaf = check.leaf;
      if (check.cache != 0) derived->cache = check.cache;
      const MappingCheck ask{&*derived, &vma};
      const auto holds =
          check_mappings(process, translator, inspector, sources, {&ask, 1}, {.stop = interrupted});
      if (holds.front().verdict == Verdict::pass) check = std::move(*derived);
    }
    entry.keys = toml_keys(check);
    entry.check = std::move(check);
  }

  policy.text = fmt::format("# The mappings of process {} ({}) as they were; see vmem-policy(5).\n",
                            process.pid(), printable(process.comm()));
  if (const std::string comm = next.comm(process.comm()); !comm.empty())
    policy.text += fmt::format("\n[defaults]\nprocess = {}\n", json_string(comm));
  const auto left_out = left_out_texts(process);
  for (const std::string& line : left_out) policy.text += fmt::format("\n# {}\n", printable(line));
  Names names{vmas, entries};
  std::size_t checks = 0;
  for (std::size_t i = 0; i < vmas.size(); ++i) {
    const Vma& vma = vmas[i];
    Entry& entry = entries[i];
    if (entry.done) continue;
    std::optional<Choice> choice;
    if (entry.check) {
      choice = names.choose(i);
      if (!choice)
        entry.comment = "nothing but its address selects it";
      else if (++checks > most_policy_checks)
        entry.comment = "a policy has no room for more checks";
      if (!choice || checks > most_policy_checks)
        lacks(vma, entry.what.vma_class == VmaClass::device, entry.comment);
    }
    if (!choice || checks > most_policy_checks) {
      if (!entry.comment.empty())
        policy.text += fmt::format("\n# {:#x} {}: {}\n", vma.range.start.value, printable(vma.path),
                                   entry.comment);
      continue;
    }
    for (const std::size_t covered : choice->covered) entries[covered].done = true;
    policy.text += '\n';
    if (!entry.comment.empty())
      policy.text += fmt::format("# {}: {}\n", printable(vma.path), entry.comment);
    if (choice->covered.size() > 1)
      policy.text += fmt::format("# {} mappings\n", choice->covered.size());
    std::string name = toml_string(vma.path);
    if (name.empty()) name = json_string(entry.name.glob);
    policy.text +=
        fmt::format("[[check]]\nname = {}\nselect = {}\n", name, json_string(choice->select));
    if (choice->nth != 0) policy.text += fmt::format("nth = {}\n", choice->nth);
    policy.text += choice->keys;
  }
  if (kernels != 0) {
    policy.text += fmt::format("\n# {} left out: the kernel's own, the same in every process.\n",
                               plural(kernels, "mapping", "is", "are"));
  }
  if (anonymous != 0) {
    policy.text += fmt::format(
        "\n# {} anonymous mappings without a name are left out: nothing but their "
        "addresses would select them.\n",
        anonymous);
  }
  if (lacking != 0) {
    policy.lacks = plural(lacking, devices == lacking ? "device mapping" : "mapping",
                          "is not described", "are not described") +
                   ": " + policy.lacks;
    const Error* const blind = translator.why_blind();
    if (blind != nullptr && blind->hint != nullptr) policy.hint = blind->hint;
    if (policy.hint.empty() && policy.changed)
      policy.hint = "ask again when the process is at rest";
  } else if (!left_out.empty()) {
    policy.lacks = left_out.front();
  } else if (const Error* const missing = inspector.missing()) {
    policy.lacks = to_string(*missing);
    if (missing->hint != nullptr) policy.hint = missing->hint;
  } else if (const auto ram = sources.ram(); !ram && !process.root().recorded()) {
    policy.lacks = "which memory is RAM is not known: " + to_string(ram.error());
    if (ram.error().hint != nullptr) policy.hint = ram.error().hint;
  }
  return policy;
}

}  // namespace vmem::tools
