// SPDX-License-Identifier: MIT
#include "mapcheck_run.hpp"

#include <algorithm>
#include <set>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace vmem::tools {
namespace {

/// The mappings of one process, to be selected from by many rules: names that are no globs are
/// looked up, and globs are held against each name once.
class Selection {
 public:
  explicit Selection(const std::vector<Vma>& vmas) : vmas_(vmas) {
    std::unordered_map<std::string_view, std::size_t> numbers;
    for (std::size_t i = 0; i < vmas.size(); ++i) {
      if (vmas[i].path.empty()) continue;
      const auto [at, fresh] = numbers.try_emplace(vmas[i].path, names_.size());
      if (fresh) names_.push_back({vmas[i].path, {}});
      names_[at->second].vmas.push_back(i);
    }
    for (std::size_t i = 0; i < names_.size(); ++i) {
      constexpr std::string_view deleted = " (deleted)";
      std::string_view path = names_[i].path;
      index(path, i);
      if (path.ends_with(deleted)) index(path.substr(0, path.size() - deleted.size()), i);
    }
  }

  /// Indices, ascending.
  std::vector<std::size_t> operator()(const Selector& select) const {
    std::vector<std::size_t> found;
    if (select.form == Selector::Form::address) {
      const auto after = std::ranges::upper_bound(vmas_, select.address, {},
                                                  [](const Vma& v) { return v.range.start; });
      if (after != vmas_.begin() && std::prev(after)->range.contains(select.address))
        found.push_back(static_cast<std::size_t>(std::prev(after) - vmas_.begin()));
      return found;
    }
    const auto try_name = [&](std::size_t name) {
      // A name's mappings differ for FILE+OFFSET alone.
      for (const std::size_t i : names_[name].vmas) {
        if (select.selects(vmas_[i]))
          found.push_back(i);
        else if (select.form == Selector::Form::name)
          break;
      }
    };
    if (select.text.find_first_of(select.text.starts_with('[') ? "*?\\" : "*?\\[") !=
        std::string::npos) {
      for (std::size_t name = 0; name < names_.size(); ++name) try_name(name);
    } else if (const auto at = exact_.find(select.text); at != exact_.end()) {
      for (const std::size_t name : at->second) try_name(name);
    }
    std::ranges::sort(found);
    return found;
  }

 private:
  struct Name {
    std::string_view path;
    std::vector<std::size_t> vmas;
  };
  /// A name is asked for as it is, or by its last part.
  void index(std::string_view path, std::size_t name) {
    exact_[path].push_back(name);
    const std::string_view base = path.substr(path.rfind('/') + 1);
    if (base != path) exact_[base].push_back(name);
  }

  const std::vector<Vma>& vmas_;
  std::vector<Name> names_;
  std::unordered_map<std::string_view, std::vector<std::size_t>> exact_;
};

constexpr const char* hidden_hint =
    "CAP_SYS_PTRACE, or the group of proc's mount option gid=, shows all processes";

/// A rule, whose check has its window or a reason why not.
struct Ready {
  Rule* rule;
  std::string no_window;
  std::string hint;
  bool used = false;  ///< some process had a mapping for it
};

class Look {
 public:
  Look(const Subjects& subjects, const MapcheckOptions& options, std::vector<Rule>& rules)
      : subjects_(subjects), options_(options), sources_(subjects.root) {
    for (Rule& rule : rules) {
      Ready ready{.rule = &rule, .no_window = {}, .hint = {}};
      auto window = look_up(rule.window, sources_, subjects.root.page_size());
      if (window) {
        rule.check.window = std::move(*window);
      } else {
        ready.no_window = to_string(window.error());
        if (window.error().hint != nullptr) ready.hint = window.error().hint;
      }
      rules_.push_back(std::move(ready));
    }
    report_.access = subjects.root.pfn_access();
  }

