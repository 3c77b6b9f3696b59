// SPDX-License-Identifier: MIT
/// How regaudit shows what it found: a table with the findings below it, JSON, JUnit.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>

#include "regaudit.hpp"
#include "report_file.hpp"
#include "text_table.hpp"

namespace vmem::tools {
namespace {

constexpr std::string_view column_list[] = {"pid",    "va",      "size",     "iova",    "key",
                                            "device", "node",    "resident", "extents", "largest",
                                            "page",   "entries", "ideal",    "verdict", "findings"};
constexpr std::string_view default_columns =
    "va,size,iova,key,node,extents,largest,page,entries,verdict,findings";

std::string hex(std::uint64_t value) { return fmt::format("{:#x}", value); }

std::string kinds_of(const Audit& audit) {
  std::string kinds;
  for (const AuditFinding& f : audit.findings) {
    if (!kinds.empty()) kinds += ',';
    kinds += to_string(f.kind);
  }
  return kinds.empty() ? "-" : kinds;
}

std::string node_of(const Audit& audit) {
  std::string nodes;
  for (const auto& [node, bytes] : audit.nodes) {
    if (!nodes.empty()) nodes += ',';
    nodes += std::to_string(node);
  }
  return nodes.empty() ? "-" : nodes;
}

/// Registrations shown in one row: neighbours that are alike and without findings.
struct Folded {
  std::size_t first = 0, last = 0;  ///< inclusive
  Audit audit;
  std::uint64_t bytes = 0;
};

bool folds(const AuditGroup& group, const Folded& row, std::size_t next) {
  const Registration& a = group.registrations[row.last];
  const Registration& b = group.registrations[next];
  const Audit& audit = group.audits[next];
  return a.range.end == b.range.start && row.audit.findings.empty() && audit.findings.empty() &&
         a.device == b.device &&
         a.key.substr(0, a.key.find('/')) == b.key.substr(0, b.key.find('/')) &&
         a.key.find('/') != std::string::npos && row.audit.best_page_size == audit.best_page_size &&
         row.audit.complete && audit.complete && row.audit.nodes.size() == audit.nodes.size() &&
         (audit.nodes.empty() || row.audit.nodes.front().first == audit.nodes.front().first);
}

std::vector<Folded> fold(const AuditGroup& group, bool all) {
  std::vector<Folded> rows;
  for (std::size_t i = 0; i < group.registrations.size(); ++i) {
    if (!all && !rows.empty() && folds(group, rows.back(), i)) {
      Folded& row = rows.back();
      const Audit& audit = group.audits[i];
      row.last = i;
      row.bytes += group.registrations[i].range.bytes();
      row.audit.extents += audit.extents;
      row.audit.largest_extent = std::max(row.audit.largest_extent, audit.largest_extent);
      row.audit.entries += audit.entries;
      row.audit.ideal_entries += audit.ideal_entries;
      row.audit.resident_bytes += audit.resident_bytes;
      continue;
    }
    rows.push_back({i, i, group.audits[i], group.registrations[i].range.bytes()});
  }
  return rows;
}

std::string cell(std::size_t column, const AuditGroup& group, const Folded& row, bool bytes) {
  const Registration& r = group.registrations[row.first];
  const Audit& a = row.audit;
  const auto if_complete = [&](std::string text) { return a.complete ? std::move(text) : "-"; };
  switch (column) {
    case 0:
      return std::to_string(group.pid);
    case 1:
      return hex(r.range.start.value);
    case 2:
      return human_size(row.bytes, bytes);
    case 3:
      return r.iova_known ? hex(r.iova) : "-";
    case 4: {
      if (r.key.empty()) return "-";
      if (row.first == row.last) return r.key;
      const std::string& last = group.registrations[row.last].key;
      return r.key + "-" + last.substr(last.find('/') + 1);
    }
    case 5:
      return r.device.empty() ? "-" : r.device;
    case 6:
      return node_of(a);
    case 7:
      return human_size(a.resident_bytes, bytes);
    case 8:
      return if_complete(std::to_string(a.extents));
    case 9:
      return if_complete(human_size(a.largest_extent, bytes));
    case 10:
      return if_complete(human_size(a.best_page_size, bytes));
    case 11:
      return if_complete(std::to_string(a.entries));
    case 12:
      return std::to_string(a.ideal_entries);
    case 13:
      return std::string(verdict_of(a));
    default:
      return kinds_of(a);
  }
}

std::string_view color_of(Severity severity) {
  switch (severity) {
    case Severity::error:
      return "\033[31m";
    case Severity::warning:
      return "\033[33m";
    case Severity::unknown:
      return "\033[35m";
    case Severity::info:
      return "";
  }
  return "";
}

struct Summary {
  std::uint64_t registrations = 0, bytes = 0, clean = 0, warning = 0, error = 0, unknown = 0;
};

Summary summary_of(const Report& report) {
  Summary s;
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      ++s.registrations;
      s.bytes += group.registrations[i].range.bytes();
      const std::string_view verdict = verdict_of(group.audits[i]);
      ++(verdict == "clean"     ? s.clean
         : verdict == "warning" ? s.warning
         : verdict == "error"   ? s.error
                                : s.unknown);
    }
    for (const Unlocated& u : group.unlocated) {
      ++s.registrations;
      s.bytes += u.bytes;
      ++(u.dmabuf ? s.clean : s.unknown);
    }
  }
  return s;
}

