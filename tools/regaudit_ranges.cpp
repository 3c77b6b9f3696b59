// SPDX-License-Identifier: MIT
/// regaudit ranges and plan: ranges that the user names.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>

#include "addresses.hpp"
#include "regaudit.hpp"
#include "targets.hpp"

namespace vmem::tools {
namespace {

constexpr std::size_t longest_line = 4096;

std::vector<std::string_view> split(std::string_view line) {
  constexpr std::string_view blank = " \t\r";
  std::vector<std::string_view> words;
  while (true) {
    const std::size_t start = line.find_first_not_of(blank);
    if (start == std::string_view::npos) return words;
    const std::size_t end = std::min(line.find_first_of(blank, start), line.size());
    words.push_back(line.substr(start, end - start));
    line.remove_prefix(end);
  }
}

/// One line VA LEN [KEY]; the error is a reason.
std::expected<Registration, std::string> parse_line(std::string_view line) {
  const auto words = split(line);
  if (words.size() < 2 || words.size() > 3) return std::unexpected("not VA LEN [KEY]");
  auto range = parse_address(std::string(words[0]) + "+" + std::string(words[1]));
  if (!range) return std::unexpected(range.error());
  if (range->form != AddressExpression::Form::range) return std::unexpected("not VA LEN [KEY]");
  // 2^64 has no value, so it would be told as a byte less.
  if (range->end.value == UINT64_MAX) return std::unexpected("no process has memory up there");
  Registration r{.range = {range->start, range->end}};
  if (words.size() == 3) r.key = words[2];
  return r;
}

/// Reads the lines of `fd`. What is wrong is said here.
std::optional<std::vector<Registration>> read_ranges(int fd, const std::string& name,
                                                     const Messages& messages) {
  std::vector<Registration> all;
  std::string text;
  std::size_t number = 0;
  const auto refuse = [&](std::string_view why) {
    messages.error(fmt::format("reading ranges: {}:{}: {}", name, number, why),
                   "each line is VA LEN [KEY]: 7f2c00000000 16M ring");
    return std::nullopt;
  };
  bool end = false;
  while (!end) {
    char buffer[1 << 16];
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR && !interrupted()) continue;
    if (got < 0) {
      messages.error(fmt::format("reading ranges: {}: {}", name, std::strerror(errno)));
      return std::nullopt;
    }
    end = got == 0;
    text.append(buffer, static_cast<std::size_t>(got));
    if (end && !text.empty() && !text.ends_with('\n')) text += '\n';
    std::size_t start = 0;
    for (std::size_t newline = text.find('\n'); newline != std::string::npos;
         start = newline + 1, newline = text.find('\n', start)) {
      ++number;
      const std::string_view line(text.data() + start, newline - start);
      if (line.size() > longest_line) return refuse("the line is too long");
      const std::size_t first = line.find_first_not_of(" \t\r");
      if (first == std::string_view::npos || line[first] == '#') continue;
      auto r = parse_line(line);
      if (!r) return refuse(r.error());
      all.push_back(std::move(*r));
    }
    text.erase(0, start);
    if (text.size() > longest_line) {
      ++number;
      return refuse("the line is too long");
    }
  }
  if (all.empty()) {
    messages.error(fmt::format("reading ranges: {}: no range in it", name),
                   "each line is VA LEN [KEY]: 7f2c00000000 16M ring");
    return std::nullopt;
  }
  return all;
}

/// The process that -n or the first word names; the word is taken away.
std::optional<Process> target_of(const RegauditOptions& options, std::vector<std::string>& words,
                                 const Messages& messages) {
  std::string target;
  if (options.comm.empty()) {
    if (words.empty()) {
      messages.error("TARGET is missing", "give a PID, 'self', or -n NAME; see --help");
      return std::nullopt;
    }
    target = words.front();
    words.erase(words.begin());
  }
  return open_target(options, target, messages);
}

/// The ranges of a RANGE word, as registrations of the process.
bool add_ranges(const Process& process, const std::string& word, std::vector<Registration>& all,
                const Messages& messages) {
  const auto expression = parse_address(word);
  if (!expression) {
    messages.error(fmt::format("{}: {}", word, expression.error()));
    return false;
  }
  if (expression->form == AddressExpression::Form::range) {
    all.push_back({.range = {expression->start, expression->end}, .key = word});
    return true;
  }
  if (expression->form != AddressExpression::Form::name) {
    messages.error(fmt::format("{}: not a range", word),
                   "a RANGE is START-END, START+LEN, or a mapping's name in brackets");
    return false;
  }
  auto reader = VmaReader::open(process);
  const std::size_t before = all.size();
  Vma vma;
  while (reader) {
    auto more = reader->next(vma);
    if (!more) {
      messages.error(more.error());
      return false;
    }
    if (!*more) break;
    if (vma.path == expression->name) all.push_back({.range = vma.range, .key = word});
  }
  if (!reader) {
    messages.error(reader.error());
    return false;
  }
  if (all.size() != before) return true;
  messages.error(fmt::format("{}: no mapping has this name", word));
  return false;
}

/// What registering all of it would cost.
void add_plan(Report& report, PageSize page_size, bool bytes) {
  const AuditGroup& group = report.groups.front();
  std::uint64_t pages = 0;
  std::map<std::uint64_t, std::uint64_t> entries;  // by page size
  bool complete = true;
  std::map<std::string, bool> blockers;
  bool unknown = false;
  for (std::size_t i = 0; i < group.audits.size(); ++i) {
    const VaRange range = group.registrations[i].range;
    // The last page of the address space ends beyond 64 bits.
    pages += page_size.pages(range.end.value - 1) - page_size.pages(range.start.value) + 1;
    complete = complete && group.audits[i].complete;
    entries[group.audits[i].best_page_size] += group.audits[i].entries;
    for (const AuditFinding& f : group.audits[i].findings) {
      if (f.severity == Severity::error) blockers[std::string(to_string(f.kind))] = true;
      unknown = unknown || f.severity == Severity::unknown;
    }
  }
  const LockLimits& l = group.limits;
  const std::uint64_t pins =
      pages > UINT64_MAX / page_size.bytes() ? UINT64_MAX : pages * page_size.bytes();
  const char* const verdict = !blockers.empty() ? "would fail" : unknown ? "unknown" : "would work";
  const auto size_or_unknown = [&](const std::optional<std::uint64_t>& size) {
    return size ? human_size(*size, bytes) : "unknown";
  };
  const std::string limit = l.ipc_lock == true         ? "none (CAP_IPC_LOCK)"
                            : !l.memlock               ? "unknown"
                            : *l.memlock == UINT64_MAX ? "unlimited"
                                                       : human_size(*l.memlock, bytes);
  report.text +=
      fmt::format("registering pins {} pages ({}); limit {}, pinned by now {}, locked {}\n", pages,
                  human_size(pins, bytes),  // NOLINT(readability-suspicious-call-argument)
                  limit, size_or_unknown(l.pinned), size_or_unknown(l.locked));
  if (complete) {
    report.text += "table entries:";
    for (const auto& [size, count] : entries)
      report.text += fmt::format(" {} of {}", count, human_size(size, bytes));
  } else {
    report.text += fmt::format("table entries: {} at most; not all pages are in memory yet", pages);
  }
  report.text += fmt::format("\n{}", verdict);
  std::string list;
  for (const auto& [kind, _] : blockers) {
    report.text += fmt::format("{} {}", list.empty() ? ":" : ",", kind);
    list += fmt::format("{}\"{}\"", list.empty() ? "" : ",", kind);
  }
  report.text += '\n';
  report.json += fmt::format(R"(,"plan":{{"pages":{},"pinned_bytes":{},"entries":)", pages, pins);
  if (complete) {
    std::string by_size;
    for (const auto& [size, count] : entries)
      by_size += fmt::format("{}\"{}\":{}", by_size.empty() ? "" : ",", size, count);
    report.json += "{" + by_size + "}";
  } else {
    report.json += "null";
  }
  report.json += fmt::format(R"(,"verdict":"{}","blockers":[{}]}})", verdict, list);
}

}  // namespace

