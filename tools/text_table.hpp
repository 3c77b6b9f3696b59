// SPDX-License-Identifier: MIT
/// A table whose columns are as wide as what stands in them. It holds its rows, so it is for
/// what is bounded by what a person reads; vtop's rows stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "render.hpp"

namespace vmem::tools {

class TextTable {
 public:
  enum class Align : std::uint8_t { left, right };

  /// Columns, from the left. Headings are printed in upper case.
  void column(std::string_view heading, Align align) { columns_.push_back({heading, align}); }

  /// A row: one cell for each column. Names are made printable here. `color` is an SGR
  /// sequence like "\033[31m" for the whole row, or empty.
  void row(std::vector<std::string> cells, std::string_view color = {});

  /// Prints all rows and forgets them; the last column of the left kind is not padded. False
  /// once writing has failed.
  bool print(Output& out, bool headings);

 private:
  struct Column {
    std::string_view heading;
    Align align;
  };
  struct Row {
    std::vector<std::string> cells;
    std::string_view color;
  };
  std::vector<Column> columns_;
  std::vector<Row> rows_;
};

/// -o COL,…: the indices in `names` of the columns that `chosen` lists, in any case. The error is
/// the name that is none of them.
std::expected<std::vector<std::size_t>, std::string> choose_columns(
    std::string_view chosen, std::span<const std::string_view> names);

}  // namespace vmem::tools
