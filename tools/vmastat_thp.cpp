// SPDX-License-Identifier: MIT
#include "vmastat_thp.hpp"

#include <algorithm>
#include <array>
#include <charconv>

namespace vmem::tools {
namespace {

const std::string folder = "sys/kernel/mm/transparent_hugepage/";

/// "always [madvise] never": "madvise".
std::string chosen(std::string text) {
  const std::size_t open = text.find('[');
  const std::size_t close = text.find(']', open);
  if (close == std::string::npos) return text;
  return text.substr(open + 1, close - open - 1);
}

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

struct Word {
  std::string_view word, meaning;
};
constexpr auto words = std::to_array<Word>({
    {"huge", "all that aligned huge pages can cover is on huge pages"},
    {"partly",
     "some is on huge pages, and nothing forbids the rest: see the counters of fallback, "
     "and khugepaged"},
    {"eligible",
     "nothing forbids huge pages: there were none free when memory was touched (see the "
     "counters of fallback, and defrag), or khugepaged has not come by yet"},
    {"untouched", "huge pages are possible, and nothing is mapped yet"},
    {"size", "the mapping is smaller than a huge page"},
    {"alignment", "no whole aligned huge page lies in the mapping"},
    {"offset", "addresses and offsets in the file are not aligned alike"},
    {"nohugepage", "madvise(MADV_NOHUGEPAGE)"},
    {"prctl", "prctl(PR_SET_THP_DISABLE) of the process, or of one before it"},
    {"never", "the machine's setting for this size is never"},
    {"madvise", "the machine's setting is madvise, and the mapping has no MADV_HUGEPAGE"},
    {"file", "files of this file system are mapped by base pages"},
    {"special", "a driver's mapping: the kernel puts no huge pages of its own there"},
    {"hugetlb", "hugetlb pages, which are another kind of huge page"},
    {"ineligible",
     "the kernel says that no huge page may be put here (THPeligible), for a reason of "
     "its own: a stack, a mapping of uprobes, a mount without huge="},
});

bool has_any(const VmFlags& flags, std::initializer_list<std::string_view> codes) {
  return std::ranges::any_of(codes, [&](std::string_view code) { return flags.has(code); });
}

void append_numbers(Output& out, const ThpMachine::Numbers& numbers) {
  out.append("{");
  for (const auto& [name, value] : numbers)
    out.print("{}{}:{}", &name != &numbers.front().first ? "," : "", json_string(name), value);
  out.append("}");
}

std::string string_or_null(const std::string& text) {
  return text.empty() ? std::string("null") : json_string(text);
}

}  // namespace

ThpMachine ThpMachine::read(const SysRoot& root) {
  ThpMachine machine;
  // What an older kernel does not have is empty.
  const auto told = [&](const auto& result) {
    if (!result && result.error().code != Errc::not_found && !machine.error)
      machine.error = result.error();
    return result.has_value();
  };
  const auto value_of = [&](const std::string& path) {
    const auto text = root.read_file(path.c_str(), 4096);
    return told(text) ? text->substr(0, text->find('\n')) : std::string{};
  };
  machine.enabled = chosen(value_of(folder + "enabled"));
  machine.shmem_enabled = chosen(value_of(folder + "shmem_enabled"));
  machine.defrag = chosen(value_of(folder + "defrag"));
  machine.use_zero_page = value_of(folder + "use_zero_page");
  for (const char* name :
       {"defrag", "max_ptes_none", "max_ptes_swap", "max_ptes_shared", "pages_to_scan",
        "scan_sleep_millisecs", "pages_collapsed", "full_scans"}) {
    std::string value = value_of(folder + "khugepaged/" + name);
    if (!value.empty()) machine.khugepaged.emplace_back(name, std::move(value));
  }
  if (const auto names = root.list(folder.substr(0, folder.size() - 1).c_str()); told(names)) {
    for (std::string_view name : *names) {
      const std::string path = folder + std::string(name) + "/";
      if (!name.starts_with("hugepages-") || !name.ends_with("kB")) continue;
      name.remove_prefix(10);
      name.remove_suffix(2);
      const auto kib = number(name);
      if (!kib || *kib > std::uint64_t{1} << 40) continue;
      Size size;
      size.bytes = *kib << 10;
      size.enabled = chosen(value_of(path + "enabled"));
      size.shmem_enabled = chosen(value_of(path + "shmem_enabled"));
      if (const auto stats = root.list((path + "stats").c_str()); told(stats)) {
        for (const std::string& stat : *stats) {
          if (const auto value = number(value_of(path + "stats/" + stat)))
            size.stats.emplace_back(stat, *value);
        }
        std::ranges::sort(size.stats);
      }
      machine.sizes.push_back(std::move(size));
    }
    std::ranges::sort(machine.sizes, {}, &Size::bytes);
  }
  if (const auto text = root.read_file("proc/vmstat"); told(text)) {
    for (std::string_view rest = *text; !rest.empty();) {
      const std::size_t newline = std::min(rest.find('\n'), rest.size());
      const std::string_view line = rest.substr(0, newline);
      rest.remove_prefix(std::min(newline + 1, rest.size()));
      const std::size_t space = line.find(' ');
      if (!line.starts_with("thp_") || space == std::string_view::npos) continue;
      if (const auto value = number(line.substr(space + 1)))
        machine.counters.emplace_back(line.substr(0, space), *value);
    }
  }
  return machine;
}

Result<std::optional<bool>> thp_allowed(const Process& process) {
  auto status = process.read_file("status", 1 << 16);
  if (!status && status.error().code == Errc::not_found) return std::nullopt;
  if (!status) return std::unexpected(std::move(status.error()));
  const std::string_view key = "\nTHP_enabled:\t";
  const std::size_t at = status->find(key);
  if (at == std::string::npos) return std::nullopt;
  return status->compare(at + key.size(), 1, "0") != 0;
}

ThpAnswer thp_of(const ThpMachine& machine, const ThpQuestion& q) {
  const std::uint64_t huge = q.page_size.next_level().bytes();
  ThpAnswer answer;
  if (q.classification.kind == VmaKind::hugetlb) return {"hugetlb", 0};
  const std::uint64_t start = q.vma.range.start.value, end = q.vma.range.end.value;
  const std::uint64_t first = (start + huge - 1) & ~(huge - 1), last = end & ~(huge - 1);
  if (first >= start && first < last) answer.room = last - first;
  // Huge leaves may be among those of unknown size.
  const bool leaves_known = q.sums.known(unknown_sum::leaf) && q.sums.leaf.at(0) == 0;
  std::uint64_t mapped_huge = 0;
  for (const auto& [shift, bytes] : q.sums.leaf.entries())
    if (shift >= q.page_size.next_level().shift()) mapped_huge += bytes;
  const auto why = [&](std::string_view word) {
    answer.why = word;
    return answer;
  };
  if (answer.room != 0 && mapped_huge >= answer.room) return why("huge");
  if (q.classification.vma_class == VmaClass::device ||
      q.classification.vma_class == VmaClass::special ||
      (q.flags && has_any(*q.flags, {"pf", "mm", "io", "de"})))
    return why("special");
  if (end - start < huge) return why("size");
  if (answer.room == 0) return why("alignment");
  if (q.vma.inode != 0 && ((q.vma.offset - start) & (huge - 1)) != 0) {
    answer.room = 0;
    return why("offset");
  }
  if (q.flags && q.flags->has("nh")) return why("nohugepage");
  if (q.allowed == false) return why("prctl");
  const bool anonymous = q.vma.inode == 0;
  if (anonymous || q.kernel_file) {
    std::string setting = anonymous ? machine.enabled : machine.shmem_enabled;
    const bool forced = !anonymous && (setting == "deny" || setting == "force");
    for (const ThpMachine::Size& size : machine.sizes) {
      const std::string& own = anonymous ? size.enabled : size.shmem_enabled;
      if (size.bytes == huge && !own.empty() && own != "inherit" && !forced) setting = own;
    }
    if (setting == "never" || setting == "deny") return why("never");
    if (setting == "madvise" || setting == "advise") {
      if (!q.flags) return why({});
      if (!q.flags->has("hg")) return why("madvise");
    }
    if (setting.empty() && !q.eligible) return why({});
  }
  if (q.eligible == false)
    return why(q.classification.kind == VmaKind::file ? "file" : "ineligible");
  // Without either nothing is known of the mapping.
  if (!q.flags && !q.eligible) return why({});
  if (mapped_huge != 0) return why("partly");
  if (!leaves_known || !q.sums.known(unknown_sum::rss)) return why({});
  return why(q.sums.rss == 0 ? "untouched" : "eligible");
}

std::string_view thp_meaning(std::string_view why) {
  const auto at = std::ranges::find(words, why, &Word::word);
  return at == words.end() ? std::string_view{} : at->meaning;
}

void append_thp_text(Output& out, const ThpMachine& machine) {
  if (!machine.told()) {
    out.append("transparent huge pages: the system does not tell its settings");
    out.end_line();
    return;
  }
  const auto pair = [&](std::string_view name, const std::string& value) {
    if (!value.empty()) out.print(" {}={}", name, printable(value));
  };
  out.append("transparent huge pages:");
  pair("enabled", machine.enabled);
  pair("defrag", machine.defrag);
  pair("shmem_enabled", machine.shmem_enabled);
  pair("use_zero_page", machine.use_zero_page);
  out.end_line();
  for (const ThpMachine::Size& size : machine.sizes) {
    out.print("size {}:", human_size(size.bytes, false));
    pair("enabled", size.enabled);
    pair("shmem_enabled", size.shmem_enabled);
    for (const auto& [name, value] : size.stats)
      if (value != 0) out.print(" {}={}", printable(name), value);
    out.end_line();
  }
  if (!machine.khugepaged.empty()) {
    out.append("khugepaged:");
    for (const auto& [name, value] : machine.khugepaged) pair(name, value);
    out.end_line();
  }
  if (!machine.counters.empty()) {
    out.append("since boot:");
    for (const auto& [name, value] : machine.counters) {
      const std::string_view n = name;
      const bool always = n == "thp_fault_alloc" || n == "thp_fault_fallback" ||
                          n == "thp_collapse_alloc" || n == "thp_collapse_alloc_failed";
      if (always || value != 0) out.print(" {}={}", printable(name), value);
    }
    out.end_line();
  }
}

void append_thp_json(Output& out, const ThpMachine& machine) {
  if (!machine.told()) return out.append("null");
  out.print(R"({{"enabled":{},"defrag":{},"shmem_enabled":{},"use_zero_page":{},"sizes":[)",
            string_or_null(machine.enabled), string_or_null(machine.defrag),
            string_or_null(machine.shmem_enabled), string_or_null(machine.use_zero_page));
  for (const ThpMachine::Size& size : machine.sizes) {
    out.print(R"({}{{"size":{},"enabled":{},"shmem_enabled":{},"stats":)",
              &size != machine.sizes.data() ? "," : "", size.bytes, string_or_null(size.enabled),
              string_or_null(size.shmem_enabled));
    append_numbers(out, size.stats);
    out.append("}");
  }
  out.append("],\"khugepaged\":{");
  for (const auto& [name, value] : machine.khugepaged) {
    const auto plain = number(value);
    out.print("{}{}:{}", &name != &machine.khugepaged.front().first ? "," : "", json_string(name),
              plain ? std::to_string(*plain) : json_string(value));
  }
  out.append("},\"counters\":");
  append_numbers(out, machine.counters);
  out.append("}");
}

}  // namespace vmem::tools
