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
  if (!nodes.empty() && audit.node_unknown_bytes != 0) nodes += ",-";
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

/// What the registration is called in a message: its key, else its address.
std::string name_of(const Registration& r) {
  return r.key.empty() ? hex(r.range.start.value) : r.key;
}

void json_registration(const AuditGroup& group, std::size_t i, Asked asked, Output& out) {
  const Registration& r = group.registrations[i];
  const Audit& a = group.audits[i];
  asked.registration = &r;
  asked.audit = &a;
  out.print(R"({{"va":"{:#x}","bytes":{},"iova":{},"key":{},"device":{},"pid":{},"node":{})",
            r.range.start.value, r.range.bytes(),
            r.iova_known ? fmt::format("\"{:#x}\"", r.iova) : "null",
            r.key.empty() ? "null" : json_string(r.key),
            r.device.empty() ? "null" : json_string(r.device), group.pid,
            a.nodes.size() == 1 && a.node_unknown_bytes == 0 ? std::to_string(a.nodes.front().first)
                                                             : "null");
  if (a.nodes.empty() && a.node_unknown_bytes != 0) {
    out.append(",\"nodes\":null");
  } else {
    out.append(",\"nodes\":{");
    for (std::size_t n = 0; n < a.nodes.size(); ++n)
      out.print("{}\"{}\":{}", n == 0 ? "" : ",", a.nodes[n].first, a.nodes[n].second);
    out.append("}");
  }
  const bool unpinned = std::ranges::any_of(
      a.findings, [](const AuditFinding& f) { return f.kind == AuditFindingKind::unpinned; });
  out.print(",\"resident\":{},\"pinned\":{}", a.resident_bytes,
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
      out.append(finding_json(f, asked));
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

/// What these audits could not be asked for, by the names of findings and members.
void add_not_told(const AuditGroup& group, std::set<std::string_view>& names) {
  for (std::size_t i = 0; i < group.audits.size(); ++i) {
    const Registration& r = group.registrations[i];
    const Audit& a = group.audits[i];
    if (a.node_unknown_bytes != 0) names.insert("nodes");
    if (!a.movable_known) names.insert("movable");
    if (!a.cma_known) names.insert("cma");
    if (!a.limits_known) names.insert("limits");
    if (r.pinned && r.through_kernel && !a.pins_checked) names.insert("pinned");
  }
}

bool whole(const LockLimits& l) { return l.memlock && l.pinned && l.locked && l.ipc_lock; }

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
  const bool plain = f.kind == AuditFindingKind::remote_node ||
                     f.kind == AuditFindingKind::node_unknown ||
                     f.kind == AuditFindingKind::fragmented;
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

std::string finding_json(const AuditFinding& f, const Asked& asked) {
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
                      json_string(advice_for(f, asked)));
  return text;
}

Result<Process> open_audited(const SysRoot& root, pid_t pid) {
  auto process = root.process(pid);
  if (process) process->skip_odd_lines();
  return process;
}

namespace {

/// Each once: a process may be audited in parts.
void add_missing(std::vector<Missing>& all, Missing one) {
  if (std::ranges::find(all, one) == all.end()) all.push_back(std::move(one));
}

}  // namespace

void take_sources(Report& report, Report& part) {
  report.access = part.access;
  report.backend = part.backend;
  report.flags_from = part.flags_from;
  for (Missing& one : part.missing) add_missing(report.missing, std::move(one));
}

bool audit_with(Report& report, Translator& source, const Process& process, std::string label,
                std::vector<Registration> registrations, bool planned, std::uint64_t pinned_before,
                const Messages& messages) {
  report.access = pfn_access(process, source);
  report.backend = source.backend();
  AuditGroup group{.label = std::move(label),
                   .pid = process.pid(),
                   .comm = process.comm(),
                   .start_time = process.start_time(),
                   .registrations = std::move(registrations),
                   .audits = {},
                   .limits = read_lock_limits(process)};
  AuditOptions how{.planned = planned, .pinned_before = pinned_before};
  how.walk.threads = usable_cpus(2);
  how.walk.stop = interrupted;
  VmaInspector inspector{process, vm_flags_source(process, source)};
  auto audits = audit(process, source, inspector, group.registrations, how);
  for (const std::string& line : left_out_texts(process)) add_missing(report.missing, {line, {}});
  if (!audits) {
    messages.error(audits.error());
    return false;
  }
  if (interrupted()) return false;
  report.flags_from = flags_source_name(inspector, process.root());
  if (const Error* const error = inspector.missing())
    add_missing(report.missing, {to_string(*error), error->hint != nullptr ? error->hint : ""});
  group.audits = std::move(*audits);
  report.groups.push_back(std::move(group));
  return true;
}

bool audit_into(Report& report, const RegauditOptions& options, const Process& process,
                std::string label, std::vector<Registration> registrations, bool planned,
                const Messages& messages) {
  auto source = open_source(options, process);
  if (!source) {
    messages.error(source.error());
    return false;
  }
  return audit_with(report, **source, process, std::move(label), std::move(registrations), planned,
                    0, messages);
}

Presenter::Presenter(const RegauditOptions& options, const SysRoot& root, const Messages& messages)
    : options_(options), root_(root), messages_(messages), out_(interrupted) {
  auto columns = choose_columns(
      options.columns.empty() ? default_columns : std::string_view(options.columns), column_list);
  valid_ = columns.has_value();
  if (valid_)
    columns_ = std::move(*columns);
  else
    messages.error(fmt::format("{}: no such column", columns.error()),
                   "columns: " + regaudit_columns());
}

void Presenter::begin(const Report& report) {
  begun_ = true;
  for (const AuditGroup& group : report.groups)
    limits_missing_ = limits_missing_ || (!root_.recorded() && !whole(group.limits));
  if (!options_.json) return;
  out_.append(json_prologue("regaudit", root_, report.access, report.backend, report.flags_from));
  out_.print(",\"mode\":\"{}\",\"processes\":[", report.mode);
  for (std::size_t g = 0; g < report.groups.size(); ++g) {
    const AuditGroup& group = report.groups[g];
    const LockLimits& l = group.limits;
    out_.print(R"({}{{"pid":{},{},"start_time":{},"limits":{{"memlock":{},"unlimited":{},)"
               R"("pinned":{},"locked":{},"ipc_lock":{}}}{}}})",
               g == 0 ? "" : ",", group.pid, json_name("comm", group.comm),
               group.start_time ? std::to_string(*group.start_time) : "null",
               l.memlock && *l.memlock != UINT64_MAX ? std::to_string(*l.memlock) : "null",
               l.memlock ? (*l.memlock == UINT64_MAX ? "true" : "false") : "null",
               or_null(l.pinned), or_null(l.locked), or_null(l.ipc_lock), group.json);
  }
  out_.append("]");
  out_.append(report.json);
  out_.append(",\"registrations\":[");
  out_.end_line();
}

bool Presenter::part(const Report& report) {
  if (!begun_) begin(report);
  count(report);
  if (options_.json)
    json_part(report);
  else
    text_part(report);
  if (!options_.junit.empty()) junit_part(report);
  return !out_.failed();
}

void Presenter::count(const Report& report) {
  const auto add_bytes = [&](std::uint64_t bytes) {
    summary_.bytes = bytes > UINT64_MAX - summary_.bytes ? UINT64_MAX : summary_.bytes + bytes;
  };
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      const Audit& audit = group.audits[i];
      ++summary_.registrations;
      add_bytes(group.registrations[i].range.bytes());
      const std::string_view verdict = verdict_of(audit);
      ++(verdict == "clean"     ? summary_.clean
         : verdict == "warning" ? summary_.warning
         : verdict == "error"   ? summary_.error
                                : summary_.unknown);
      bool any_unknown = false;
      for (const AuditFinding& f : audit.findings) {
        if (f.severity != Severity::unknown) continue;
        hidden_ = hidden_ || f.kind == AuditFindingKind::hidden;
        // These have a message of their own.
        if (f.kind == AuditFindingKind::hidden || f.kind == AuditFindingKind::iova_unknown ||
            (f.kind == AuditFindingKind::limits_unknown && limits_missing_))
          continue;
        any_unknown = true;
        unknown_kinds_.insert(to_string(f.kind));
      }
      with_unknown_ += any_unknown ? 1U : 0U;
    }
    for (const Unlocated& u : group.unlocated) {
      ++summary_.registrations;
      add_bytes(u.bytes);
      ++(u.dmabuf ? summary_.clean : summary_.unknown);
      if (u.dmabuf) continue;
      ++with_unknown_;
      unknown_kinds_.insert("not located");
    }
    add_not_told(group, not_told_);
  }
}

