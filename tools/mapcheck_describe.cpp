// SPDX-License-Identifier: MIT
/// What a mapping is now, as a check that it passes; --print-policy.
#include <algorithm>
#include <unordered_map>

#include "mapcheck_run.hpp"

namespace vmem::tools {
namespace {

/// Sums up the extents of one mapping.
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
      default:
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

  /// Empty: its pages cannot be seen.
  std::optional<Check> check(const Vma& vma, Classification what, WindowSources& sources) const {
    if (!seen_) return {};
    const bool device = what.vma_class == VmaClass::device;
    Check check;
    check.perms = permissions(vma);
    check.sparse = holes_ || !device;
    check.window.text = "any";
    if (device && any_) {
      const PhysAddr first{vma.range.start.value + origin_};
      if (in_step_ && first <= span_.start) {
        check.window = Window::literal({first, first + vma.range.bytes()}, page_size_);
        check.offset = 0;
      } else {
        check.window = Window::literal(span_, page_size_);
        check.scatter = true;  // in pieces: within what they span, in any order
      }
    } else if (any_ && !scattered_ && what.vma_class != VmaClass::file) {
      const auto ram = sources.ram();
      const bool in_ram = ram && std::ranges::all_of(runs_, [&](const PaRange& run) {
                            return std::ranges::any_of(ram->ranges, [&](const PaRange& r) {
                              return r.start <= run.start && run.end <= r.end;
                            });
                          });
      if (in_ram) check.window = *ram;
    }
    if (device && any_ && cache_known_) check.cache = cache_;
    const bool huge = what.vma_class == VmaClass::hugepage;
    if ((device || huge) && any_ && one_leaf_ && leaf_ != 0)
      check.leaf = PageSize{std::uint64_t{1} << leaf_};
    return check;
  }

 private:
  static constexpr std::size_t most_runs = 4096;
  PageSize page_size_;
  bool seen_ = true, any_ = false, holes_ = false, one_leaf_ = true, cache_known_ = true;
  bool scattered_ = false;  ///< in more runs than are kept
  std::uint8_t leaf_ = 0;
  CacheSet cache_ = 0;
  bool in_step_ = true;
  std::uint64_t origin_ = 0;  ///< PA - VA
  PaRange span_;
  std::vector<PaRange> runs_;
};

/// A TOML basic string; empty where the text has bytes that such a string cannot hold as they are.
std::string toml_string(std::string_view text) {
  const bool plain = std::ranges::all_of(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 && byte < 0x7f;
  });
  return plain ? json_string(text) : "";
}

std::string escaped(std::string_view path, std::string_view magic) {
  std::string glob;
  for (const char c : path) {
    if (magic.contains(c)) glob += '\\';
    glob += c;
  }
  return glob;
}

std::string escaped(std::string_view path) {
  return escaped(path, path.starts_with('[') ? "*?\\" : "*?\\[");
}

/// The first of name, name and offset, and address that selects this mapping and no other.
std::string selector(const std::vector<Vma>& vmas, std::size_t which,
                     const std::vector<std::size_t>& same_name) {
  const Vma& vma = vmas[which];
  std::string address = fmt::format("{:#x}", vma.range.start.value);
  if (vma.path.empty() || toml_string(vma.path).empty()) return address;
  for (const std::string& text :
       {escaped(vma.path), fmt::format("{}+{:#x}", escaped(vma.path), vma.offset)}) {
    Rule rule;
    const bool good =
        set_select(rule, text) && std::ranges::all_of(same_name, [&](std::size_t other) {
          return rule.check.select.selects(vmas[other]) == (other == which);
        });
    if (good) return text;
  }
  return address;
}

}  // namespace

std::optional<Check> describe(const Process& process, Translator& translator,
                              VmaInspector& inspector, WindowSources& sources, const Vma& vma,
                              Classification what) {
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
  if (!walked || !same) return {};
  return summary.check(vma, what, sources);
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

Result<std::string> describe_policy(const Process& process, Translator& translator) {
  WindowSources sources{process.root()};
  VmaInspector inspector{process, vm_flags_source(process, translator)};
  const auto vmas = read_vmas(process);
  if (!vmas) return std::unexpected(vmas.error());
  std::unordered_map<std::string_view, std::vector<std::size_t>> by_name;
  for (std::size_t i = 0; i < vmas->size(); ++i) by_name[(*vmas)[i].path].push_back(i);
  std::vector<Classification> kinds;
  for (const Vma& vma : *vmas) kinds.push_back(inspector.classify(vma));

  std::vector<Summary> summaries(vmas->size(), Summary{process.root().page_size()});
  std::vector<bool> seen(vmas->size());
  std::size_t at = 0;
  const WalkOptions walk{.page_bits = false, .stop = interrupted};
  const auto walked = translate_all(
      process, translator, inspector, walk, [&](const Vma* vma, const Extent& extent) {
        while (at < vmas->size() && (*vmas)[at].range.end <= extent.va) ++at;
        if (at == vmas->size() || vma == nullptr || *vma != (*vmas)[at]) return true;
        summaries[at].take(extent);
        seen[at] = true;
        return true;
      });
  if (!walked) return std::unexpected(walked.error());

  const std::string comm = toml_string(escaped(process.comm(), "*?\\["));
  std::string policy =
      fmt::format("# The mappings of process {} ({}) as they were; see vmem-policy(5).\n",
                  process.pid(), printable(process.comm()));
  if (!comm.empty()) policy += fmt::format("\n[defaults]\nprocess = {}\n", comm);
  std::size_t anonymous = 0;
  for (std::size_t i = 0; i < vmas->size(); ++i) {
    const Vma& vma = (*vmas)[i];
    if (vma.path.empty() && kinds[i].vma_class != VmaClass::device &&
        kinds[i].vma_class != VmaClass::hugepage) {
      ++anonymous;
      continue;
    }
    const auto check = seen[i] ? summaries[i].check(vma, kinds[i], sources) : std::nullopt;
    if (!check) {
      policy += fmt::format("\n# {:#x} {}: its pages cannot be seen\n", vma.range.start.value,
                            printable(vma.path));
      continue;
    }
    const std::string select = selector(*vmas, i, by_name[vma.path]);
    std::string name = toml_string(vma.path);
    if (name.empty()) name = "\"" + std::string(to_string(kinds[i].kind)) + "\"";
    policy += fmt::format("\n[[check]]\nname = {}\nselect = {}\nwindow = {}\n", name,
                          json_string(select), json_string(check->window.text));
    if (check->offset) policy += fmt::format("offset = {}\n", *check->offset);
    if (check->scatter) policy += "scatter = true\n";
    if (check->sparse) policy += "sparse = true\n";
    policy += fmt::format("perms = \"{}\"\n", check->perms);
    if (check->cache != 0) policy += fmt::format("cache = \"{}\"\n", cache_words(check->cache));
    if (check->leaf) policy += fmt::format("leaf = \"{}\"\n", size_word(check->leaf->bytes()));
  }
  if (anonymous != 0) {
    policy += fmt::format(
        "\n# {} anonymous mappings without a name are left out: nothing but their "
        "addresses would select them.\n",
        anonymous);
  }
  return policy;
}

}  // namespace vmem::tools
