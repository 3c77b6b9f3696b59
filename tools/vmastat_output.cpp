// SPDX-License-Identifier: MIT
#include "vmastat_output.hpp"

#include <algorithm>
#include <array>

#include "vma_json.hpp"
#include "vmem/frames.hpp"

namespace vmem::tools {
namespace {

using enum StatColumn;

struct ColumnInfo {
  StatColumn column;
  std::string_view name;
  unsigned width;
  bool right;
  std::uint32_t sums = 0;  ///< that must be known
};

namespace u = unknown_sum;

// Widths hold what is usual; a longer cell pushes the rest of its line.
constexpr auto column_table = std::to_array<ColumnInfo>({
    {time, "time", 8, false},
    {pid, "pid", 7, true},
    {comm, "comm", 15, false},
    {start, "start", 14, false},
    {end, "end", 14, false},
    {perms, "perms", 5, false},
    {offset, "offset", 8, false},
    {dev, "dev", 6, false},
    {inode, "inode", 8, true},
    {vma_class, "class", 9, false},
    {kind, "kind", 13, false},
    {vmas, "vmas", 5, true, u::mapping},
    {size, "size", 7, true, u::mapping},
    {mapped, "mapped", 7, true, u::rss | u::device | u::hugetlb | u::uncounted},
    {rss, "rss", 7, true, u::rss},
    {drss, "drss", 8, true, u::rss},
    {pss, "pss", 7, true, u::pss},
    {uss, "uss", 7, true, u::uss},
    {shared, "shared", 7, true, u::rss | u::uss},
    {swap, "swap", 7, true, u::swap},
    {dswap, "dswap", 8, true, u::swap},
    {swap_pss, "swap_pss", 8, true, u::swap_pss},
    {pss_dirty, "pss_dirty", 9, true, u::pss_dirty},
    {accessed, "accessed", 8, true, u::accessed},
    {lazyfree, "lazyfree", 8, true, u::lazyfree},
    {locked, "locked", 7, true, u::locked},
    {hugetlb, "hugetlb", 7, true, u::hugetlb},
    {device, "device", 7, true, u::device},
    {ddevice, "ddevice", 8, true, u::device},
    {uncounted, "uncounted", 9, true, u::uncounted},
    {guard, "guard", 7, true, u::mapping},
    {special, "special", 7, true, u::mapping},
    {unseen, "unseen", 7, true, u::mapping},
    {pte, "pte", 7, true, u::leaf},
    {pmd, "pmd", 7, true, u::leaf},
    {pud, "pud", 7, true, u::leaf},
    {leaf, "leaf", 16, false, u::leaf},
    {extents, "extents", 7, true, u::extents},
    {largest, "largest", 7, true, u::extents},
    {runs, "runs", 24, false, u::extents},
    {nodes, "nodes", 8, false, u::nodes},
    {zero, "zero", 7, true, u::frames},
    {ksm, "ksm", 7, true, u::frames | u::ksm},
    {dirty, "dirty", 7, true, u::frames},
    {referenced, "referenced", 10, true, u::frames},
    {active, "active", 7, true, u::frames},
    {mlocked, "mlocked", 7, true, u::frames},
    {flags, "flags", 32, false, u::frames},
    {folios, "folios", 16, false, u::frames},
    {policy, "policy", 12, false},
    {split, "split", 12, false},
    {thp, "thp", 11, false},
    {name, "name", 0, false},
});

// The enumerators stand in the order of the table.
const ColumnInfo& info(StatColumn column) { return column_table[static_cast<std::size_t>(column)]; }

/// kpageflags bits that have a column.
std::optional<unsigned> flag_bit(StatColumn column) {
  switch (column) {
    case zero:
      return 24;
    case ksm:
      return 21;
    case dirty:
      return 4;
    case referenced:
      return 2;
    case active:
      return 6;
    case mlocked:
      return 33;
    default:
      return {};
  }
}

/// Of leaves above base pages.
[[gnu::noinline]] std::uint64_t large_leaf_bytes(StatColumn column, const MemorySums& sums,
                                                 PageSize page_size) {
  // Most have none: spares their rows the list.
  const auto& leaves = sums.leaf.entries();
  if (leaves.empty() || leaves.back().first <= page_size.shift()) return 0;
  const std::vector<unsigned> shifts = leaf_shifts(page_size);
  const std::size_t level = static_cast<std::size_t>(column) - static_cast<std::size_t>(pte);
  return level < shifts.size() ? sums.leaf.at(shifts[level]) : 0;
}

std::uint64_t leaf_bytes(StatColumn column, const MemorySums& sums, PageSize page_size) {
  return column == pte ? sums.leaf.at(page_size.shift())
                       : large_leaf_bytes(column, sums, page_size);
}

std::uint64_t MemorySums::* delta_of(StatColumn column) {
  switch (column) {
    case drss:
      return &MemorySums::rss;
    case dswap:
      return &MemorySums::swap;
    case ddevice:
      return &MemorySums::device;
    default:
      return nullptr;
  }
}

bool is_size(StatColumn column) {
  return column != vmas && column != extents && column != pid && column != inode;
}

}  // namespace

std::string shift_label(unsigned shift) {
  constexpr std::string_view units = "BKMGTPE";
  return fmt::format("{}{}", std::uint64_t{1} << (shift % 10), units[shift / 10]);
}

std::optional<StatColumn> stat_column(std::string_view wanted, const ColumnWords& words) {
  const auto lowered = [](std::string_view text) {
    std::string lower{text};
    for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    return lower;
  };
  const std::string lower = lowered(wanted);
  const std::vector<unsigned> shifts = leaf_shifts(words.page_size);
  for (std::size_t level = 0; level < shifts.size(); ++level) {
    if (lower == lowered(shift_label(shifts[level])))
      return static_cast<StatColumn>(static_cast<std::size_t>(pte) + level);
  }
  // What there is a row for: its key is in the name's place.
  if (words.by != "vma" && lower == words.by && words.by != "class" && words.by != "kind")
    return name;
  for (const ColumnInfo& entry : column_table) {
    if (entry.name == lower) return entry.column;
  }
  return {};
}

std::expected<std::vector<StatColumn>, std::string> parse_stat_columns(std::string_view names,
                                                                       const ColumnWords& words) {
  std::vector<StatColumn> columns;
  for (bool more = true; more;) {
    const std::size_t comma = names.find(',');
    const std::string_view word = names.substr(0, comma);
    more = comma != std::string_view::npos;
    names.remove_prefix(more ? comma + 1 : names.size());
    const auto column = stat_column(word, words);
    if (!column) return std::unexpected(std::string(word));
    columns.push_back(*column);
  }
  return columns;
}

std::string stat_column_names() {
  std::string text;
  for (const ColumnInfo& entry : column_table) {
    if (!text.empty()) text += ',';
    text += entry.name;
  }
  return text;
}

std::string stat_column_words(const ColumnWords& words) {
  const std::vector<unsigned> shifts = leaf_shifts(words.page_size);
  std::string text = "columns: " + stat_column_names() + "; ";
  for (std::size_t level = 0; level < shifts.size(); ++level) {
    const auto column = static_cast<StatColumn>(static_cast<std::size_t>(pte) + level);
    text += fmt::format("{}{}={}", level != 0 ? ", " : "", shift_label(shifts[level]),
                        info(column).name);
  }
  return text;
}

std::string_view stat_column_name(StatColumn column) { return info(column).name; }

std::uint32_t shown_sums(StatColumn column) { return info(column).sums; }

std::uint32_t shown_sums(const std::vector<StatColumn>& columns) {
  std::uint32_t sums = 0;
  for (const StatColumn column : columns) sums |= info(column).sums;
  return sums;
}

bool needs_sharing(const std::vector<StatColumn>& columns) {
  return (shown_sums(columns) & (u::pss | u::uss)) != 0;
}

bool needs_frames(const std::vector<StatColumn>& columns) {
  return (shown_sums(columns) & u::frames) != 0;
}

bool needs_smaps(const std::vector<StatColumn>& columns) {
  return (shown_sums(columns) & u::smaps) != 0;
}

bool needs_policy(const std::vector<StatColumn>& columns) {
  return std::ranges::any_of(columns, [](StatColumn c) { return c == policy || c == split; });
}

bool sorts_descending(StatColumn column) {
  return info(column).right && column != pid && column != inode;
}

std::optional<std::uint64_t> stat_number(StatColumn column, const StatRow& row,
                                         PageSize page_size) {
  const MemorySums& s = *row.sums;
  if (!s.known(info(column).sums)) return {};
  switch (column) {
    case pid:
      return static_cast<std::uint64_t>(row.pid);
    case start:
      return row.vma != nullptr ? std::optional(row.vma->range.start.value) : std::nullopt;
    case end:
      return row.vma != nullptr ? std::optional(row.vma->range.end.value) : std::nullopt;
    case offset:
      return row.vma != nullptr ? std::optional(row.vma->offset) : std::nullopt;
    case inode:
      return row.vma != nullptr ? std::optional(row.vma->inode) : std::nullopt;
    case vmas:
      return s.vmas;
    case size:
      return s.size;
    case mapped:
      return s.mapped();
    case rss:
    case drss:
      return s.rss;
    case pss:
      return s.pss();
    case uss:
      return s.uss;
    case shared:
      return s.rss - std::min(s.uss, s.rss);
    case swap:
    case dswap:
      return s.swap;
    case swap_pss:
      return s.swap_pss;
    case pss_dirty:
      return s.pss_dirty;
    case accessed:
      return s.accessed;
    case lazyfree:
      return s.lazyfree;
    case locked:
      return s.locked;
    case hugetlb:
      return s.hugetlb;
    case device:
    case ddevice:
      return s.device;
    case uncounted:
      return s.uncounted;
    case guard:
      return s.guard;
    case special:
      return s.special;
    case unseen:
      return s.unseen;
    case pte:
    case pmd:
    case pud:
      // Bytes of unknown leaves may be among them.
      return s.leaf.at(0) == 0 ? std::optional(leaf_bytes(column, s, page_size)) : std::nullopt;
    case extents:
      return s.extents;
    case largest:
      return s.largest_extent;
    default:
      if (const auto bit = flag_bit(column)) return s.flags.at(*bit);
      return {};
  }
}

void StatTable::heading() {
  const std::vector<unsigned> shifts = leaf_shifts(page_size_);
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    const ColumnInfo& column = info(columns_[i]);
    std::string text(column.name);
    for (char& c : text) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - ('a' - 'A')) : c;
    if (columns_[i] >= pte && columns_[i] <= pud) {
      const std::size_t level =
          static_cast<std::size_t>(columns_[i]) - static_cast<std::size_t>(pte);
      if (level < shifts.size()) text = shift_label(shifts[level]);
    }
    if (i != 0) out_.append("  ");
    if (column.right)
      out_.print("{:>{}}", text, column.width);
    else if (i + 1 == columns_.size())
      out_.append(text);
    else
      out_.print("{:<{}}", text, column.width);
  }
  out_.end_line();
}

