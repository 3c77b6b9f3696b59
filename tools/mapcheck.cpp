// SPDX-License-Identifier: MIT
/// mapcheck: whether mappings lie where they must.
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <limits>
#include <map>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "callers_rights.hpp"
#include "mapcheck_explain.hpp"
#include "mapcheck_report.hpp"
#include "mapcheck_run.hpp"
#include "options.hpp"
#include "report_file.hpp"
#include "targets.hpp"

namespace vmem::tools {
namespace {

std::expected<std::vector<std::string>, int> parse(MapcheckOptions& options, int argc,
                                                   char** argv) {
  CLI::App app{
      "Checks that mappings of a process lie where they must in physical memory.\n"
      "TARGET is a PID, 'self', or -n NAME; - for the processes that a policy names.\n"
      "explain PA+LEN says whether mmap() of it through /dev/mem succeeds, and why not.",
      "mapcheck"};
  app.add_option("-e,--expect", options.expectations, "Check SELECT=WINDOW[,OPT...]; repeatable")
      ->type_name("EXPECTATION")
      ->allow_extra_args(false);
  app.add_option("--policy", options.policy, "Check what FILE says; see vmem-policy(5)")
      ->type_name("FILE")
      ->check(not_empty());
  app.add_flag("--auto", options.automatic, "Check every device mapping against its device");
  app.add_flag("--all", options.all, "Every process, instead of TARGET");
  CLI::Option* const print_policy = app.add_flag("--print-policy", options.print_policy,
                                                 "Write a policy that TARGET passes as it is now");
  app.add_option("--junit", options.junit, "Write a JUnit document to FILE (-: stdout) as well")
      ->type_name("FILE")
      ->check(not_empty());
  CLI::Option* const tap = app.add_flag("--tap", options.tap, "Print TAP");
  CLI::Option* const metrics =
      app.add_flag("--openmetrics", options.openmetrics, "Print OpenMetrics");
  CLI::Option* const watch =
      app.add_option("--watch", options.watch, "Check again every SECONDS; print what changed")
          ->type_name("SECONDS")
          ->check(seconds())
          ->excludes(print_policy)
          ->excludes(tap)
          ->excludes(metrics);
  app.add_option("--count", options.count, "With --watch: stop after N looks")
      ->type_name("N")
      ->check(whole_number(1))
      ->needs(watch);
  add_common_options(app, "mapcheck", options);
  tap->excludes(metrics)->excludes("--json");
  metrics->excludes("--json");
  app.footer(
      "SELECT is an address, a path, a file's name or a glob ('/dev/uio*'), FILE+OFFSET, or "
      "[name].\n"
      "WINDOW is PA+LEN, PA-END, pci:DEVICE/barN, uioN/mapM, udmabufN, daxN.M, u-dma-buf:NAME,\n"
      "iomem:NAME, ram, or any.\n"
      "OPT is offset=BYTES, scatter, perms=rw-s, cache=uc|uc-|wc|wt|wp|wb|any (or as arm64 has "
      "it:\n"
      "cache=normal-nc, ...), leaf=4K|2M|1G, node=N, populated, sparse, flags=io,pf,..., "
      "nth=N\n"
      "(of those selected), optional.  Words may have any case.\n\n"
      "Columns: " +
      mapcheck_column_names() +
      "\n\n"
      "Exit status: 0 all checks pass, 1 one fails, 2 one could not be verified.\n\n"
      "Examples:\n"
      "  mapcheck -e '/dev/mem_mmap1=0x90000000+64M,cache=uc' 1234\n"
      "  mapcheck -e '*/resource2_wc=pci:0000:03:00.0/bar2,cache=wc' -n driver\n"
      "  mapcheck --auto --all               every device mapping there is\n"
      "  mapcheck --policy driver.toml -     the processes that the policy names\n"
      "  mapcheck --print-policy 1234        for a later --policy\n"
      "  mapcheck explain 0xfe000000+64K     may /dev/mem map it?");
  return parse_command_line(app, "mapcheck", "TARGET|explain PA+LEN...", argc, argv);
}

/// The text of a policy file; an error message otherwise.
std::expected<std::string, std::string> read_policy(const std::string& file) {
  const int fd = open_as_caller(file.c_str(), O_RDONLY | O_CLOEXEC);
  const auto failed = [&] {
    return std::unexpected(fmt::format("reading policy: {}: {}", file, std::strerror(errno)));
  };
  if (fd < 0) return failed();
  const Fd owner{fd};
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR && !interrupted()) continue;
    if (n < 0) return failed();
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > most_policy_bytes)
      return std::unexpected(
          fmt::format("reading policy: {}: larger than {} MiB", file, most_policy_bytes >> 20));
  }
}

/// The reports of a run that ended before anything was looked at: an old one that says that all is
/// well must not stay in their place.
int not_looked_at(const MapcheckOptions& options, std::string reason, const Messages& messages) {
  Report report;
  report.unchecked.push_back({0, {}, std::move(reason)});
  Output out{interrupted};
  if (options.tap) {
    out.print("TAP version 13\nBail out! {}", printable(report.unchecked.front().reason));
    out.end_line();
  }
  if (options.openmetrics) print_openmetrics(out, report);
  if (options.junit == "-") out.append(junit(report));
  const Status status = finish_output(out, Status::unanswered, messages);
  if (!options.junit.empty() && options.junit != "-")
    (void)write_report(options.junit, junit(report), messages);
  return static_cast<int>(status);
}