/// What the registration is called in a message: its key, else its address.
std::string name_of(const Registration& r) {
  return r.key.empty() ? hex(r.range.start.value) : r.key;
}

void show_text(const Report& report, const RegauditOptions& options,
               std::span<const std::size_t> columns, Output& out) {
  const bool color = use_color(options.color);
  TextTable table;
  for (const std::size_t column : columns) {
    const bool right = column != 1 && column != 3 && column != 4 && column != 5 && column < 13;
    table.column(column_list[column], right ? TextTable::Align::right : TextTable::Align::left);
  }
  bool any = false;
  for (const AuditGroup& group : report.groups) {
    for (const Folded& row : fold(group, options.all)) {
      std::vector<std::string> cells;
      for (const std::size_t column : columns)
        cells.push_back(cell(column, group, row, options.bytes));
      const auto worst = row.audit.worst();
      table.row(std::move(cells), color && worst ? color_of(*worst) : "");
      any = true;
    }
  }
  if (any) table.print(out, !options.no_headings);
  std::uint64_t advised = 0;  ///< by kind
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      for (const AuditFinding& f : group.audits[i].findings) {
        out.print("{}: {}: {}: {}", to_string(f.severity),
                  printable(name_of(group.registrations[i])), to_string(f.kind),
                  detail_of(f, options.bytes));
        out.end_line();
        const std::uint64_t bit = std::uint64_t{1} << static_cast<unsigned>(f.kind);
        if ((advised & bit) != 0) continue;
        advised |= bit;  // once is enough
        out.print("  {}", advice(f.kind));
        if (!out.end_line()) return;
      }
    }
  }
  for (const AuditGroup& group : report.groups) {
    for (const Unlocated& u : group.unlocated) {
      out.print("{}: {} of process {} ({}), {}: {}", u.dmabuf ? "info" : "unknown",
                u.key.empty() ? "a region" : u.key, group.pid, printable(group.comm),
                human_size(u.bytes, options.bytes), u.reason);
      out.end_line();
    }
  }
  out.append(report.text);
  const Summary s = summary_of(report);
  out.print("{} registration{}, {}: {} clean, {} with warnings, {} with errors, {} unknown",
            s.registrations, s.registrations == 1 ? "" : "s", human_size(s.bytes, options.bytes),
            s.clean, s.warning, s.error, s.unknown);
  out.end_line();
}