  Report run() {
    if (subjects_.one) {
      one_process(*subjects_.one);
    } else {
      every_process();
    }
    // Of one process that could not be read nothing is known: that is said, and no more.
    for (Ready& ready : rules_) {
      if (!ready.used && !unread_)
        nothing_selected(ready, nullptr, maybe_selected_.contains(&ready));
    }
    finish();
    return std::move(report_);
  }

 private:
  void every_process() {
    const auto pids = subjects_.root.processes();
    if (!pids) {
      report_.unchecked.push_back({0, {}, to_string(pids.error())});
      return;
    }
    hidden_ = subjects_.root.hidden_processes();
    if (hidden_) {
      report_.unchecked.push_back(
          {0, {}, fmt::format("there may be more processes: {}", *hidden_)});
    }
    for (const pid_t pid : *pids) {
      if (interrupted()) return;
      auto process = subjects_.root.process(pid);
      if (process) {
        process->skip_odd_lines();
        const bool asked = subjects_.all || std::ranges::any_of(rules_, [&](const Ready& ready) {
                             return names(ready, *process);
                           });
        if (asked) one_process(*process);
      } else if (process.error().code != Errc::no_process &&
                 process.error().code != Errc::no_user_memory) {
        // Whether a rule is about it is not known.
        report_.unchecked.push_back({pid, {}, to_string(process.error())});
      }
    }
  }

  /// Whether the rule names that process; a rule without a name is for those of the command line.
  bool names(const Ready& ready, const Process& process) const {
    return ready.rule->process.empty() ? subjects_.one || subjects_.all
                                       : matches_glob(ready.rule->process, process.comm());
  }

  void refused(const Process& process, const Error& error) {
    // With many processes, one that has just ended is not there to be checked.
    const bool ended = error.code == Errc::no_process || error.code == Errc::no_user_memory ||
                       error.code == Errc::process_changed;
    if (ended && !subjects_.one) return;
    unread_ = subjects_.one.has_value();
    report_.unchecked.push_back({process.pid(), process.comm(), to_string(error)});
    if (error.hint != nullptr && report_.hint.empty()) report_.hint = error.hint;
  }

  void one_process(const Process& process) {
    const auto vmas = read_vmas(process);
    if (!vmas) return refused(process, vmas.error());
    if (const auto lines = left_out_texts(process); !lines.empty()) {
      std::string all;
      for (const std::string& line : lines) all += (all.empty() ? "" : "; ") + line;
      report_.unchecked.push_back({process.pid(), process.comm(), std::move(all)});
    }
    auto translator = open_source(options_, process);
    if (!translator) return refused(process, translator.error());
    VmaInspector inspector{process, vm_flags_source(process, **translator)};

    // Indices: mapping, rule; derived checks have the rule SIZE_MAX.
    std::vector<Choice> choices = choose(process, *vmas, true);
    if (choices.empty() && !options_.automatic) return;
    std::vector<Classification> kinds(vmas->size());
    std::vector<bool> classified(vmas->size());
    const auto classify = [&](std::size_t i) {
      if (!classified[i]) kinds[i] = inspector.classify((*vmas)[i]);
      classified[i] = true;
      return kinds[i];
    };
    if (options_.automatic) {
      for (std::size_t i = 0; i < vmas->size(); ++i) {
        const Classification what = classify(i);
        const bool device_dax =
            what.kind == VmaKind::dax && (*vmas)[i].path.starts_with("/dev/dax");
        if (what.vma_class == VmaClass::device || device_dax) choices.push_back({i, SIZE_MAX});
      }
    }
    std::ranges::sort(choices, {}, [](const Choice& c) { return std::pair(c.vma, c.rule); });

    std::vector<MappingCheck> checks;
    std::vector<std::size_t> rows;  // of each of `checks`
    for (const Choice& choice : choices) {
      const Vma& vma = (*vmas)[choice.vma];
      CheckedMapping row{.check = nullptr,
                         .window = {},
                         .pid = process.pid(),
                         .comm = process.comm(),
                         .vma = vma,
                         .what = classify(choice.vma),
                         .flags = {}};
      if (options_.json) row.flags = inspector.flags(vma);
      if (choice.rule == SIZE_MAX) {
        derive(process, **translator, inspector, vma, row);
      } else {
        const Ready& ready = rules_[choice.rule];
        row.check = &ready.rule->check;
        row.window = ready.rule->window.text;
        row.reason = ready.no_window;
        row.hint = ready.hint;
        if (row.reason.empty() && ready.rule->nth != 0 && may_precede(process, vma))
          row.reason = "which mapping is meant by nth is not known: " + left_out;
      }
      order_.push_back(choice.rule);
      if (row.reason.empty()) {
        checks.push_back({row.check, &vma});
        rows.push_back(report_.rows.size());
      }
      report_.rows.push_back(std::move(row));
    }
    if (report_.access == PfnAccess::unknown) report_.access = pfn_access(process, **translator);
    report_.backend = (*translator)->backend();
    if (options_.json) report_.flags_from = flags_source_name(inspector, process.root());
    const WalkOptions walk{.threads = usable_cpus(2), .stop = interrupted};
    std::vector<CheckResult> results =
        check_mappings(process, **translator, inspector, sources_, checks, walk);
    for (std::size_t i = 0; i < results.size(); ++i)
      report_.rows[rows[i]].result = std::move(results[i]);
    for (const std::size_t i : rows) doubt(process, report_.rows[i]);
    if (const Error* const why = (*translator)->why_blind(); why != nullptr && why->hint != nullptr)
      blind_hint_ = why->hint;
    selected_otherwise(process, *vmas, choices);
    // What a mapping is decides what it must be.
    if (const Error* const missing = inspector.missing()) not_all_read(process, *missing);
  }