/// The error has been said, and is the message.
std::expected<std::vector<Rule>, std::string> read_rules(const MapcheckOptions& options,
                                                         const Messages& messages) {
  const auto wrong = [&](std::string what, std::string_view hint) {
    messages.error(what, hint);
    return std::unexpected(std::move(what));
  };
  std::vector<Rule> rules;
  for (const std::string& text : options.expectations) {
    auto rule = parse_expectation(text);
    if (!rule)
      return wrong(fmt::format("-e {}: {}", text, rule.error()),
                   "SELECT=WINDOW[,OPT...]; see --help");
    rules.push_back(std::move(*rule));
  }
  if (options.policy.empty()) return rules;
  const auto text = read_policy(options.policy);
  if (!text) return wrong(text.error(), {});
  auto more = parse_policy(*text, options.policy);
  if (!more) return wrong(more.error(), "see vmem-policy(5)");
  std::ranges::move(*more, std::back_inserter(rules));
  return rules;
}

/// The time of day, as a line of --watch begins.
std::string now() {
  const std::time_t seconds = std::time(nullptr);
  std::tm broken{};
  localtime_r(&seconds, &broken);
  char text[16];
  std::strftime(text, sizeof text, "%H:%M:%S", &broken);
  return text;
}

/// What changed from one look to the next; the first prints all.
class Watch {
 public:
  /// Whether there is anything to say. With `lines`, it is said.
  bool differs(const Report& report, Output* lines) {
    std::map<std::string, std::string> next;
    std::map<std::string, unsigned> seen;  // checks that are alike are told apart by number
    bool any = first_;
    for (const CheckedMapping& row : report.rows) {
      std::string key = row.check->name;
      if (row.vma) key += fmt::format(" at {:#x}", row.vma->range.start.value);
      if (row.pid != 0) key += fmt::format(" of {}", row.pid);
      if (const unsigned again = seen[key]++; again != 0) key += fmt::format(" #{}", again + 1);
      std::string said = signature(row);
      const auto before = last_.find(key);
      if (before == last_.end() || before->second != said) {
        any = true;
        if (lines != nullptr && !first_) {
          lines->print("{} {}: {}", now(), printable(key), printable(said));
          lines->end_line();
        }
      }
      next.emplace(std::move(key), std::move(said));
    }
    for (const auto& [key, said] : last_) {
      if (next.contains(key)) continue;
      any = true;
      if (lines != nullptr) {
        lines->print("{} {}: gone", now(), printable(key));
        lines->end_line();
      }
    }
    last_ = std::move(next);
    first_ = false;
    return any;
  }

 private:
  bool first_ = true;
  std::map<std::string, std::string> last_;
};

/// Any failure is the answer; else anything that could not be told.
Status worse(Status a, Status b) {
  if (a == Status::negative || b == Status::negative) return Status::negative;
  return std::max(a, b);
}

int run_checks(const Subjects& subjects, const MapcheckOptions& options, std::vector<Rule> rules,
               const std::vector<std::size_t>& columns, const Messages& messages) {
  Output out{interrupted};
  Watch watch;
  Status status = Status::good;
  std::string why, hint;
  for (std::uint64_t looks = 1;; ++looks) {
    const Report report = look(subjects, options, rules);
    if (interrupted()) break;
    status = worse(status, report.status());
    // Beside a check that failed, too.
    if (why.empty() && (report.unverified != 0 || !report.unchecked.empty())) {
      why = report.unverified != 0 ? fmt::format("{} of {} checks could not be verified: {}",
                                                 report.unverified, report.rows.size(), report.why)
                                   : report.why;
      hint = report.hint;
    }
    if (options.watch && looks > 1) {
      const bool differs = watch.differs(report, options.json ? nullptr : &out);
      if (options.json && differs) print_json(out, report, subjects.root, true);
    } else if (options.json) {
      if (options.watch) watch.differs(report, nullptr);
      print_json(out, report, subjects.root, options.watch.has_value());
    } else if (options.tap) {
      print_tap(out, report);
    } else if (options.openmetrics) {
      print_openmetrics(out, report);
    } else if (options.junit == "-") {
      out.append(junit(report));
    } else {
      if (options.watch) watch.differs(report, nullptr);
      print_table(out, report, options, columns);
    }
    out.flush();
    if (!options.junit.empty() && options.junit != "-" &&
        !write_report(options.junit, junit(report), messages)) {
      return static_cast<int>(Status::unanswered);
    }
    if (!options.watch || (options.count != 0 && looks >= options.count) || out.failed()) break;
    if (subjects.one && !subjects.one->check_alive()) break;
    // Unlike sleep_for(), a signal ends it.
    poll(nullptr, 0, static_cast<int>(std::min(std::ceil(*options.watch * 1000), 2e9)));
    if (interrupted()) break;
  }
  status = finish_output(out, status, messages);
  if (interrupted()) end_by_signal();
  if (!why.empty() && !out.failed()) messages.error(why, hint);
  return static_cast<int>(status);
}