void json_registration(const AuditGroup& group, std::size_t i, Output& out) {
  const Registration& r = group.registrations[i];
  const Audit& a = group.audits[i];
  out.print(R"({{"va":"{:#x}","bytes":{},"iova":{},"key":{},"device":{},"pid":{},"node":{})",
            r.range.start.value, r.range.bytes(),
            r.iova_known ? fmt::format("\"{:#x}\"", r.iova) : "null",
            r.key.empty() ? "null" : json_string(r.key),
            r.device.empty() ? "null" : json_string(r.device), group.pid,
            a.nodes.size() == 1 ? std::to_string(a.nodes.front().first) : "null");
  out.append(",\"nodes\":{");
  for (std::size_t n = 0; n < a.nodes.size(); ++n)
    out.print("{}\"{}\":{}", n == 0 ? "" : ",", a.nodes[n].first, a.nodes[n].second);
  const bool unpinned = std::ranges::any_of(
      a.findings, [](const AuditFinding& f) { return f.kind == AuditFindingKind::unpinned; });
  out.print("}},\"resident\":{},\"pinned\":{}", a.resident_bytes,
            unpinned         ? "false"
            : a.pins_checked ? "true"
                             : "null");
  if (a.complete) {
    out.print(R"(,"extents":{},"largest_extent":{},"best_page_size":{},"entries":{})", a.extents,
              a.largest_extent, a.best_page_size, a.entries);
  } else {
    out.append(R"(,"extents":null,"largest_extent":null,"best_page_size":null,"entries":null)");
  }
  out.print(R"(,"ideal_page_size":{},"ideal_entries":{},"verdict":"{}")", a.ideal_page_size,
            a.ideal_entries, verdict_of(a));
  for (const bool unknown : {false, true}) {
    out.print(",\"{}\":[", unknown ? "unknown" : "findings");
    bool first = true;
    for (const AuditFinding& f : a.findings) {
      if ((f.severity == Severity::unknown) != unknown) continue;
      if (!first) out.append(",");
      first = false;
      out.append(finding_json(f));
    }
    out.append("]");
  }
  if (!group.members.empty()) out.append(group.members[i]);
  out.append("}");
}

void json_unlocated(const AuditGroup& group, const Unlocated& u, Output& out) {
  out.print(
      R"({{"va":null,"bytes":{},"iova":null,"key":{},"device":{},"pid":{},"node":null,"extents":null,)"
      R"("largest_extent":null,"best_page_size":null,"entries":null,"verdict":"{}","findings":[],"reason":{}{}}})",
      u.bytes, u.key.empty() ? "null" : json_string(u.key),
      u.device.empty() ? "null" : json_string(u.device), group.pid, u.dmabuf ? "clean" : "unknown",
      json_string(u.reason), u.members);
}

template <class Value>
std::string or_null(const std::optional<Value>& value) {
  return value ? fmt::format("{}", *value) : "null";
}

void show_json(const Report& report, const SysRoot& root, Output& out) {
  out.append(json_prologue("regaudit", root, report.access, report.backend));
  out.print(",\"mode\":\"{}\",\"processes\":[", report.mode);
  for (std::size_t g = 0; g < report.groups.size(); ++g) {
    const AuditGroup& group = report.groups[g];
    const LockLimits& l = group.limits;
    out.print(R"({}{{"pid":{},"comm":{},"start_time":{},"limits":{{"memlock":{},"unlimited":{},)"
              R"("pinned":{},"locked":{},"ipc_lock":{}}}{}}})",
              g == 0 ? "" : ",", group.pid, json_string(group.comm),
              group.start_time ? std::to_string(*group.start_time) : "null",
              l.memlock && *l.memlock != UINT64_MAX ? std::to_string(*l.memlock) : "null",
              l.memlock ? (*l.memlock == UINT64_MAX ? "true" : "false") : "null", or_null(l.pinned),
              or_null(l.locked), or_null(l.ipc_lock), group.json);
  }
  out.append("]");
  out.append(report.json);
  out.append(",\"registrations\":[");
  out.end_line();
  bool first = true;
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      if (!first) {
        out.append(",");
        out.end_line();
      }
      first = false;
      json_registration(group, i, out);
      if (!out.relieve()) return;
    }
    for (const Unlocated& u : group.unlocated) {
      if (!first) {
        out.append(",");
        out.end_line();
      }
      first = false;
      json_unlocated(group, u, out);
    }
  }
  const Summary s = summary_of(report);
  out.print(
      R"(],"summary":{{"registrations":{},"bytes":{},"clean":{},"warning":{},"error":{},"unknown":{}}}}})",
      s.registrations, s.bytes, s.clean, s.warning, s.error, s.unknown);
  out.end_line();
}