int run_ranges(const RegauditOptions& options, std::vector<std::string> words,
               const Messages& messages) {
  const auto process = target_of(options, words, messages);
  if (!process) return 2;
  if (words.size() != 1) {
    messages.error("ranges takes TARGET and one FILE", "give a file with lines VA LEN [KEY], or -");
    return 2;
  }
  const bool from_stdin = words.front() == "-";
  const std::string name = from_stdin ? "stdin" : words.front();
  const Fd file{from_stdin ? dup(STDIN_FILENO)
                           : open(words.front().c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)};
  if (!file.valid()) {
    messages.error(fmt::format("reading ranges: {}: {}", name, std::strerror(errno)));
    return 2;
  }
  auto ranges = read_ranges(file.get(), name, messages);
  if (!ranges) return 2;
  for (Registration& r : *ranges) r.device_writes = options.access == "rw";
  Report report{.mode = "ranges"};
  if (!audit_into(report, options, *process, "", std::move(*ranges), false, messages)) return 2;
  return show(report, options, process->root(), messages);
}

int run_plan(const RegauditOptions& options, std::vector<std::string> words,
             const Messages& messages) {
  const auto process = target_of(options, words, messages);
  if (!process) return 2;
  if (words.empty()) {
    messages.error("RANGE is missing", "START-END, START+LEN, or a mapping's name in brackets");
    return 2;
  }
  std::vector<Registration> ranges;
  for (const std::string& word : words) {
    if (!add_ranges(*process, word, ranges, messages)) return 2;
  }
  for (Registration& r : ranges) r.device_writes = options.access == "rw";
  Report report{.mode = "plan"};
  if (!audit_into(report, options, *process, "", std::move(ranges), true, messages)) return 2;
  add_plan(report, process->root().page_size(), options.bytes);
  return show(report, options, process->root(), messages);
}

}  // namespace vmem::tools
