// SPDX-License-Identifier: MIT
/// How vmastat shows sums: columns of a table whose rows stream, and JSON.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "render.hpp"
#include "vmem/stats.hpp"

namespace vmem::tools {

/// What one line says: of a VMA, or of a group that `key` names.
struct StatRow {
  pid_t pid = 0;
  std::string_view comm;
  const Vma* vma = nullptr;  ///< null: a group or a total
  Classification classification;
  std::string_view key;
  const MemorySums* sums = nullptr;
  const MemorySums* before = nullptr;  ///< --watch: of the last look; null: there was none
  bool branch = false;  ///< --tree: `key` stands for the name
  // Of a group: what all its mappings are; empty: they differ.
  std::optional<VmaClass> group_class;
  std::optional<VmaKind> group_kind;
  // Of a mapping, where asked for; empty: not known.
  std::string_view policy;
  std::string_view split;
  std::string_view thp;
  std::string_view time;  ///< of the look, "12:34:56"
};

enum class StatColumn : std::uint8_t {
  time,
  pid,
  comm,
  start,
  end,
  perms,
  offset,
  dev,
  inode,
  vma_class,
  kind,
  vmas,
  size,
  mapped,
  rss,
  drss,
  pss,
  uss,
  shared,
  swap,
  dswap,
  swap_pss,
  pss_dirty,
  accessed,
  lazyfree,
  locked,
  hugetlb,
  device,
  ddevice,
  uncounted,
  guard,
  special,
  unseen,
  pte,
  pmd,
  pud,
  leaf,
  extents,
  largest,
  runs,
  nodes,
  zero,
  ksm,
  dirty,
  referenced,
  active,
  mlocked,
  flags,
  folios,
  policy,
  split,
  thp,
  name,
};

/// How columns are called on a machine: by their names and, of leaf sizes, by the headings that it
/// has ("2M"), in upper or lower case; and what `by` groups by is its key's name.
struct ColumnWords {
  PageSize page_size;
  std::string_view by = "vma";
};
std::expected<std::vector<StatColumn>, std::string> parse_stat_columns(std::string_view names,
                                                                       const ColumnWords& words);
std::optional<StatColumn> stat_column(std::string_view wanted, const ColumnWords& words);
std::string stat_column_names();
/// The same for a hint, with the machine's headings.
std::string stat_column_words(const ColumnWords& words);
std::string_view stat_column_name(StatColumn column);
/// Whether one of them takes pss, or uss; kpageflags.
bool needs_sharing(const std::vector<StatColumn>& columns);
bool needs_frames(const std::vector<StatColumn>& columns);
bool needs_smaps(const std::vector<StatColumn>& columns);
bool needs_policy(const std::vector<StatColumn>& columns);
/// The sums that the columns show (unknown_sum).
std::uint32_t shown_sums(const std::vector<StatColumn>& columns);
std::uint32_t shown_sums(StatColumn column);

/// The number that a column sorts by; empty where it is not known, or the column is text.
std::optional<std::uint64_t> stat_number(StatColumn column, const StatRow& row, PageSize page_size);
/// Whether the column holds a number of which more is of more interest.
bool sorts_descending(StatColumn column);

class StatTable {
 public:
  StatTable(Output& out, PageSize page_size, std::vector<StatColumn> columns, bool bytes,
            bool color)
      : out_(out),
        page_size_(page_size),
        columns_(std::move(columns)),
        bytes_(bytes),
        color_(color) {}
  void heading();
  bool row(const StatRow& row);
  const std::vector<StatColumn>& columns() const { return columns_; }
  /// The cell's text, without padding.
  std::string cell(StatColumn column, const StatRow& row) const;

 private:
  void write_cell(StatColumn column, const StatRow& row, std::string& text) const;
  Output& out_;
  PageSize page_size_;
  std::vector<StatColumn> columns_;
  bool bytes_;
  bool color_;
};

/// "4K", "2M", "1G"
std::string shift_label(unsigned shift);

/// "size":…, and so on: all sums, without braces. What is unknown is null. `sharing`, `frames`:
/// what was asked for; the rest is null.
void append_sums(Output& out, const MemorySums& sums, PageSize page_size, bool sharing,
                 bool frames);

}  // namespace vmem::tools