bool StatTable::row(const StatRow& row) {
  std::string_view color;
  if (color_ && row.vma != nullptr) {
    switch (row.classification.vma_class) {
      case VmaClass::device:
        color = "\033[33m";
        break;
      case VmaClass::hugepage:
        color = "\033[36m";
        break;
      case VmaClass::file:
        color = "\033[34m";
        break;
      case VmaClass::special:
        color = "\033[2m";
        break;
      case VmaClass::anonymous:
        break;
    }
  }
  std::string& line = out_.text();
  line.append(color);
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    const ColumnInfo& column = info(columns_[i]);
    if (i != 0) line.append("  ");
    const std::size_t at = line.size();
    write_cell(columns_[i], row, line);
    const std::size_t written = line.size() - at;
    if (written >= column.width) continue;
    if (column.right)
      line.insert(at, column.width - written, ' ');
    else if (i + 1 != columns_.size())
      line.append(column.width - written, ' ');
  }
  if (!color.empty()) out_.append("\033[0m");
  return out_.end_line();
}

std::string StatTable::cell(StatColumn column, const StatRow& row) const {
  std::string text;
  write_cell(column, row, text);
  return text;
}

void StatTable::write_cell(StatColumn column, const StatRow& row, std::string& text) const {
  const MemorySums& s = *row.sums;
  const auto number = stat_number(column, row, page_size_);
  if (const auto field = delta_of(column)) {
    if (!number || row.before == nullptr || !row.before->known(info(column).sums)) {
      text += '-';
      return;
    }
    const std::uint64_t was = row.before->*field;
    if (*number == was) {
      text += '.';
      return;
    }
    text += *number > was ? '+' : '-';
    append_size(text, *number > was ? *number - was : was - *number, bytes_);
    return;
  }
  if (number && column != start && column != end && column != offset && column != pid &&
      column != inode) {
    if (is_size(column))
      append_size(text, *number, bytes_);
    else
      append_decimal(text, *number);
    return;
  }
  const auto list = [&](const Tally& tally, auto label, bool sizes) {
    if (!s.known(info(column).sums)) {
      text += '-';
      return;
    }
    bool any = false;
    for (const auto& [key, amount] : tally.entries()) {
      if (amount == 0) continue;
      if (any) text += ',';
      any = true;
      text += label(key);
      text += '=';
      if (sizes)
        append_size(text, amount, bytes_);
      else
        append_decimal(text, amount);
    }
    if (!any) text += '-';
  };
  const auto by_size = [](unsigned shift) {
    return shift == 0 ? std::string("unknown") : shift_label(shift);
  };
  const auto word = [&](std::string_view known) {
    if (known.empty())
      text += '-';
    else
      append_printable(text, known);
  };
  switch (column) {
    case time:
      return word(row.time);
    case policy:
      return word(row.policy);
    case split:
      return word(row.split);
    case thp:
      return word(row.thp);
    case pid:
      if (row.pid == 0)
        text += '-';
      else
        append_decimal(text, static_cast<std::uint64_t>(row.pid));
      return;
    case comm:
      text += row.comm.empty() ? "-" : printable(row.comm);
      return;
    case leaf:
      return list(s.leaf, by_size, true);
    case runs:
      return list(s.runs, by_size, false);
    case nodes:
      return list(s.nodes, [](unsigned node) { return std::to_string(node); }, true);
    case flags:
      return list(
          s.flags,
          [&](unsigned bit) {
            return frame_flag_name(bit) + (bit == 21 && !s.known(u::ksm) ? "?" : "");
          },
          true);
    case folios:
      return list(s.folios, by_size, true);
    case name:
      if (row.vma == nullptr || row.branch)
        text += row.key.empty() ? "-" : printable(row.key);
      else
        append_printable(text, row.vma->path.empty() ? "-" : std::string_view(row.vma->path));
      if (s.changed != 0) text += " (changed while it was read)";
      return;
    default:
      break;
  }
  if (row.vma == nullptr) {
    if (column == vma_class && row.group_class)
      text += to_string(*row.group_class);
    else if (column == kind && row.group_kind)
      text += to_string(*row.group_kind);
    else
      text += '-';
    return;
  }
  switch (column) {
    case start:
      return append_hex(text, row.vma->range.start.value);
    case end:
      return append_hex(text, row.vma->range.end.value);
    case perms:
      text += permissions(*row.vma);
      return;
    case offset:
      fmt::format_to(std::back_inserter(text), "{:08x}", row.vma->offset);
      return;
    case dev:
      text += device_number(*row.vma);
      return;
    case inode:
      return append_decimal(text, row.vma->inode);
    case vma_class:
      text += to_string(row.classification.vma_class);
      return;
    case kind:
      text += to_string(row.classification.kind);
      return;
    default:
      text += '-';
      return;
  }
}