int print_policy(const MapcheckOptions& options, const Process& process, const Messages& messages) {
  auto translator = open_source(options, process);
  if (!translator) {
    messages.error(translator.error());
    return 2;
  }
  if (pfn_access(process, **translator) != PfnAccess::full) {
    if (process.root().recorded())
      messages.error("PFNs are hidden in this recording", hidden_recorded_hint);
    else
      messages.error("PFNs are hidden from this user", permission_hint(Privilege::pfns));
    return 2;
  }
  const auto policy = describe_policy(process, **translator);
  if (!policy) {
    messages.error(policy.error());
    return 2;
  }
  if (interrupted()) end_by_signal();
  Output out{interrupted};
  out.append(policy->text);
  Status status = policy->lacks.empty() ? Status::good : Status::unanswered;
  status = finish_output(out, status, messages);
  if (status == Status::unanswered && !out.failed()) {
    std::string_view hint = policy->hint;
    if (hint.empty() && options.backend == "pagemap")
      hint = "page tables may show it: leave --backend pagemap out";
    messages.error(policy->lacks, hint);
  }
  return static_cast<int>(status);
}

int run(int argc, char** argv) {
  MapcheckOptions options;
  const auto words = parse(options, argc, argv);
  if (!words) return words.error();
  const Messages messages{"mapcheck"};
  const auto usage = [&](std::string_view what, std::string_view hint) {
    messages.error(what, hint);
    return 2;
  };
  if (!words->empty() && words->front() == "explain") {
    if (!options.expectations.empty() || !options.policy.empty() || options.automatic ||
        options.all || options.print_policy || !options.comm.empty() || options.watch ||
        options.tap || options.openmetrics || !options.junit.empty() || !options.columns.empty())
      return usage("explain has no other options than -J, --bytes, --noheadings and --sysroot",
                   "see --help");
    return explain_command(options, {words->begin() + 1, words->end()}, messages);
  }
  const bool asked = !options.expectations.empty() || !options.policy.empty() || options.automatic;
  if (!asked && !options.print_policy)
    return usage("nothing is asked", "give -e, --policy, --auto or --print-policy; see --help");
  if (asked && options.print_policy)
    return usage("--print-policy excludes -e, --policy and --auto", "see --help");
  if (options.junit == "-" &&
      (options.json || options.tap || options.openmetrics || options.watch || options.print_policy))
    return usage("--junit -: stdout has another use", "give --junit FILE; see --help");
  const bool by_policy = words->size() == 1 && words->front() == "-";
  if (by_policy && (options.policy.empty() || options.all || !options.comm.empty()))
    return usage("-: names the processes of a policy", "give --policy FILE, and no other TARGET");
  const std::size_t targets =
      words->size() + (options.comm.empty() ? 0 : 1) + (options.all ? 1 : 0);
  if (targets == 0)
    return usage("TARGET is missing", "give a PID, 'self', -n NAME, or --all; see --help");
  if (targets > 1) return usage("more than one TARGET", "see --help");
  if (options.print_policy && options.all)
    return usage("--print-policy takes one TARGET", "see --help");
  const auto columns = mapcheck_columns(options.columns);
  if (!columns)
    return usage(fmt::format("{}: no such column", columns.error()),
                 "columns: " + mapcheck_column_names());
  auto rules = read_rules(options, messages);
  if (!rules) return not_looked_at(options, rules.error(), messages);
  if (by_policy) {
    for (const Rule& rule : *rules) {
      if (rule.process.empty())
        return usage(fmt::format("{}: names no process", rule.check.name),
                     "with - as TARGET each check needs the key process");
    }
  }
  catch_interrupts();
  if (!options.all && !by_policy) {
    auto process = open_target(options, words->empty() ? "" : words->front(), messages);
    if (!process) {
      return not_looked_at(options,
                           fmt::format("process {} could not be opened",
                                       words->empty() ? options.comm : words->front()),
                           messages);
    }
    process->skip_odd_lines();
    if (options.print_policy) return print_policy(options, *process, messages);
    if (const auto source = open_source(options, *process); !source) {
      messages.error(source.error());
      return not_looked_at(options, to_string(source.error()), messages);
    }
    const SysRoot root = process->root();
    return run_checks({.root = root, .one = std::move(process)}, options, std::move(*rules),
                      *columns, messages);
  }
  const auto root = open_root(options, messages);
  if (!root) return 2;
  return run_checks({.root = *root, .one = {}, .all = options.all}, options, std::move(*rules),
                    *columns, messages);
}

}  // namespace
}  // namespace vmem::tools

int main(int argc, char** argv) {
  vmem::tools::drop_capabilities(vmem::tools::Writes::files);
  vmem::tools::yield_to_others();
  // Who checks itself had better keep its own heap as it is meanwhile.
  mallopt(M_TOP_PAD, 4 << 20);
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  try {
    return vmem::tools::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("mapcheck: out of memory\n", stderr);
    return 2;
  }
}
