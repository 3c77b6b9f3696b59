// SPDX-License-Identifier: MIT
#include "mapcheck_report.hpp"

#include <algorithm>
#include <array>

#include "text_table.hpp"
#include "vma_json.hpp"

namespace vmem::tools {
namespace {

using Align = TextTable::Align;

constexpr auto names = std::to_array<std::string_view>({"verdict", "name", "pid", "comm", "vma",
                                                        "end", "size", "perms", "kind", "window",
                                                        "pages", "ok", "findings", "backend"});
enum : std::uint8_t {
  verdict,
  name,
  pid,
  comm,
  vma,
  end,
  size,
  perms,
  kind,
  window,
  pages,
  ok,
  findings,
  backend
};
constexpr std::array<std::size_t, 8> default_columns{verdict, name,   pid,   vma,
                                                     size,    window, pages, ok};

bool is_right(std::size_t column) {
  return column == pid || column == size || column == pages || column == ok || column == findings;
}

std::string hex(std::uint64_t value) { return fmt::format("{:#x}", value); }

std::string address(const std::optional<PhysAddr>& at) { return at ? hex(at->value) : "-"; }

std::string cell(const CheckedMapping& row, std::size_t column, bool bytes) {
  const bool judged = row.vma && row.reason.empty();
  switch (column) {
    case verdict:
      return std::string(to_string(row.result.verdict));
    case name:
      return row.check->name.empty() ? "-" : row.check->name;
    case pid:
      return row.pid != 0 ? std::to_string(row.pid) : "-";
    case comm:
      return row.comm.empty() ? "-" : row.comm;
    case vma:
      return row.vma ? hex(row.vma->range.start.value) : "-";
    case end:
      return row.vma ? hex(row.vma->range.end.value) : "-";
    case size:
      return row.vma ? human_size(row.vma->range.bytes(), bytes) : "-";
    case perms:
      return row.vma ? permissions(*row.vma) : "-";
    case kind:
      return row.vma ? std::string(to_string(row.what.kind)) : "-";
    case window:
      return row.window;
    case pages:
      return judged ? std::to_string(row.result.pages_checked) : "-";
    case ok:
      return judged ? std::to_string(row.result.pages_ok) : "-";
    case findings:
      return std::to_string(row.result.findings.size() + row.result.more_findings);
    case backend:
      return row.result.backend ? std::string(to_string(*row.result.backend)) : "-";
    default:
      return "-";
  }
}

std::string_view color_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::pass:
      return "\033[32m";
    case Verdict::fail:
      return "\033[31m";
    case Verdict::unverified:
      return "\033[33m";
  }
  return {};
}

std::string detail_of(const Finding& finding) {
  std::string text = finding.descends ? "descending frames" : "";
  if (!text.empty() && !finding.detail.empty()) text += "; ";
  return text + finding.detail;
}

std::string json_address(const std::optional<PhysAddr>& at) {
  return at ? "\"" + hex(at->value) + "\"" : "null";
}

void json_finding(Output& out, const Finding& f) {
  out.print(
      R"({{"kind":"{}","va":"{:#x}","bytes":{},"expected_pa":{},"actual_pa":{},"detail":{}}})",
      to_string(f.kind), f.va.value, f.bytes, json_address(f.expected), json_address(f.actual),
      json_string(detail_of(f)));
}

}  // namespace

std::string mapcheck_column_names() {
  std::string all;
  for (const std::string_view column : names) {
    if (!all.empty()) all += ',';
    all += column;
  }
  return all;
}

std::expected<std::vector<std::size_t>, std::string> mapcheck_columns(std::string_view chosen) {
  if (chosen.empty())
    return std::vector<std::size_t>(default_columns.begin(), default_columns.end());
  return choose_columns(chosen, names);
}

std::string finding_line(const Finding& finding, bool bytes) {
  std::string line = fmt::format("{} at {:#x}+{}", to_string(finding.kind), finding.va.value,
                                 human_size(finding.bytes, bytes));
  if (finding.expected) line += ", expected " + address(finding.expected);
  if (finding.actual) line += ", is " + address(finding.actual);
  if (const std::string detail = detail_of(finding); !detail.empty()) line += ": " + detail;
  return line;
}