void append_sums(Output& out, const MemorySums& sums, PageSize page_size, bool sharing,
                 bool frames) {
  bool first = true;
  const auto key = [&](std::string_view text) {
    out.append(first ? "\"" : ",\"");
    out.append(text);
    out.append("\":");
    first = false;
  };
  const auto number = [&](std::string_view text, std::uint64_t value, std::uint32_t which = 0,
                          bool asked = true) {
    key(text);
    if (asked && sums.known(which))
      out.decimal(value);
    else
      out.append("null");
  };
  const auto object = [&](std::string_view text, const Tally& tally, std::uint32_t which,
                          auto label) {
    key(text);
    if (!sums.known(which)) {
      out.append("null");
      return;
    }
    out.append("{");
    bool any = false;
    for (const auto& [entry, amount] : tally.entries()) {
      out.append(any ? ",\"" : "\"");
      out.append(label(entry));
      out.append("\":");
      out.decimal(amount);
      any = true;
    }
    out.append("}");
  };
  const auto by_size = [](unsigned shift) {
    return shift == 0 ? std::string("unknown") : shift_label(shift);
  };
  number("vmas", sums.vmas, u::mapping);
  number("size", sums.size, u::mapping);
  number("rss", sums.rss, u::rss);
  number("pss", sums.pss(), u::pss, sharing);
  number("uss", sums.uss, u::uss, sharing);
  number("swap", sums.swap, u::swap);
  number("swap_pss", sums.swap_pss, u::swap_pss);
  number("pss_dirty", sums.pss_dirty, u::pss_dirty);
  number("accessed", sums.accessed, u::accessed);
  number("lazyfree", sums.lazyfree, u::lazyfree);
  number("locked", sums.locked, u::locked);
  number("hugetlb", sums.hugetlb, u::hugetlb);
  number("hugetlb_private", sums.hugetlb_private, u::hugetlb);
  number("device", sums.device, u::device);
  number("mapped", sums.mapped(), u::rss | u::device | u::hugetlb | u::uncounted);
  number("uncounted", sums.uncounted, u::uncounted);
  number("guard", sums.guard, u::mapping);
  number("special", sums.special, u::mapping);
  number("hidden", sums.hidden, u::mapping);
  number("unseen", sums.unseen, u::mapping);
  number("changed", sums.changed, u::mapping);
  // The machine's own leaf sizes are there even where nothing has them.
  Tally leaf = sums.leaf;
  for (const unsigned shift : leaf_shifts(page_size)) leaf.add(shift, 0);
  object("leaf", leaf, u::leaf, by_size);
  number("extents", sums.extents, u::extents);
  number("largest_extent", sums.largest_extent, u::extents);
  object("runs", sums.runs, u::extents, by_size);
  object("nodes", sums.nodes, u::nodes, [](unsigned node) { return std::to_string(node); });
  if (!frames) {
    key("frames");
    out.append("null");
    return;
  }
  key("frames");
  if (!sums.known(u::frames)) {
    out.append("null");
    return;
  }
  out.append("{");
  first = true;
  number("bytes", sums.framed);
  object("flags", sums.flags, 0, [&](unsigned bit) {
    return frame_flag_name(bit) + (bit == 21 && !sums.known(u::ksm) ? "?" : "");
  });
  object("folios", sums.folios, 0, by_size);
  out.append("}");
}

}  // namespace vmem::tools
