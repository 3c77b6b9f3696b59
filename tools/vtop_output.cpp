// SPDX-License-Identifier: MIT
#include "vtop_output.hpp"

#include <algorithm>
#include <array>
#include <tuple>

#include "vma_json.hpp"

namespace vmem::tools {
namespace {

struct ColumnInfo {
  Column column;
  std::string_view name;
  unsigned width;
  bool right;
};

// Widths hold what is usual; a longer cell pushes the rest of its line.
constexpr auto column_table = std::to_array<ColumnInfo>({
    {Column::va, "va", 14, false},          {Column::end, "end", 14, false},
    {Column::size, "size", 7, true},        {Column::state, "state", 8, false},
    {Column::pa, "pa", 13, false},          {Column::pfn, "pfn", 10, false},
    {Column::leaf, "leaf", 5, true},        {Column::bits, "bits", 20, false},
    {Column::swap, "swap", 12, false},      {Column::pte, "pte", 24, false},
    {Column::cache, "cache", 5, false},     {Column::backend, "backend", 7, false},
    {Column::perms, "perms", 5, false},     {Column::offset, "offset", 8, false},
    {Column::dev, "dev", 6, false},         {Column::inode, "inode", 8, true},
    {Column::vma_class, "class", 9, false}, {Column::kind, "kind", 13, false},
    {Column::flags, "flags", 44, false},    {Column::mapcount, "mapcount", 8, true},
    {Column::memcg, "memcg", 6, true},      {Column::node, "node", 4, true},
    {Column::region, "region", 12, false},  {Column::vmflags, "vmflags", 26, false},
    {Column::name, "name", 32, false},      {Column::reason, "reason", 24, false},
});

const ColumnInfo& info(Column column) { return column_table[static_cast<std::size_t>(column)]; }

constexpr bool in_order() {
  for (std::size_t i = 0; i < column_table.size(); ++i) {
    if (static_cast<std::size_t>(column_table[i].column) != i) return false;
  }
  return true;
}
static_assert(in_order());

struct BitName {
  std::uint8_t bit;
  std::string_view name;
};
constexpr auto bit_names = std::to_array<BitName>({
    {page_bit::soft_dirty, "soft-dirty"},
    {page_bit::exclusive, "exclusive"},
    {page_bit::uffd_wp, "uffd-wp"},
    {page_bit::file, "file"},
    {page_bit::leaf_sampled, "leaf-sampled"},
});

std::string join_bits(std::uint8_t bits, std::string_view quote) {
  std::string text;
  for (const BitName& entry : bit_names) {
    if ((bits & entry.bit) == 0) continue;
    if (!text.empty()) text += ',';
    text.append(quote).append(entry.name).append(quote);
  }
  return text;
}

/// Flags of which the kernel's word says nothing stand with a '?'.
std::string flags_text(const FrameFacts& facts) {
  std::string text;
  for (const std::string& name : frame_flag_names(facts.flags | facts.doubtful)) {
    if (!text.empty()) text += ',';
    text += name;
    const std::vector<std::string> doubtful = frame_flag_names(facts.doubtful);
    if (std::ranges::find(doubtful, name) != doubtful.end()) text += '?';
  }
  return text.empty() ? "none" : text;
}

std::string join_flags(std::uint64_t flags, std::string_view quote) {
  std::string text;
  for (const std::string& name : frame_flag_names(flags)) {
    if (!text.empty()) text += ',';
    text.append(quote).append(name).append(quote);
  }
  return text;
}

std::string_view color_of(PageState state) {
  switch (state) {
    case PageState::resident:
      return "32";
    case PageState::absent:
    case PageState::unmapped:
      return "2";
    case PageState::swapped:
      return "36";
    case PageState::guard:
    case PageState::special:
      return "35";
    case PageState::hidden:
    case PageState::unseen:
    case PageState::changed:
      return "33";
  }
  return "0";
}

/// Names of what the page-table entry allows and records; accessed and dirty with a '?' where
/// the pages differ.
std::string join_pte(std::uint16_t pte) {
  std::string text = (pte & pte_bit::writable) != 0 ? "writable" : "read-only";
  text += (pte & pte_bit::user) != 0 ? ",user" : ",no-user";
  text += (pte & pte_bit::executable) != 0 ? ",x" : ",nx";
  if ((pte & pte_bit::accessed) != 0) text += ",accessed";
  if ((pte & pte_bit::accessed_varies) != 0) text += ",accessed?";
  if ((pte & pte_bit::dirty) != 0) text += ",dirty";
  if ((pte & pte_bit::dirty_varies) != 0) text += ",dirty?";
  if ((pte & pte_bit::global) != 0) text += ",global";
  return text;
}

bool pte_known(const Extent& e) { return (e.pte & pte_bit::known) != 0; }

/// The kernel's name of the level whose leaves have this size.
std::string_view leaf_level(unsigned leaf_shift, PageSize page_size) {
  constexpr std::string_view names[] = {"pte", "pmd", "pud", "p4d"};
  const unsigned bits = page_size.shift() - 3;
  const unsigned level =
      leaf_shift < page_size.shift() ? 4 : (leaf_shift - page_size.shift()) / bits;
  return level < std::size(names) ? names[level] : std::string_view{};
}

bool swap_known(const Extent& e) {
  return e.state == PageState::swapped && e.reason == Reason::none;
}

/// A recorded file may hold a frame whose address 64 bits do not.
bool addressable(const Extent& e, PageSize page_size) {
  return e.pfn.value <= (UINT64_MAX >> page_size.shift());
}

/// Why the state is what it is; empty: it speaks for itself.
std::string reason_text(const Row& row) {
  std::string text = reason_of(row.extent);
  if (row.device != nullptr) text += fmt::format(" ({})", printable(*row.device));
  return text;
}

/// The physical address of the byte asked for.
std::uint64_t physical(const Row& row, PageSize page_size) {
  return page_size.address(row.extent.pfn).value + (row.shown - row.extent.va);
}

}  // namespace

std::expected<std::vector<Column>, std::string> parse_columns(std::string_view names) {
  std::vector<Column> columns;
  for (bool more = true; more;) {
    const std::size_t comma = names.find(',');
    const std::string name{names.substr(0, comma)};
    more = comma != std::string_view::npos;
    names.remove_prefix(more ? comma + 1 : names.size());
    std::string lower = name;
    for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
    const ColumnInfo* found = nullptr;
    for (const ColumnInfo& entry : column_table) {
      if (entry.name == lower) found = &entry;
    }
    // What stands before an address's facts is another word for two of them.
    if (lower == "address") found = &info(Column::va);
    if (lower == "leaf size") found = &info(Column::leaf);
    if (found == nullptr) return std::unexpected(name);
    columns.push_back(found->column);
  }
  return columns;
}

std::string column_names() {
  std::string text;
  for (const ColumnInfo& entry : column_table) {
    if (!text.empty()) text += ',';
    text += entry.name;
  }
  return text;
}

std::vector<Column> default_columns(bool frames) {
  using enum Column;
  if (frames) return {va, size, state, pa, pfn, leaf, mapcount, memcg, node, region, flags, name};
  return {va, end, size, state, pa, pfn, leaf, perms, name};
}

bool needs_frames(const std::vector<Column>& columns) {
  return std::ranges::any_of(columns, [](Column column) {
    return column == Column::flags || column == Column::mapcount || column == Column::memcg ||
           column == Column::node || column == Column::region;
  });
}

bool needs_bits(const std::vector<Column>& columns) {
  return std::ranges::find(columns, Column::bits) != columns.end();
}

Classification VmaDetails::classification(const Vma& vma) {
  turn_to(vma);
  if (!classification_) classification_ = inspector_.classify(vma);
  return *classification_;
}

const std::optional<VmFlags>& VmaDetails::flags(const Vma& vma) {
  turn_to(vma);
  if (!flags_) flags_ = inspector_.flags(vma, most_);
  return *flags_;
}

void VmaDetails::turn_to(const Vma& vma) {
  if (vma_ == vma) return;
  vma_ = vma;
  classification_.reset();
  flags_.reset();
}

void Table::heading() {
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    const ColumnInfo& column = info(columns_[i]);
    std::string text(column.name);
    for (char& c : text) c = c >= 'a' && c <= 'z' ? static_cast<char>(c - ('a' - 'A')) : c;
    const bool last = i + 1 == columns_.size();
    if (column.right)
      out_.print("{:>{}}", text, column.width);
    else if (last)
      out_.append(text);
    else
      out_.print("{:<{}}", text, column.width);
    if (!last) out_.append("  ");
  }
  out_.end_line();
}