std::string xml(std::string_view text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe +=
            static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) > 0x7e ? '?' : c;
    }
  }
  return safe;
}

bool write_junit(const Report& report, const RegauditOptions& options, const Messages& messages) {
  const Summary s = summary_of(report);
  std::string text = fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
      "<testsuite name=\"regaudit {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\">\n",
      report.mode, s.registrations, s.error, s.unknown);
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      const Audit& a = group.audits[i];
      const std::string_view verdict = verdict_of(a);
      text += fmt::format("<testcase classname=\"{} {}\" name=\"{}\"", xml(group.comm), group.pid,
                          xml(name_of(group.registrations[i])));
      if (verdict == "clean") {
        text += "/>\n";
        continue;
      }
      std::string all;
      for (const AuditFinding& f : a.findings)
        all += fmt::format("{}: {}: {}\n", to_string(f.severity), to_string(f.kind),
                           detail_of(f, options.bytes));
      const char* const element = verdict == "error"     ? "failure"
                                  : verdict == "unknown" ? "error"
                                                         : "system-out";
      const std::string message =
          verdict == "warning" ? "" : fmt::format(" message=\"{}\"", xml(kinds_of(a)));
      text += fmt::format(">\n<{}{}>", element, message);
      std::string_view rest = all;
      while (!rest.empty()) {
        const std::size_t end = rest.find('\n');
        text += xml(rest.substr(0, end)) + "\n";
        rest.remove_prefix(end + 1);
      }
      text += fmt::format("</{}>\n</testcase>\n", element);
    }
  }
  text += "</testsuite>\n</testsuites>\n";
  return write_report(options.junit, text, messages);
}

}  // namespace

std::string regaudit_columns() {
  std::string names;
  for (const std::string_view name : column_list) {
    if (!names.empty()) names += ',';
    names += name;
  }
  return names;
}

std::string_view verdict_of(const Audit& audit) {
  const auto worst = audit.worst();
  if (!worst || *worst == Severity::info) return "clean";
  return to_string(*worst);
}

std::string detail_of(const AuditFinding& f, bool bytes) {
  const bool sizes = f.kind == AuditFindingKind::over_memlock;
  const bool plain =
      f.kind == AuditFindingKind::remote_node || f.kind == AuditFindingKind::fragmented;
  const auto number = [&](std::uint64_t value) {
    // NOLINTNEXTLINE(readability-suspicious-call-argument)
    return sizes ? human_size(value, bytes) : plain ? std::to_string(value) : hex(value);
  };
  std::string text = human_size(f.bytes, bytes);
  if (f.runs > 1) text += fmt::format(" in {} runs", f.runs);
  for (const Evidence& e : f.where) {
    text += fmt::format("{} {:#x}+{}", f.runs > 1 ? "," : " at", e.va.value,
                        human_size(e.bytes, bytes));
    if (e.pfn) text += fmt::format(" (PFN {:#x})", e.pfn->value);
    const char *expected = "expected", *actual = "is";
    if (f.kind == AuditFindingKind::iova_mismatch) expected = "iova", actual = "memory is at";
    if (f.kind == AuditFindingKind::over_memlock) expected = "limit", actual = "it takes";
    if (f.kind == AuditFindingKind::fragmented) expected = "ideal", actual = "entries";
    if (e.expected) text += fmt::format(" {} {}", expected, number(*e.expected));
    if (e.actual) text += fmt::format(" {} {}", actual, number(*e.actual));
    if (f.where.size() < f.runs && &e == &f.where.back()) text += ", …";
  }
  if (!f.flag.empty()) text += fmt::format(" [{}]", f.flag);
  return text;
}