void Presenter::text_part(const Report& report) {
  const bool color = use_color(options_.color);
  TextTable table;
  for (const std::size_t column : columns_) {
    const bool right = column != 1 && column != 3 && column != 4 && column != 5 && column < 13;
    table.column(column_list[column], right ? TextTable::Align::right : TextTable::Align::left);
  }
  bool any = false;
  for (const AuditGroup& group : report.groups) {
    for (const Folded& row : fold(group, options_.all)) {
      std::vector<std::string> cells;
      cells.reserve(columns_.size());
      for (const std::size_t column : columns_)
        cells.push_back(cell(column, group, row, options_.bytes));
      const auto worst = row.audit.worst();
      table.row(std::move(cells), color && worst ? color_of(*worst) : "");
      any = true;
    }
  }
  if (any) table.print(out_, !options_.no_headings && !any_row_);
  any_row_ = any_row_ || any;
  Asked asked = asked_in(report, root_);
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      asked.registration = &group.registrations[i];
      asked.audit = &group.audits[i];
      for (const AuditFinding& f : group.audits[i].findings) {
        out_.print("{}: {}: {}: {}", to_string(f.severity),
                   printable(name_of(group.registrations[i])), to_string(f.kind),
                   detail_of(f, options_.bytes));
        if (!out_.end_line()) return;
        std::string sentence = advice_for(f, asked);
        if (advised_.contains(sentence)) continue;
        out_.print("  {}", sentence);
        out_.end_line();
        // Sentences with addresses in them have no bound.
        if (advised_.size() < 1000) advised_.insert(std::move(sentence));
      }
    }
  }
  for (const AuditGroup& group : report.groups) {
    for (const Unlocated& u : group.unlocated) {
      out_.print("{}: {} of process {} ({}), {}: {}", u.dmabuf ? "info" : "unknown",
                 u.key.empty() ? "a region" : u.key, group.pid, printable(group.comm),
                 human_size(u.bytes, options_.bytes), u.reason);
      out_.end_line();
    }
  }
}