bool Table::row(const Row& row) {
  std::string& line = out_.text();
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    const ColumnInfo& column = info(columns_[i]);
    const bool last = i + 1 == columns_.size();
    const std::string_view color =
        color_ && columns_[i] == Column::state ? color_of(row.extent.state) : std::string_view{};
    const std::size_t at = line.size();
    if (!color.empty()) line.append("\033[").append(color).append("m");
    const std::size_t text = line.size();
    write_cell(columns_[i], row, line);
    const std::size_t width = line.size() - text;
    const std::size_t padding = width < column.width ? column.width - width : 0;
    if (!color.empty()) line.append("\033[0m");
    if (column.right && padding != 0) line.insert(at, padding, ' ');
    if (!last) line.append(column.right ? 2 : padding + 2, ' ');
  }
  return out_.end_line();
}

bool Table::block(const Row& row) {
  const auto line = [&](std::string_view key, std::string_view value) {
    out_.print("{:<10}  {}", key, value);
    out_.end_line();
  };
  const auto of = [&](Column column) { return cell(column, row); };
  const Extent& e = row.extent;
  line("address", of(Column::va));
  if (row.vma != nullptr) {
    const Vma& vma = *row.vma;
    line("VMA", fmt::format("{:x}-{:x} {} {:08x} {} {}{}{}", vma.range.start.value,
                            vma.range.end.value, permissions(vma), vma.offset, device_number(vma),
                            vma.inode, vma.path.empty() ? "" : " ", printable(vma.path)));
  } else {
    line("VMA", "-");
  }
  std::string state{to_string(e.state)};
  if (color_) state = fmt::format("\033[{}m{}\033[0m", color_of(e.state), state);
  if (e.reason != Reason::none) state += fmt::format(" ({})", reason_text(row));
  line("state", state);
  line("PA", of(Column::pa));
  line("PFN", of(Column::pfn));
  line("page size", human_size(page_size_.bytes(), bytes_));
  line("leaf size", of(Column::leaf));
  if (e.state == PageState::swapped) line("swap", of(Column::swap));
  if (e.bits != 0) line("bits", of(Column::bits));
  if (pte_known(e)) {
    line("PTE", of(Column::pte));
    line("cache", of(Column::cache));
  }
  if (e.backend != Backend::pagemap) line("backend", of(Column::backend));
  if (row.vm_ops != nullptr) line("vm_ops", row.vm_ops->empty() ? "none" : printable(*row.vm_ops));
  if (row.frame != nullptr) {
    line("flags", of(Column::flags));
    line("mapcount", of(Column::mapcount));
    line("memcg", of(Column::memcg));
    line("node", of(Column::node));
    line("region", of(Column::region));
  }
  return !out_.failed();
}