void print_table(Output& out, const Report& report, const MapcheckOptions& options,
                 const std::vector<std::size_t>& columns) {
  const bool color = use_color(options.color);
  TextTable verdicts;
  for (const std::size_t column : columns)
    verdicts.column(names[column], is_right(column) ? Align::right : Align::left);
  TextTable found;
  for (const std::string_view heading : {"name", "kind", "va"}) found.column(heading, Align::left);
  found.column("size", Align::right);
  for (const std::string_view heading : {"expected", "actual", "detail"})
    found.column(heading, Align::left);

  bool any_finding = false;
  for (const CheckedMapping& row : report.rows) {
    std::vector<std::string> cells;
    cells.reserve(columns.size());
    for (const std::size_t column : columns) cells.push_back(cell(row, column, options.bytes));
    verdicts.row(std::move(cells), color ? color_of(row.result.verdict) : "");
    if (!row.reason.empty()) {
      any_finding = true;
      found.row({row.check->name, "-", row.vma ? hex(row.vma->range.start.value) : "-",
                 row.vma ? human_size(row.vma->range.bytes(), options.bytes) : "-", "-", "-",
                 row.reason});
    }
    for (const Finding& f : row.result.findings) {
      any_finding = true;
      const std::string detail = detail_of(f);
      found.row({row.check->name, std::string(to_string(f.kind)), hex(f.va.value),
                 human_size(f.bytes, options.bytes), address(f.expected), address(f.actual),
                 detail.empty() ? "-" : detail});
    }
    if (row.result.more_findings != 0) {
      found.row({row.check->name, "-", "-", "-", "-", "-",
                 fmt::format("and {} more", row.result.more_findings)});
    }
  }
  for (const Unchecked& process : report.unchecked) {
    any_finding = true;
    found.row({"-", "-", "-", "-", "-", "-",
               process.pid != 0 ? fmt::format("process {}: {}", process.pid, process.reason)
                                : process.reason});
  }
  if (!report.rows.empty()) verdicts.print(out, !options.no_headings);
  if (any_finding) {
    if (!report.rows.empty()) out.end_line();
    found.print(out, !options.no_headings);
  }
}

void print_json(Output& out, const Report& report, const SysRoot& root, bool line) {
  const auto newline = [&] {
    if (!line) out.append("\n");
    out.relieve();
  };
  out.append(json_prologue("mapcheck", root, report.access, report.backend, report.flags_from));
  out.append(",");
  newline();
  out.append("\"checks\":[");
  bool first = true;
  for (const CheckedMapping& row : report.rows) {
    if (!first) out.append(",");
    first = false;
    newline();
    out.print(R"({{{},"pid":{},{},"vma":)", json_name("name", row.check->name),
              row.pid != 0 ? std::to_string(row.pid) : "null",
              row.pid != 0 ? json_name("comm", row.comm) : "\"comm\":null");
    if (row.vma)
      out.print("{{{}}}", vma_json(*row.vma, row.what, row.flags));
    else
      out.append("null");
    out.print(
        R"(,"window":{},"verdict":"{}","reason":{},"pages_checked":{},"pages_ok":{},"backend":{},"findings":[)",
        json_string(row.window), to_string(row.result.verdict),
        row.reason.empty() ? "null" : json_string(row.reason), row.result.pages_checked,
        row.result.pages_ok,
        row.result.backend ? fmt::format("\"{}\"", to_string(*row.result.backend)) : "null");
    for (std::size_t i = 0; i < row.result.findings.size(); ++i) {
      if (i != 0) out.append(",");
      json_finding(out, row.result.findings[i]);
      out.relieve();
    }
    out.print("],\"more_findings\":{}}}", row.result.more_findings);
  }
  newline();
  out.append("],\"skipped\":[");
  for (std::size_t i = 0; i < report.skipped.size(); ++i) {
    if (i != 0) out.append(",");
    out.append(json_string(report.skipped[i]));
  }
  out.append("],\"unchecked\":[");
  for (std::size_t i = 0; i < report.unchecked.size(); ++i) {
    const Unchecked& process = report.unchecked[i];
    out.print(R"({}{{"pid":{},{},"reason":{}}})", i != 0 ? "," : "",
              process.pid != 0 ? std::to_string(process.pid) : "null",
              process.comm.empty() ? "\"comm\":null" : json_name("comm", process.comm),
              json_string(process.reason));
  }
  out.append("],");
  newline();
  out.print(R"("summary":{{"pass":{},"fail":{},"unverified":{}}}}})", report.pass, report.fail,
            report.unverified);
  out.end_line();
}

std::string signature(const CheckedMapping& row) {
  std::string text = fmt::format("{} {}", to_string(row.result.verdict), row.reason);
  for (const Finding& finding : row.result.findings) text += "; " + finding_line(finding, true);
  return text;
}

}  // namespace vmem::tools
