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
    out += fmt::format("<testcase classname=\"mapcheck.{}\" name=\"process {}\"",
                       xml(process.comm.empty() ? "none" : process.comm), process.pid);
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
    out.print("not ok {} - process {}\n", ++number, process.pid);
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
  // A metric may name each set of labels once: checks of one name are told apart by address, and
  // checks that are alike by number.
  std::map<std::string, unsigned> seen;
  std::vector<std::string> labels;
  for (const CheckedMapping& row : report.rows) {
    std::string set = fmt::format(
        R"(check="{}",comm="{}",pid="{}",vma="{}",window="{}")", label(row.check->name),
        label(row.comm), row.pid != 0 ? std::to_string(row.pid) : "",
        row.vma ? fmt::format("{:#x}", row.vma->range.start.value) : "", label(row.window));
    if (const unsigned again = seen[set]++; again != 0) set += fmt::format(",again=\"{}\"", again);
    labels.push_back(std::move(set));
  }
  gauge("verdict", "Verdict of a check: 1 for the one it has.");
  for (std::size_t i = 0; i < labels.size(); ++i) {
    for (const Verdict verdict : {Verdict::pass, Verdict::fail, Verdict::unverified}) {
      out.print("vmem_mapcheck_verdict{{{},verdict=\"{}\"}} {}\n", labels[i], to_string(verdict),
                report.rows[i].result.verdict == verdict ? 1 : 0);
    }
    out.relieve();
  }
  const auto pages = [&](std::string_view name, std::string_view help, auto member) {
    gauge(name, help);
    for (std::size_t i = 0; i < labels.size(); ++i) {
      out.print("vmem_mapcheck_{}{{{}}} {}\n", name, labels[i], report.rows[i].result.*member);
      out.relieve();
    }
  };
  pages("pages_checked", "Pages whose place was seen.", &CheckResult::pages_checked);
  pages("pages_ok", "Pages that are where they must be.", &CheckResult::pages_ok);
  gauge("findings", "Findings of a check.");
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const CheckResult& result = report.rows[i].result;
    out.print("vmem_mapcheck_findings{{{}}} {}\n", labels[i],
              result.findings.size() + result.more_findings);
  }
  gauge("checks", "Checks by verdict; skipped: optional ones that selected nothing.");
  for (const auto& [verdict, count] :
       {std::pair{"pass", report.pass}, std::pair{"fail", report.fail},
        std::pair{"unverified", report.unverified},
        std::pair{"skipped", std::uint64_t{report.skipped.size()}}}) {
    out.print("vmem_mapcheck_checks{{verdict=\"{}\"}} {}\n", verdict, count);
  }
  gauge("unchecked_processes", "Processes that could not be looked at.");
  out.print("vmem_mapcheck_unchecked_processes {}\n# EOF", report.unchecked.size());
  out.end_line();
}

}  // namespace vmem::tools