bool Table::walk(const PageWalk& walk) {
  out_.print("  {:<5}  {:<18}  {:<18}  {}", "LEVEL", "ENTRY AT", "RAW", "FLAGS");
  out_.end_line();
  for (const WalkStep& step : walk.steps) {
    out_.print("  {:<5}  {:<#18x}  {:<#18x}  {}", step.level,
               step.table.value + step.index * sizeof step.raw, step.raw, step.flags);
    out_.end_line();
  }
  return !out_.failed();
}

std::string Table::cell(Column column, const Row& row) {
  std::string text;
  write_cell(column, row, text);
  return text;
}

void Table::write_cell(Column column, const Row& row, std::string& text) {
  const Extent& e = row.extent;
  const FrameFacts none;
  const FrameFacts& facts = row.frame != nullptr ? row.frame->facts : none;
  const auto known = [&](std::uint8_t fact) { return (facts.known & fact) != 0; };
  const auto physical_or = [&](auto&& write) {
    if (e.state == PageState::resident) {
      write();
    } else if (names_frame(e)) {
      // Not mapped there: so that nobody takes it for that.
      text += '(';
      write();
      text += ')';
    } else {
      text += e.state == PageState::hidden ? "hidden" : "-";
    }
  };
  switch (column) {
    case Column::va:
      append_hex(text, row.shown.value);
      return;
    case Column::end:
      // The last page of all ends at 2^64.
      if (e.end().value != 0)
        append_hex(text, e.end().value);
      else
        text += "0x10000000000000000";
      return;
    case Column::size:
      append_size(text, e.bytes, bytes_);
      return;
    case Column::state:
      text += to_string(e.state);
      return;
    case Column::pa:
      physical_or([&] {
        if (addressable(e, page_size_))
          append_hex(text, physical(row, page_size_));
        else
          text += '-';
      });
      return;
    case Column::pfn:
      physical_or([&] { append_hex(text, e.pfn.value); });
      return;
    case Column::leaf:
      if (e.leaf_shift != 0)
        append_size(text, std::uint64_t{1} << e.leaf_shift, bytes_);
      else
        text += '-';
      return;
    case Column::bits:
      text += e.bits != 0 ? join_bits(e.bits, "") : "-";
      return;
    case Column::swap:
      if (e.state != PageState::swapped)
        text += '-';
      else
        text += swap_known(e) ? fmt::format("{}:{:#x}", e.swap_type, e.swap_offset) : "hidden";
      return;
    case Column::pte:
      text += pte_known(e) ? join_pte(e.pte) : "-";
      return;
    case Column::cache:
      text += pte_known(e) ? to_string(pte_bit::cache(e.pte)) : "-";
      return;
    case Column::backend:
      text += to_string(e.backend);
      return;
    case Column::flags:
      if (!known(FrameFacts::has_flags))
        text += '-';
      else
        text += facts.doubtful == 0 && facts.flags != 0 ? join_flags(facts.flags, "")
                                                        : flags_text(facts);
      return;
    case Column::mapcount:
      if (known(FrameFacts::has_mapcount))
        append_decimal(text, facts.mapcount);
      else
        text += '-';
      return;
    case Column::memcg:
      if (known(FrameFacts::has_memcg))
        append_decimal(text, facts.memcg_inode);
      else
        text += '-';
      return;
    case Column::node:
      if (row.frame != nullptr && row.frame->node)
        append_decimal(text, *row.frame->node);
      else
        text += '-';
      return;
    case Column::region:
      text += row.frame != nullptr && row.frame->region != nullptr ? printable(*row.frame->region)
                                                                   : "-";
      return;
    case Column::reason:
      if (e.reason != Reason::none)
        text += reason_text(row);
      else
        text += '-';
      return;
    default:
      break;
  }
  if (row.vma == nullptr) {
    text += '-';
    return;
  }
  const Vma& vma = *row.vma;
  switch (column) {
    case Column::perms:
      text += permissions(vma);
      return;
    case Column::offset:
      text += fmt::format("{:08x}", vma.offset);
      return;
    case Column::dev:
      text += device_number(vma);
      return;
    case Column::inode:
      append_decimal(text, vma.inode);
      return;
    case Column::vma_class:
      text += to_string(details_.classification(vma).vma_class);
      return;
    case Column::kind:
      text += to_string(details_.classification(vma).kind);
      return;
    case Column::vmflags: {
      const auto& flags = details_.flags(vma);
      if (flags)
        append_printable(text, flags->text());  // a recording's may be anything
      else
        text += '-';
      return;
    }
    default:
      if (vma.path.empty())
        text += '-';
      else
        append_printable(text, vma.path);
      return;
  }
}

