// SPDX-License-Identifier: MIT
/// How mapcheck shows a look: table, JSON, and what continuous integration and monitoring read.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "mapcheck_run.hpp"
#include "render.hpp"

namespace vmem::tools {

/// Columns of the table, for --help and messages.
std::string mapcheck_column_names();
/// Indices; the error is the name that is none.
std::expected<std::vector<std::size_t>, std::string> mapcheck_columns(std::string_view chosen);

/// The verdicts, then the findings.
void print_table(Output& out, const Report& report, const MapcheckOptions& options,
                 const std::vector<std::size_t>& columns);
/// One document; on one line if `line`.
void print_json(Output& out, const Report& report, const SysRoot& root, bool line);
/// Test Anything Protocol, version 13.
void print_tap(Output& out, const Report& report);
/// OpenMetrics 1.0; gauges alone, so that node-exporter's textfile collector reads it too.
void print_openmetrics(Output& out, const Report& report);
/// A JUnit document, as text.
std::string junit(const Report& report);

/// "NAME: VERDICT, findings", without what differs from look to look: what --watch compares.
std::string signature(const CheckedMapping& row);

/// One line for each finding: "hole at 0x7f… + 4.0K, expected 0x…: detail".
std::string finding_line(const Finding& finding, bool bytes);

}  // namespace vmem::tools