void Presenter::json_part(const Report& report) {
  const Asked asked = asked_in(report, root_);
  const auto next = [&] {
    if (any_json_) {
      out_.append(",");
      out_.end_line();
    }
    any_json_ = true;
  };
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      next();
      json_registration(group, i, asked, out_);
      if (!out_.relieve()) return;
    }
    for (const Unlocated& u : group.unlocated) {
      next();
      json_unlocated(group, u, out_);
    }
  }
}

void Presenter::junit_part(const Report& report) {
  for (const AuditGroup& group : report.groups) {
    for (std::size_t i = 0; i < group.audits.size(); ++i) {
      const Audit& a = group.audits[i];
      const std::string_view verdict = verdict_of(a);
      junit_ += fmt::format("<testcase classname=\"{} {}\" name=\"{}\"", xml(group.comm), group.pid,
                            xml(name_of(group.registrations[i])));
      if (verdict == "clean") {
        junit_ += "/>\n";
        continue;
      }
      std::string all;
      for (const AuditFinding& f : a.findings)
        all += fmt::format("{}: {}: {}\n", to_string(f.severity), to_string(f.kind),
                           detail_of(f, options_.bytes));
      const char* const element = verdict == "error"     ? "failure"
                                  : verdict == "unknown" ? "error"
                                                         : "system-out";
      const std::string message =
          verdict == "warning" ? "" : fmt::format(" message=\"{}\"", xml(kinds_of(a)));
      junit_ += fmt::format(">\n<{}{}>", element, message);
      std::string_view rest = all;
      while (!rest.empty()) {
        const std::size_t end = rest.find('\n');
        junit_ += xml(rest.substr(0, end)) + "\n";
        rest.remove_prefix(end + 1);
      }
      junit_ += fmt::format("</{}>\n</testcase>\n", element);
    }
  }
}