  void not_all_read(const Process& process, const Error& error) {
    report_.unchecked.push_back(
        {process.pid(), process.comm(), to_string(error), error.hint != nullptr ? error.hint : ""});
  }

  // ---- lines of maps that were left out

  inline static const std::string left_out = "a line of maps was left out";

  /// Whether such a line may stand for a mapping that the rule selects.
  static bool may_select(const Process& process, const Rule& rule) {
    const Selector& select = rule.check.select;
    return select.form == Selector::Form::address
               ? process.may_be_left_out({select.address, select.address + 1})
               : !process.odd_lines().empty();
  }

  static bool may_precede(const Process& process, const Vma& vma) {
    return std::ranges::any_of(process.odd_lines(), [&](const OddLine& line) {
      return line.range.start < vma.range.start;
    });
  }

  /// What two lines tell of cannot pass.
  static void doubt(const Process& process, CheckedMapping& row) {
    for (const OddLine& line : process.odd_lines()) {
      const VaRange part = process.part_told_by(line, row.vma->range);
      if (part.empty()) continue;
      row.result.add({.kind = FindingKind::unseen,
                      .va = part.start,
                      .bytes = part.bytes(),
                      .expected = {},
                      .actual = {},
                      .detail = fmt::format("line {} of maps, which was left out, tells of it, too",
                                            line.line)});
    }
  }

  struct Choice {
    std::size_t vma;
    std::size_t rule;
  };

  std::vector<Choice> choose(const Process& process, const std::vector<Vma>& vmas, bool report) {
    const Selection selection{vmas};
    std::vector<Choice> choices;
    for (std::size_t r = 0; r < rules_.size(); ++r) {
      Ready& ready = rules_[r];
      if (!names(ready, process)) continue;
      std::vector<std::size_t> found = selection(ready.rule->check.select);
      if (const std::uint64_t nth = ready.rule->nth; nth != 0)
        found = nth <= found.size() ? std::vector{found[nth - 1]} : std::vector<std::size_t>{};
      for (const std::size_t i : found) choices.push_back({i, r});
      if (!report) continue;
      const bool doubtful = found.empty() && may_select(process, *ready.rule);
      if (doubtful) maybe_selected_.insert(&ready);
      if (!found.empty()) {
        ready.used = true;
      } else if (!ready.rule->process.empty() || subjects_.one) {
        // A process that the rule names has no such mapping.
        ready.used = true;
        nothing_selected(ready, &process, doubtful);
      }
    }
    return choices;
  }

