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
#include "callers_rights.hpp"
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

/// What is wrong, and what to do about it.
struct Refusal {
  std::string reason, hint;
};

/// Whether addresses are those of processes. Below one that is, all others are, too.
class AddressCheck {
 public:
  explicit AddressCheck(const SysRoot& root) : root_(root) {}
  std::optional<AddressDoubt> doubt(VirtAddr address, std::string_view text) {
    if (address <= good_) return {};
    auto doubt = not_user_address(root_, address, text);
    if (!doubt) good_ = address;
    return doubt;
  }

 private:
  const SysRoot& root_;
  VirtAddr good_;
};

constexpr std::string_view line_form = "each line is VA LEN [KEY]: 7f2c00000000 16M ring";

/// One line VA LEN [KEY].
std::expected<Registration, Refusal> parse_line(std::string_view line, AddressCheck& check) {
  const auto refuse = [](std::string why) {
    return std::unexpected(Refusal{std::move(why), std::string(line_form)});
  };
  const auto words = split(line);
  if (words.size() < 2 || words.size() > 3) return refuse("not VA LEN [KEY]");
  auto range = parse_address(std::string(words[0]) + "+" + std::string(words[1]));
  if (!range) return refuse(range.error());
  if (range->form != AddressExpression::Form::range) return refuse("not VA LEN [KEY]");
  if (auto doubt = check.doubt(range->start, words[0]))
    return std::unexpected(
        Refusal{fmt::format("{}: {}", words[0], doubt->reason), std::move(doubt->hint)});
  // 2^64 has no value, so it would be told as a byte less.
  if (range->end.value == UINT64_MAX) return refuse("no process has memory up there");
  Registration r{.range = {range->start, range->end}};
  if (words.size() == 3) r.key = words[2];
  return r;
}

/// The lines of a file, some at a time: what a registration and its audit need is a hundred times
/// the line, and a pipe has no end.
class RangeLines {
 public:
  RangeLines(int fd, std::string name, const SysRoot& root)
      : fd_(fd), name_(std::move(name)), check_(root) {}

  /// The next registrations; none at the end.
  std::expected<std::vector<Registration>, Refusal> next() {
    std::vector<Registration> part;
    std::size_t bytes = 0;
    while (part.size() < most_lines && bytes < most_bytes) {
      const std::size_t newline = text_.find('\n', start_);
      if (newline == std::string::npos) {
        if (text_.size() - start_ > longest_line) {
          ++number_;
          return refuse({"the line is too long", std::string(line_form)});
        }
        if (end_) break;
        if (auto read = read_more(); !read) return std::unexpected(std::move(read.error()));
        continue;
      }
      ++number_;
      const std::string_view line(text_.data() + start_, newline - start_);
      start_ = newline + 1;
      if (line.size() > longest_line)
        return refuse({"the line is too long", std::string(line_form)});
      const std::size_t first = line.find_first_not_of(" \t\r");
      if (first == std::string_view::npos || line[first] == '#') continue;
      auto r = parse_line(line, check_);
      if (!r) return refuse(std::move(r.error()));
      part.push_back(std::move(*r));
      bytes += line.size();
    }
    return part;
  }

 private:
  static constexpr std::size_t most_lines = 20000, most_bytes = 4 << 20;

  std::unexpected<Refusal> refuse(Refusal why) const {
    why.reason = fmt::format("reading ranges: {}:{}: {}", name_, number_, why.reason);
    return std::unexpected(std::move(why));
  }

  std::expected<void, Refusal> read_more() {
    text_.erase(0, start_);
    start_ = 0;
    char buffer[1 << 16];
    ssize_t got = 0;
    do {
      got = read(fd_, buffer, sizeof buffer);
    } while (got < 0 && errno == EINTR && !interrupted());
    if (got < 0)
      return std::unexpected(
          Refusal{fmt::format("reading ranges: {}: {}", name_, std::strerror(errno)), {}});
    end_ = got == 0;
    text_.append(buffer, static_cast<std::size_t>(got));
    if (end_ && !text_.empty() && !text_.ends_with('\n')) text_ += '\n';
    return {};
  }