bool Presenter::write_junit(const Report& report) const {
  std::string unread;
  for (const Missing& one : report.missing)
    unread += fmt::format(
        "<testcase classname=\"regaudit\" name=\"reading\"><error message=\"{}\"/></testcase>\n",
        xml(one.text));
  const std::string text =
      fmt::format(
          "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n"
          "<testsuite name=\"regaudit {}\" tests=\"{}\" failures=\"{}\" errors=\"{}\">\n",
          report.mode, summary_.registrations + report.missing.size(), summary_.error,
          summary_.unknown + report.missing.size()) +
      junit_ + unread + "</testsuite>\n</testsuites>\n";
  return write_report(options_.junit, text, messages_);
}

int Presenter::end(const Report& report, std::string_view stopped, std::string_view hint) {
  if (!begun_) begin(report);
  const Summary& s = summary_;
  if (options_.json) {
    out_.print(
        R"(],"summary":{{"registrations":{},"bytes":{},"clean":{},"warning":{},"error":{},"unknown":{}}},)"
        R"("not_told":[)",
        s.registrations, s.bytes, s.clean, s.warning, s.error, s.unknown);
    for (const std::string_view name : not_told_)
      out_.print("{}\"{}\"", name == *not_told_.begin() ? "" : ",", name);
    out_.print("],\"stopped\":{},\"error\":{}}}", stopped.empty() ? "null" : json_string(stopped),
               report.missing.empty() ? "null" : json_string(report.missing.front().text));
  } else {
    out_.append(report.text);
    if (!not_told_.empty()) {
      out_.append("not told by this system:");
      for (const std::string_view name : not_told_)
        out_.print("{} {}", name == *not_told_.begin() ? "" : ",", name);
      out_.end_line();
    }
    out_.print("{} registration{}, {}: {} clean, {} with warnings, {} with errors, {} unknown",
               s.registrations, s.registrations == 1 ? "" : "s",
               human_size(s.bytes, options_.bytes), s.clean, s.warning, s.error, s.unknown);
  }
  out_.end_line();

  Status status = report.negative || s.error != 0 ? Status::negative
                  : report.unanswered || s.unknown != 0 || limits_missing_ || !stopped.empty() ||
                          !report.missing.empty()
                      ? Status::unanswered
                      : Status::good;
  if (!options_.junit.empty() && !write_junit(report)) status = Status::unanswered;
  status = finish_output(out_, status, messages_);
  if (hidden_) {
    messages_.error(
        root_.recorded() ? "PFNs are hidden in this recording" : "PFNs are hidden from this user",
        advice_for({.kind = AuditFindingKind::hidden}, asked_in(report, root_)));
  }
  if (with_unknown_ != 0) {
    std::string kinds;
    for (const std::string_view kind : unknown_kinds_)
      kinds += fmt::format("{}{}", kinds.empty() ? "" : ", ", kind);
    messages_.error(fmt::format("{} of {} registrations could not be audited in full: {}",
                                with_unknown_, s.registrations, kinds));
  }
  if (limits_missing_)
    messages_.error(
        "reading what the process may lock: /proc/PID/limits or status: not all of it is there");
  for (const Missing& one : report.missing) messages_.error(one.text, one.hint);
  if (!stopped.empty()) messages_.error(stopped, hint);
  if (interrupted()) end_by_signal();
  return static_cast<int>(status);
}

int show(const Report& report, const RegauditOptions& options, const SysRoot& root,
         const Messages& messages) {
  Presenter presenter{options, root, messages};
  if (!presenter.valid()) return 2;
  presenter.part(report);
  return presenter.end(report);
}

}  // namespace vmem::tools