  /// `process`: null for all. `doubtful`: what was left out may be such a mapping.
  void nothing_selected(const Ready& ready, const Process* process, bool doubtful) {
    if (ready.rule->check.optional && !doubtful) {
      report_.skipped.push_back(ready.rule->check.name);
      return;
    }
    const pid_t pid = process != nullptr ? process->pid() : 0;
    CheckedMapping row{.check = &ready.rule->check,
                       .window = ready.rule->window.text,
                       .pid = pid,
                       .comm = process != nullptr ? process->comm() : ""};
    if (pid != 0 || ready.rule->process.empty())
      row.reason = "no mapping is selected by " + selected_text(*ready.rule);
    else if (hidden_)
      row.reason = fmt::format("no process that is seen is named {}, or it is hidden: {}",
                               ready.rule->process, *hidden_);
    else
      row.reason = "no process is named " + ready.rule->process;
    if (doubtful)
      row.reason += "; " + left_out + ", which may be one";
    else if (pid == 0 && !report_.unchecked.empty() && !hidden_)
      row.reason += ", of those that could be looked at";
    if (hidden_ && pid == 0) row.hint = hidden_hint;
    order_.push_back(static_cast<std::size_t>(&ready - rules_.data()));
    report_.rows.push_back(std::move(row));
  }

  void derive(const Process& process, Translator& translator, VmaInspector& inspector,
              const Vma& vma, CheckedMapping& row) {
    auto derived = sources_.derive(process, vma, row.what);
    if (derived) {
      row.check = &report_.derived.emplace_back(std::move(*derived));
      row.window = row.check->window.text;
      return;
    }
    Check nothing;
    nothing.name = vma.path;
    row.check = &report_.derived.emplace_back(std::move(nothing));
    row.window = "?";
    // Where it is now proves nothing, so no rule is made of that.
    const auto now = describe(process, translator, inspector, sources_, vma, row.what);
    // "Not supported" is not the user's matter here: what cannot be derived is told by its name.
    const Error& error = derived.error();
    row.reason = error.code != Errc::not_supported ? to_string(error) : error.what;
    if (error.code == Errc::not_supported && !error.path.empty() && error.path != vma.path)
      row.reason += fmt::format(" ({})", error.path);
    row.reason +=
        fmt::format("; a rule for it, with the address PA that its driver tells: -e '{}=PA+{}'",
                    vma.path.empty() ? fmt::format("{:#x}", vma.range.start.value) : vma.path,
                    size_word(vma.range.bytes()));
    if (now) {
      row.reason += fmt::format("; now it is {}, which need not be right", expectation(*now));
    } else if (const Error* const why = translator.why_blind(); why != nullptr) {
      row.hint = why->hint != nullptr ? why->hint : "";
    }
  }

  /// A process whose mappings changed during the look may now have others that rules select.
  void selected_otherwise(const Process& process, const std::vector<Vma>& before,
                          std::vector<Choice> choices) {
    if (process.root().recorded() || rules_.empty()) return;
    const auto now = read_vmas(process);
    if (!now || *now == before) return;  // that it ended is found elsewhere
    std::erase_if(choices, [](const Choice& c) { return c.rule == SIZE_MAX; });
    for (const Choice& choice : choose(process, *now, false)) {
      const Vma& vma = (*now)[choice.vma];
      const bool known = std::ranges::any_of(choices, [&](const Choice& c) {
        return c.rule == choice.rule && !intersect(before[c.vma].range, vma.range).empty();
      });
      if (known) continue;
      CheckedMapping row{.check = &rules_[choice.rule].rule->check,
                         .window = rules_[choice.rule].rule->window.text,
                         .pid = process.pid(),
                         .comm = process.comm(),
                         .vma = vma};
      row.result.add({.kind = FindingKind::changed,
                      .va = vma.range.start,
                      .bytes = vma.range.bytes(),
                      .expected = {},
                      .actual = {},
                      .detail = "came while the process was being checked"});
      order_.push_back(choice.rule);
      report_.rows.push_back(std::move(row));
    }
  }