  int fd_;
  std::string name_;
  AddressCheck check_;
  std::string text_;  ///< read and not yet parsed, from start_ on
  std::size_t start_ = 0, number_ = 0;
  bool end_ = false;
};

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
  auto process = open_target(options, target, messages);
  if (process) process->skip_odd_lines();
  return process;
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
    const std::string_view start = std::string_view(word).substr(0, word.find_first_of("+-"));
    if (const auto doubt = not_user_address(process.root(), expression->start, start)) {
      messages.error(fmt::format("{}: {}", word, doubt->reason), doubt->hint);
      return false;
    }
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
  const auto left_out = left_out_texts(process);
  for (const std::string& text : left_out) messages.error(text);
  messages.error(fmt::format("{}: no mapping {}has this name", word,
                             left_out.empty() ? "" : "of those that could be read "));
  return false;
}

/// Why the table's entries are known to be "at most" only.
std::string_view why_at_most(const AuditGroup& group) {
  bool blocked = false, unknown = false;
  for (const Audit& audit : group.audits) {
    if (audit.complete) continue;
    for (const AuditFinding& f : audit.findings) {
      blocked =
          blocked || (f.severity == Severity::error && f.kind != AuditFindingKind::over_memlock);
      unknown = unknown || f.severity == Severity::unknown;
    }
  }
  return blocked   ? "as it is, it cannot be registered"
         : unknown ? "not all frames could be seen"
                   : "not all pages are in memory yet";
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
    const std::uint64_t more =
        page_size.pages(range.end.value - 1) - page_size.pages(range.start.value) + 1;
    pages = more > UINT64_MAX - pages ? UINT64_MAX : pages + more;
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
    report.text += fmt::format("table entries: {} at most; {}", pages, why_at_most(group));
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

/// Audits the lines part by part, and shows each part before the next is read.
int audit_lines(const RegauditOptions& options, const Process& process, Translator& source,
                RangeLines lines, const std::string& name, const Messages& messages) {
  // The file of --junit is made as a whole.
  constexpr std::uint64_t most_junit = 200'000;
  Presenter presenter{options, process.root(), messages};
  if (!presenter.valid()) return 2;
  std::uint64_t pinned = 0, count = 0;
  Report report{.mode = "ranges"};
  Refusal stopped;
  while (true) {
    auto part = lines.next();
    if (!part) {
      stopped = std::move(part.error());
      break;
    }
    if (part->empty()) break;
    for (Registration& r : *part) r.device_writes = options.access == "rw";
    const std::uint64_t pins = pinned_bytes(*part, process.root().page_size());
    const std::size_t lines_of_part = part->size();
    if (!options.junit.empty() && count + lines_of_part > most_junit) {
      stopped.reason =
          fmt::format("reading ranges: {}: more than {} for one --junit", name, most_junit);
      stopped.hint = "split the file, or take --json";
      break;
    }
    report.groups.clear();
    if (!audit_with(report, source, process, "", std::move(*part), false, pinned, messages)) {
      if (interrupted() && count == 0) end_by_signal();
      if (count == 0) return 2;  // why has been said
      stopped.reason = fmt::format("auditing ranges: {}: not all lines were audited", name);
      break;
    }
    count += lines_of_part;
    pinned = pins > UINT64_MAX - pinned ? UINT64_MAX : pinned + pins;
    if (!presenter.part(report)) break;
  }
  if (count == 0 && stopped.reason.empty())
    stopped = {fmt::format("reading ranges: {}: no range in it", name), std::string(line_form)};
  report.groups.clear();
  if (count != 0) return presenter.end(report, stopped.reason, stopped.hint);
  if (interrupted()) end_by_signal();
  messages.error(stopped.reason, stopped.hint);
  return 2;
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
  const Fd file{from_stdin
                    ? dup(STDIN_FILENO)
                    : open_as_caller(words.front().c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)};
  if (!file.valid()) {
    messages.error(fmt::format("reading ranges: {}: {}", name, std::strerror(errno)));
    return 2;
  }
  auto source = open_source(options, *process);
  if (!source) {
    messages.error(source.error());
    return 2;
  }
  return audit_lines(options, *process, **source, RangeLines{file.get(), name, process->root()},
                     name, messages);
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
