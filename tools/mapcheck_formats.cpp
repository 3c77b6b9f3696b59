// SPDX-License-Identifier: MIT
/// JUnit, TAP and OpenMetrics.
#include <algorithm>
#include <map>

#include "mapcheck_report.hpp"
#include "vmem/version.hpp"

namespace vmem::tools {
namespace {

/// What is not UTF-8, or not a character of XML 1.0, becomes U+FFFD. (json_string() has the
/// decoder; control characters come out of it as \uXXXX, and there is no other backslash-u.)
std::string utf8(std::string_view text) {
  std::string plain;
  for (const char c : printable(text)) plain += c;
  const std::string quoted = json_string(plain);
  std::string out;
  for (std::size_t i = 1; i + 1 < quoted.size(); ++i) {
    if (quoted[i] == '\\' && i + 2 < quoted.size())
      ++i;  // \" and \\ alone: printable() left no more
    out += quoted[i];
  }
  return out;
}

std::string xml(std::string_view text) {
  std::string out;
  std::string clean = utf8(text);
  for (const std::string_view none : {"\xEF\xBF\xBE", "\xEF\xBF\xBF"}) {  // U+FFFE, U+FFFF
    for (std::size_t at = 0; (at = clean.find(none, at)) != std::string::npos;)
      clean[at + 2] = '\xBD';
  }
  for (const char c : clean) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string name_of(const CheckedMapping& row) {
  std::string name = row.check->name;
  if (row.vma) name += fmt::format(" at {:#x}", row.vma->range.start.value);
  if (row.pid != 0) name += fmt::format(" of {} ({})", row.pid, row.comm);
  return name;
}

/// One line that says the most important, and all lines.
std::pair<std::string, std::string> messages(const CheckedMapping& row) {
  if (!row.reason.empty()) return {row.reason, row.reason};
  std::string all;
  for (const Finding& finding : row.result.findings) all += finding_line(finding, true) + "\n";
  if (row.result.more_findings != 0) all += fmt::format("and {} more\n", row.result.more_findings);
  const auto first = std::ranges::find_if(row.result.findings, [&](const Finding& f) {
    return row.result.verdict != Verdict::fail || is_failure(f.kind);
  });
  return {first == row.result.findings.end() ? "" : finding_line(*first, false), all};
}

/// "process 42", or what could not be looked at as a whole.
std::string name_of(const Unchecked& process) {
  return process.pid != 0 ? fmt::format("process {}", process.pid) : "processes";
}

std::string label(std::string_view text) {
  std::string out;
  for (const char c : utf8(text)) {
    if (c == '\\' || c == '"') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

std::string junit(const Report& report) {
  const std::size_t errors = report.unverified + report.unchecked.size();
  const std::size_t tests = report.rows.size() + report.skipped.size() + report.unchecked.size();
  const std::string counts = fmt::format(R"(name="mapcheck" tests="{}" failures="{}" errors="{}")",
                                         tests, report.fail, errors);
  std::string out = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
  out += fmt::format("<testsuites {}>\n<testsuite {} skipped=\"{}\">\n", counts, counts,
                     report.skipped.size());
  const auto failed = [&](std::string_view element, std::string_view type,
                          const std::pair<std::string, std::string>& said) {
    out += fmt::format("><{} type=\"{}\" message=\"{}\">\n", element, type, xml(said.first));
    for (std::string_view rest = said.second; !rest.empty();) {
      const std::size_t end = std::min(rest.find('\n'), rest.size());
      out += xml(rest.substr(0, end)) + "\n";
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    out += fmt::format("</{}></testcase>\n", element);
  };
  for (const CheckedMapping& row : report.rows) {
    out += fmt::format("<testcase classname=\"mapcheck.{}\" name=\"{}\"",
                       xml(row.comm.empty() ? "none" : row.comm), xml(name_of(row)));
    switch (row.result.verdict) {
      case Verdict::pass:
        out += "/>\n";
        break;
      case Verdict::fail: {
        const auto kind = std::ranges::find_if(row.result.findings,
                                               [](const Finding& f) { return is_failure(f.kind); });
        failed("failure", to_string(kind->kind), messages(row));
        break;
      }
      case Verdict::unverified:
        failed("error", "unverified", messages(row));
        break;
    }
  }
  for (const Unchecked& process : report.unchecked) {
    out += fmt::format("<testcase classname=\"mapcheck.{}\" name=\"{}\"",
                       xml(process.comm.empty() ? "none" : process.comm), name_of(process));
    failed("error", "unverified", {process.reason, process.reason});
  }
  for (const std::string& name : report.skipped) {
    out += fmt::format("<testcase classname=\"mapcheck.none\" name=\"{}\"><skipped/></testcase>\n",
                       xml(name));
  }
  return out + "</testsuite>\n</testsuites>\n";
}

void print_tap(Output& out, const Report& report) {
  out.print("TAP version 13\n1..{}\n",
            report.rows.size() + report.unchecked.size() + report.skipped.size());
  std::size_t number = 0;
  // A '#' would begin a directive.
  const auto description = [](std::string_view text) {
    std::string safe = utf8(text);
    std::ranges::replace(safe, '#', '_');
    return safe;
  };
  const auto details = [&](std::string_view verdict, std::string_view text) {
    out.print("  ---\n  verdict: {}\n  findings:\n", verdict);
    while (!text.empty()) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      out.print("    - {}\n", json_string(utf8(text.substr(0, end))));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    out.append("  ...");
    out.end_line();
  };
  for (const CheckedMapping& row : report.rows) {
    const bool pass = row.result.verdict == Verdict::pass;
    out.print("{} {} - {}", pass ? "ok" : "not ok", ++number, description(name_of(row)));
    out.end_line();
    if (!pass) details(to_string(row.result.verdict), messages(row).second);
  }
  for (const Unchecked& process : report.unchecked) {
    out.print("not ok {} - {}\n", ++number, name_of(process));
    details("unverified", process.reason);
  }
  for (const std::string& name : report.skipped) {
    out.print("ok {} - {} # SKIP no mapping is selected", ++number, description(name));
    out.end_line();
  }
}

void print_openmetrics(Output& out, const Report& report) {
  const auto gauge = [&](std::string_view name, std::string_view help) {
    out.print("# TYPE vmem_mapcheck_{0} gauge\n# HELP vmem_mapcheck_{0} {1}\n", name, help);
  };
  // Labels are what stays the same when a program is started again, or a monitoring system would
  // gain a set of series each time: mappings that differ by process or address alone are summed.
  struct Sums {
    std::uint64_t verdicts[3] = {};
    std::uint64_t checked = 0, good = 0, findings = 0;
  };
  std::map<std::string, std::size_t> places;
  std::vector<std::pair<std::string, Sums>> series;
  for (const CheckedMapping& row : report.rows) {
    std::string labels = fmt::format(R"(check="{}",comm="{}",window="{}")", label(row.check->name),
                                     label(row.comm), label(row.window));
    const auto [place, fresh] = places.try_emplace(labels, series.size());
    if (fresh) series.emplace_back(std::move(labels), Sums{});
    Sums& sums = series[place->second].second;
    ++sums.verdicts[static_cast<std::size_t>(row.result.verdict)];
    sums.checked += row.result.pages_checked;
    sums.good += row.result.pages_ok;
    sums.findings += row.result.findings.size() + row.result.more_findings;
  }
  gauge("verdict", "Mappings of a check by verdict.");
  for (const auto& [labels, sums] : series) {
    for (const Verdict verdict : {Verdict::pass, Verdict::fail, Verdict::unverified}) {
      out.print("vmem_mapcheck_verdict{{{},verdict=\"{}\"}} {}\n", labels, to_string(verdict),
                sums.verdicts[static_cast<std::size_t>(verdict)]);
    }
    out.relieve();
  }
  const auto sums_of = [&](std::string_view name, std::string_view help, auto member) {
    gauge(name, help);
    for (const auto& [labels, sums] : series) {
      out.print("vmem_mapcheck_{}{{{}}} {}\n", name, labels, sums.*member);
      out.relieve();
    }
  };
  sums_of("pages_checked", "Pages whose place was seen.", &Sums::checked);
  sums_of("pages_ok", "Pages that are where they must be.", &Sums::good);
  sums_of("findings", "Findings of a check.", &Sums::findings);
  gauge("checks", "Checks by verdict; skipped: optional ones that selected nothing.");
  for (const auto& [verdict, count] :
       {std::pair{"pass", report.pass}, std::pair{"fail", report.fail},
        std::pair{"unverified", report.unverified},
        std::pair{"skipped", std::uint64_t{report.skipped.size()}}}) {
    out.print("vmem_mapcheck_checks{{verdict=\"{}\"}} {}\n", verdict, count);
  }
  gauge("unchecked_processes",
        "Processes that could not be looked at; hidden ones, whose number is not known, count as "
        "one.");
  out.print("vmem_mapcheck_unchecked_processes {}\n", report.unchecked.size());
  gauge("status", "Exit status: 0 all checks pass, 1 one fails, 2 one could not be verified.");
  out.print("vmem_mapcheck_status {}\n# EOF", static_cast<int>(report.status()));
  out.end_line();
}

}  // namespace vmem::tools