void JsonResults::newline() {
  if (lines_) out_.end_line();
}

void JsonResults::begin(std::string_view prologue, const Process& process) {
  out_.append(prologue);
  out_.append(",");
  newline();
  out_.print("\"process\":{{\"pid\":{},{},\"start_time\":", process.pid(),
             json_name("comm", process.comm()));
  if (process.start_time())
    out_.print("{}", *process.start_time());
  else
    out_.append("null");
  out_.append("},");
  newline();
  out_.append("\"results\":[");
}

void JsonResults::group(const Row& row) {
  const Vma* const vma = row.vma;
  if (any_group_) out_.append("]},");
  newline();
  out_.append("{\"vma\":");
  if (vma == nullptr) {
    out_.append("null");
    vma_.reset();
  } else {
    out_.append("{");
    out_.append(vma_json(*vma, details_.classification(*vma), details_.flags(*vma)));
    if (row.vm_ops != nullptr) out_.print(",{}", json_name("vm_ops", *row.vm_ops));
    out_.append("}");
    vma_ = *vma;
  }
  out_.append(",\"extents\":[");
  any_group_ = true;
  any_extent_ = false;
}

bool JsonResults::row(const Row& row) {
  const bool same_group = any_group_ && (row.vma == nullptr ? !vma_ : vma_ == *row.vma);
  if (!same_group) group(row);
  if (any_extent_) out_.append(",");
  any_extent_ = true;
  newline();
  const Extent& e = row.extent;
  out_.append(R"({"va":")");
  out_.hex(row.shown.value);
  out_.append(R"(","bytes":)");
  out_.decimal(e.bytes);
  out_.append(R"(,"state":")");
  out_.append(to_string(e.state));
  if (e.reason == Reason::none)
    out_.append(R"(","reason":null)");
  else
    out_.print(R"(","reason":{})", json_string(reason_of(e)));
  if (e.state == PageState::resident) {
    if (addressable(e, page_size_)) {
      out_.append(R"(,"pa":")");
      out_.hex(physical(row, page_size_));
      out_.append(R"(","pfn":")");
    } else {
      out_.append(R"(,"pa":null,"pfn":")");
    }
    out_.hex(e.pfn.value);
    out_.append("\"");
  } else {
    out_.append(R"(,"pa":null,"pfn":null)");
  }
  // Most extents differ in what stands before this alone.
  const bool plain = row.frame == nullptr && row.walk == nullptr && e.state != PageState::swapped &&
                     e.state != PageState::special && e.state != PageState::guard;
  const auto likeness = std::tuple{e.leaf_shift, e.bits, e.pte, e.backend};
  const auto known = std::ranges::find_if(tails_, [&](const Tail& t) { return t.of == likeness; });
  if (plain && known != tails_.end()) {
    out_.append(known->text);
  } else {
    const std::size_t at = out_.text().size();
    tail(row);
    if (plain) {
      tails_[oldest_tail_] = {.of = likeness, .text = out_.text().substr(at)};
      oldest_tail_ = (oldest_tail_ + 1) % tails_.size();
    }
  }
  return out_.relieve();
}