std::string finding_json(const AuditFinding& f) {
  const bool addresses =
      f.kind == AuditFindingKind::iova_mismatch || f.kind == AuditFindingKind::dma_mask;
  const auto number = [&](std::uint64_t value) {
    return addresses ? fmt::format("\"{:#x}\"", value) : std::to_string(value);
  };
  std::string text = fmt::format(
      R"({{"kind":"{}","severity":"{}","va":"{:#x}","bytes":{},"runs":{},"flag":{},"pages":[)",
      to_string(f.kind), to_string(f.severity), f.where.empty() ? 0 : f.where.front().va.value,
      f.bytes, f.runs, f.flag.empty() ? "null" : json_string(f.flag));
  for (const Evidence& e : f.where) {
    if (&e != &f.where.front()) text += ',';
    text += fmt::format(R"({{"va":"{:#x}","bytes":{},"pfn":{})", e.va.value, e.bytes,
                        e.pfn ? fmt::format("\"{:#x}\"", e.pfn->value) : "null");
    if (e.expected) text += fmt::format(",\"expected\":{}", number(*e.expected));
    if (e.actual) text += fmt::format(",\"actual\":{}", number(*e.actual));
    text += '}';
  }
  text += fmt::format("],\"detail\":{},\"advice\":{}}}", json_string(detail_of(f, true)),
                      json_string(advice(f.kind)));
  return text;
}

bool audit_into(Report& report, const RegauditOptions& options, const Process& process,
                std::string label, std::vector<Registration> registrations, bool planned,
                const Messages& messages) {
  auto source = open_source(options, process);
  if (!source) {
    messages.error(source.error());
    return false;
  }
  report.access = pfn_access(process, **source);
  report.backend = (*source)->backend();
  AuditGroup group{.label = std::move(label),
                   .pid = process.pid(),
                   .comm = process.comm(),
                   .start_time = process.start_time(),
                   .registrations = std::move(registrations),
                   .audits = {},
                   .limits = read_lock_limits(process)};
  AuditOptions how{.planned = planned};
  how.walk.threads = usable_cpus(2);
  how.walk.stop = interrupted;
  auto audits = audit(process, **source, group.registrations, how);
  if (!audits) {
    messages.error(audits.error());
    return false;
  }
  if (interrupted()) return false;
  group.audits = std::move(*audits);
  report.groups.push_back(std::move(group));
  return true;
}

int show(const Report& report, const RegauditOptions& options, const SysRoot& root,
         const Messages& messages) {
  auto columns = choose_columns(
      options.columns.empty() ? default_columns : std::string_view(options.columns), column_list);
  if (!columns) {
    messages.error(fmt::format("{}: no such column", columns.error()),
                   "columns: " + regaudit_columns());
    return 2;
  }
  Output out{interrupted};
  if (options.json)
    show_json(report, root, out);
  else
    show_text(report, options, *columns, out);

  Status status = report.negative     ? Status::negative
                  : report.unanswered ? Status::unanswered
                                      : Status::good;
  bool error = report.negative, unknown = report.unanswered;
  for (const AuditGroup& group : report.groups) {
    for (const Unlocated& u : group.unlocated) unknown = unknown || !u.dmabuf;
    for (const Audit& a : group.audits) {
      error = error || verdict_of(a) == "error";
      unknown = unknown || verdict_of(a) == "unknown";
    }
  }
  if (error)
    status = Status::negative;
  else if (unknown)
    status = Status::unanswered;
  if (!options.junit.empty() && !write_junit(report, options, messages))
    status = Status::unanswered;
  status = finish_output(out, status, messages);
  bool hidden = false;
  for (const AuditGroup& group : report.groups) {
    for (const Audit& a : group.audits) {
      for (const AuditFinding& f : a.findings)
        hidden = hidden || f.kind == AuditFindingKind::hidden;
    }
  }
  if (hidden) messages.error("PFNs are hidden from this user", advice(AuditFindingKind::hidden));
  if (interrupted()) end_by_signal();
  return static_cast<int>(status);
}

}  // namespace vmem::tools
