// SPDX-License-Identifier: MIT
#include "text_table.hpp"

#include <algorithm>
#include <cctype>

namespace vmem::tools {
namespace {

/// Columns of a terminal that UTF-8 text takes: one for each code point.
std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      text, [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

char lower_case(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

}  // namespace

void TextTable::row(std::vector<std::string> cells, std::string_view color) {
  for (std::string& cell : cells) cell = printable(cell);
  cells.resize(columns_.size());
  rows_.push_back({std::move(cells), color});
}

bool TextTable::print(Output& out, bool headings) {
  std::vector<std::size_t> widths(columns_.size());
  for (std::size_t i = 0; i < columns_.size(); ++i) {
    if (headings) widths[i] = columns_[i].heading.size();
    for (const Row& row : rows_) widths[i] = std::max(widths[i], width(row.cells[i]));
  }
  const auto cell = [&](std::size_t i, std::string_view text) {
    if (i != 0) out.pad(2);
    const std::size_t padding = widths[i] - width(text);
    const bool right = columns_[i].align == Align::right;
    if (right) out.pad(padding);
    out.append(text);
    if (!right && i + 1 < columns_.size()) out.pad(padding);
  };
  if (headings) {
    for (std::size_t i = 0; i < columns_.size(); ++i) {
      std::string heading(columns_[i].heading);
      for (char& c : heading) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
      cell(i, heading);
    }
    out.end_line();
  }
  for (const Row& row : rows_) {
    out.append(row.color);
    for (std::size_t i = 0; i < columns_.size(); ++i) cell(i, row.cells[i]);
    if (!row.color.empty()) out.append("\033[0m");
    if (!out.end_line()) break;
  }
  rows_.clear();
  return !out.failed();
}

std::expected<std::vector<std::size_t>, std::string> choose_columns(
    std::string_view chosen, std::span<const std::string_view> names) {
  std::vector<std::size_t> columns;
  while (true) {
    const std::size_t comma = chosen.find(',');
    const std::string_view name = chosen.substr(0, comma);
    // A heading is typed as it is printed: in upper case.
    const auto found = std::ranges::find_if(names, [&](std::string_view known) {
      return std::ranges::equal(known, name, {}, lower_case, lower_case);
    });
    if (found == names.end()) return std::unexpected(std::string(name));
    columns.push_back(static_cast<std::size_t>(found - names.begin()));
    if (comma == std::string_view::npos) return columns;
    chosen.remove_prefix(comma + 1);
  }
}

}  // namespace vmem::tools