void JsonResults::tail(const Row& row) {
  const Extent& e = row.extent;
  out_.append(R"(,"leaf_size":)");
  if (e.leaf_shift != 0)
    out_.decimal(std::uint64_t{1} << e.leaf_shift);
  else
    out_.append("null");
  out_.append(R"(,"bits":[)");
  if (e.bits != 0) out_.append(join_bits(e.bits, "\""));
  out_.append("]");
  if (row.frame == nullptr) {
    out_.append(R"(,"frame":null)");
  } else {
    const FrameFacts& f = row.frame->facts;
    if ((f.known & FrameFacts::has_flags) != 0) {
      out_.print(R"(,"frame":{{"flags":[{}],"doubtful":[{}],"raw":"{:#x}")",
                 join_flags(f.flags, "\""), join_flags(f.doubtful, "\""), f.raw());
    } else {
      out_.append(R"(,"frame":{"flags":null,"doubtful":null,"raw":null)");
    }
    const auto number = [&](std::string_view key, bool known, std::uint64_t value) {
      if (known)
        out_.print(R"(,"{}":{})", key, value);
      else
        out_.print(R"(,"{}":null)", key);
    };
    number("mapcount", (f.known & FrameFacts::has_mapcount) != 0, f.mapcount);
    number("memcg", (f.known & FrameFacts::has_memcg) != 0, f.memcg_inode);
    number("node", row.frame->node.has_value(), row.frame->node.value_or(0));
    if (row.frame->region != nullptr)
      out_.print(",{}}}", json_name("region", *row.frame->region));
    else
      out_.append(R"(,"region":null})");
  }
  pte(row);
  if (e.state != PageState::swapped)
    out_.append(R"(,"swap":null)");
  else if (swap_known(e))
    out_.print(R"(,"swap":{{"type":{},"offset":{}}})", e.swap_type, e.swap_offset);
  else
    out_.append(R"(,"swap":{"type":null,"offset":null})");
  entry(row);
  out_.append(R"(,"backend":")");
  out_.append(to_string(e.backend));
  out_.append("\"}");
}

/// What maps nothing and is no swap.
void JsonResults::entry(const Row& row) {
  const Extent& e = row.extent;
  if (e.state != PageState::special && e.state != PageState::guard)
    return out_.append(R"(,"entry":null)");
  const std::string_view kind = entry_kind(e);
  if (kind.empty())
    out_.append(R"(,"entry":{"kind":null)");
  else
    out_.print(R"(,"entry":{{"kind":"{}")", kind);
  if (names_frame(e))
    out_.print(R"(,"pfn":"{:#x}","type":{})", e.pfn.value, e.swap_type);
  else
    out_.append(R"(,"pfn":null,"type":null)");
  out_.print(R"(,"device":{}}})", row.device != nullptr ? json_string(*row.device) : "null");
}

void JsonResults::pte(const Row& row) {
  const Extent& e = row.extent;
  if (!pte_known(e) && row.walk == nullptr) {
    out_.append(R"(,"pte":null)");
    return;
  }
  std::string_view level = leaf_level(e.leaf_shift, page_size_);
  if (row.walk != nullptr && !row.walk->steps.empty()) level = row.walk->steps.back().level;
  const auto name = [&](std::string_view text) {
    if (text.empty())
      out_.append("null");
    else
      out_.print("\"{}\"", text);
  };
  out_.append(R"(,"pte":{"level":)");
  name(level);
  if (row.walk != nullptr && !row.walk->steps.empty())
    out_.print(R"(,"raw":"{:#x}")", row.walk->steps.back().raw);
  else
    out_.append(R"(,"raw":null)");
  const auto flag = [&](std::string_view key, std::uint16_t bit, std::uint16_t varies = 0) {
    const bool known = pte_known(e) && (e.pte & varies) == 0;
    out_.print(R"(,"{}":{})", key, !known ? "null" : (e.pte & bit) != 0 ? "true" : "false");
  };
  flag("writable", pte_bit::writable);
  flag("user", pte_bit::user);
  flag("executable", pte_bit::executable);
  flag("accessed", pte_bit::accessed, pte_bit::accessed_varies);
  flag("dirty", pte_bit::dirty, pte_bit::dirty_varies);
  out_.append(R"(,"cache":)");
  const CacheAttribute cache = pte_bit::cache(e.pte);
  name(cache == CacheAttribute::unknown ? std::string_view{} : to_string(cache));
  if (row.walk == nullptr || !row.every_level) {
    out_.append(R"(,"entries":null})");
    return;
  }
  out_.append(R"(,"entries":[)");
  for (const WalkStep& step : row.walk->steps) {
    if (&step != row.walk->steps.data()) out_.append(",");
    out_.print(R"({{"level":"{}","table":"{:#x}","index":{},"raw":"{:#x}","flags":[)", step.level,
               step.table.value, step.index, step.raw);
    for (std::string_view rest = step.flags; !rest.empty();) {
      const std::size_t comma = std::min(rest.find(','), rest.size());
      if (rest.data() != step.flags.data()) out_.append(",");
      out_.append(json_string(rest.substr(0, comma)));
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    out_.append("]}");
  }
  out_.append("]}");
}

void JsonResults::end(std::string_view error) {
  if (any_group_) out_.append("]}");
  newline();
  out_.print("],\"error\":{}}}", error.empty() ? "null" : json_string(error));
  out_.end_line();
}

}  // namespace vmem::tools