  /// What was looked at and was nothing is a check of its own, for every format to tell.
  void nothing_checked() {
    Check check;
    check.name = options_.automatic ? "--auto" : options_.policy.empty() ? "-e" : "--policy";
    CheckedMapping row{.check = &report_.derived.emplace_back(std::move(check)), .window = "?"};
    if (subjects_.one) {
      row.pid = subjects_.one->pid();
      row.comm = subjects_.one->comm();
    }
    row.reason =
        options_.automatic ? "no device mapping is there to be checked" : "nothing was checked";
    order_.push_back(SIZE_MAX);
    report_.rows.push_back(std::move(row));
  }

  void finish() {
    if (report_.rows.empty() && report_.unchecked.empty() && report_.skipped.empty())
      nothing_checked();
    std::vector<ResultOf> results;
    for (CheckedMapping& row : report_.rows) {
      if (row.vma) results.push_back({&row.result, row.pid, row.vma->range});
    }
    find_overlaps(results);
    // As the rules were asked; what --auto found comes last.
    std::vector<std::size_t> order(report_.rows.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::sort(order, {}, [&](std::size_t i) { return std::pair(order_[i], i); });
    std::vector<CheckedMapping> rows;
    rows.reserve(order.size());
    for (const std::size_t i : order) rows.push_back(std::move(report_.rows[i]));
    report_.rows = std::move(rows);

    for (CheckedMapping& row : report_.rows) {
      row.result.cached.clear();
      if (!row.reason.empty()) row.result.verdict = Verdict::unverified;
      switch (row.result.verdict) {
        case Verdict::pass:
          ++report_.pass;
          break;
        case Verdict::fail:
          ++report_.fail;
          break;
        case Verdict::unverified:
          ++report_.unverified;
          if (report_.why.empty()) say_why(row);
          break;
      }
    }
    if (report_.why.empty() && !report_.unchecked.empty()) {
      report_.why = report_.unchecked.front().reason;
      if (report_.hint.empty()) report_.hint = report_.unchecked.front().hint;
      if (hidden_ && report_.hint.empty()) report_.hint = hidden_hint;
    }
  }

  void say_why(const CheckedMapping& row) {
    report_.why = row.reason;
    if (!row.reason.empty() || row.result.findings.empty()) {
      if (report_.hint.empty()) report_.hint = row.hint;
      return;
    }
    report_.why = row.result.findings.front().detail;
    if (!report_.hint.empty()) return;
    if (report_.access == PfnAccess::hidden)
      report_.hint =
          subjects_.root.recorded() ? hidden_recorded_hint : permission_hint(Privilege::pfns);
    else
      report_.hint = blind_hint_;
  }

  const Subjects& subjects_;
  const MapcheckOptions& options_;
  WindowSources sources_;
  std::vector<Ready> rules_;
  std::vector<std::size_t> order_;  ///< of report_.rows: the rule, SIZE_MAX for a derived check
  std::string blind_hint_;
  bool unread_ = false;  ///< nothing is known of the one process
  std::set<const Ready*> maybe_selected_;  ///< by a line of maps that was left out
  std::optional<std::string_view> hidden_;  ///< why not every process is seen
  Report report_;
};

}  // namespace

Status Report::status() const {
  if (fail != 0) return Status::negative;
  return unverified != 0 || !unchecked.empty() ? Status::unanswered : Status::good;
}

Report look(const Subjects& subjects, const MapcheckOptions& options, std::vector<Rule>& rules) {
  return Look{subjects, options, rules}.run();
}

}  // namespace vmem::tools
