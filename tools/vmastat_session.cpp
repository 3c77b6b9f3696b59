// SPDX-License-Identifier: MIT
#include "vmastat_session.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <utility>

#include "report_file.hpp"
#include "targets.hpp"
#include "vma_json.hpp"
#include "vmastat_report.hpp"

namespace vmem::tools {
namespace {

/// A row that waits to be sorted, or grows.
struct HeldRow {
  pid_t pid = 0;
  std::string comm;
  std::optional<Vma> vma;
  Classification classification;
  std::string key;
  MemorySums sums;

  StatRow view() const {
    return {.pid = pid,
            .comm = comm,
            .vma = vma ? &*vma : nullptr,
            .classification = classification,
            .key = key,
            .sums = &sums};
  }
};

class Vmastat {
 public:
  Vmastat(const StatOptions& options, const SysRoot& root, std::vector<pid_t> pids,
          std::vector<StatColumn> columns, std::optional<StatColumn> sort)
      : options_(options),
        root_(root),
        pids_(std::move(pids)),
        grouped_(options.by != "vma"),
        held_(grouped_ || options.tree || options.top || sort || options.watch),
        sort_(sort),
        sharing_(options.json || options.openmetrics || !options.html.empty() ||
                 needs_sharing(columns) || sort_needs(needs_sharing)),
        frames_(options.pages || needs_frames(columns) || sort_needs(needs_frames)),
        table_(out_, root.page_size(), std::move(columns), options.bytes, use_color(options.color)),
        reader_(StatsReader::open(root, {.sharing = sharing_,
                                         .frames = frames_,
                                         .by_node = options.by == "node",
                                         .threads = threads(),
                                         .stop = interrupted})) {}

  int run() {
    if (const Error* error = reader_.frames_error()) fail(*error);
    if (options_.openmetrics)
      report_ = openmetrics_report(out_);
    else if (options_.map)
      report_ = map_report(out_, root_, terminal_width(), use_color(options_.color));
    else if (!options_.html.empty())
      report_ = html_report(html_, root_);
    if (report_)
      look_at_all();
    else if (options_.watch)
      watch();
    else
      look();
    return end();
  }

 private:
  bool sort_needs(bool (*needs)(const std::vector<StatColumn>&)) const {
    return sort_ && needs({*sort_});
  }
  unsigned threads() const { return options_.threads != 0 ? options_.threads : usable_cpus(2); }
  bool stopped() const { return interrupted() || out_.failed(); }

  // ---- messages and status

  void raise(Status status) { status_ = std::max(status_, status); }
  void fail(const Error& error) { fail(to_string(error), error.hint != nullptr ? error.hint : ""); }
  void fail(std::string_view text, std::string_view hint = {}) {
    out_.flush();
    messages_.error(text, hint);
    if (error_.empty()) error_ = text;
    raise(Status::unanswered);
  }

  int end() {
    const std::uint32_t asked =
        options_.json || report_ ? unknown_sum::all : shown_sums(table_.columns());
    const bool recorded = root_.recorded();
    if (hidden_ && (unknown_ & asked) != 0) {
      if (recorded)
        fail("PFNs are hidden in this recording",
             "it was recorded without CAP_SYS_ADMIN: record it again as root");
      else
        fail("PFNs are hidden from this user",
             "PFNs take CAP_SYS_ADMIN in the initial user namespace: run as root");
    } else if (changed_) {
      fail("a mapping kept changing while it was read", "stop the process (SIGSTOP), or try again");
    } else if ((unknown_ & asked &
                (unknown_sum::rss | unknown_sum::pss | unknown_sum::uss | unknown_sum::swap |
                 unknown_sum::frames)) != 0 &&
               error_.empty()) {
      fail("some sums cannot be told: neither page frames nor smaps say them",
           recorded ? "the recording lacks kpagecount or smaps with sums" : "run as root");
    }
    if (refused_ != 0) {
      fail(fmt::format("{} could not be read: permission denied",
                       refused_ == 1 ? "1 process" : fmt::format("{} processes", refused_)),
           "other users' processes take CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: run as root");
    }
    const Status status = finish_output(out_, status_, messages_);
    if (interrupted()) end_by_signal();
    return static_cast<int>(status);
  }

  // ---- reports

  static unsigned terminal_width() {
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col != 0) return size.ws_col;
    return 80;
  }

  void look_at_all() {
    for (const pid_t pid : pids_) {
      if (stopped()) return;
      look_at(pid);
    }
    if (stopped() || processes_ == 0) return;
    report_->finish(refused_);
    if (!options_.html.empty() && !write_report(options_.html, html_, messages_))
      raise(Status::unanswered);
  }

  // ---- one look at everything

  void look() {
    total_.clear();
    for (const pid_t pid : pids_) {
      if (stopped()) break;
      look_at(pid);
    }
    if (options_.json) {
      if (!begun_) return;
      if (grouped_) show_groups();
      out_.append("\n],\"totals\":{");
      append_sums(out_, total_, root_.page_size(), sharing_, frames_);
      if (interrupted() && error_.empty()) error_ = "interrupted";
      out_.print("}},\"error\":{}}}", error_.empty() ? "null" : json_string(error_));
      out_.end_line();
      return;
    }
    if (grouped_)
      show_groups();
    else if (held_)
      show_held();
    if (processes_ > 1 && !options_.no_headings && !stopped() && !options_.top) {
      table_.row({.key = "total of all", .sums = &total_});
    }
  }

  void heading() {
    if (!options_.no_headings) table_.heading();
  }

  void look_at(pid_t pid) {
    const auto refused = [&](const Error& error) {
      if (!options_.all) return fail(error);
      // Kernel threads have no memory, and processes end.
      if (error.code == Errc::permission) ++refused_;
      if (error.code == Errc::malformed || error.code == Errc::io) fail(error);
    };
    auto process = root_.process(pid);
    if (!process) return refused(process.error());
    auto translator = open_source(options_, *process);
    if (!translator) return refused(translator.error());
    VmaInspector inspector{*process, vm_flags_source(*process, **translator)};
    if (options_.json && !begun_) begin_json(*process, **translator);
    if (report_)
      report_->begin(*process);
    else
      begin_process(*process);
    MemorySums sums;
    Progress progress{"vmastat"};
    const auto extent = [&](const Vma* vma, const Extent& e) {
      if (vma != nullptr) report_->extent(*vma, e);
      return true;
    };
    const VmaExtentSink extents{extent};
    const auto vma = [&](const VmaStats& stats) {
      progress.at(stats.vma.range.start);
      sums.add(stats.sums);
      hidden_ = hidden_ || stats.sums.hidden != 0;
      changed_ = changed_ || stats.sums.changed != 0;
      unknown_ |= stats.sums.unknown;
      if (report_)
        report_->vma(stats);
      else if (grouped_)
        add_to_group(*process, stats);
      else
        add_vma(*process, inspector, stats);
      return !stopped();
    };
    auto read = reader_.read(*process, **translator, inspector, vma, report_ ? &extents : nullptr);
    ++processes_;
    total_.add(sums);
    if (!read) refused(read.error());
    if (report_)
      report_->end(sums, read.has_value());
    else
      end_process(*process, sums);
  }

  void begin_json(const Process& process, Translator& translator) {
    begun_ = true;
    out_.append(
        json_prologue("vmastat", root_, pfn_access(process, translator), translator.backend()));
    out_.append(grouped_ ? ",\n\"groups\":[" : ",\n\"processes\":[");
  }

  void begin_process(const Process& process) {
    if (!options_.json && !held_ && processes_ == 0) heading();
    if (!options_.json || grouped_) return;
    out_.print("{}\n{{\"pid\":{},\"comm\":{},\"start_time\":", processes_ != 0 ? "," : "",
               process.pid(), json_string(process.comm()));
    if (process.start_time())
      out_.print("{}", *process.start_time());
    else
      out_.append("null");
    out_.append(",\"vmas\":[");
    vmas_ = 0;
  }

  void end_process(const Process& process, const MemorySums& sums) {
    if (grouped_) return;
    if (options_.json) {
      if (held_) show_held();
      out_.append("\n],\"totals\":{");
      append_sums(out_, sums, root_.page_size(), sharing_, frames_);
      out_.append("}}");
    } else if (!held_ && !options_.no_headings && !stopped()) {
      table_.row({.pid = process.pid(), .comm = process.comm(), .key = "total", .sums = &sums});
    }
  }

  void add_vma(const Process& process, VmaInspector& inspector, const VmaStats& stats) {
    if (held_) {
      rows_.push_back({.pid = process.pid(),
                       .comm = process.comm(),
                       .vma = stats.vma,
                       .classification = stats.classification,
                       .key = {},
                       .sums = stats.sums});
      // The rows that will be printed are among the first so many of any of their sets.
      if (options_.top && !options_.watch && rows_.size() >= 2 * *options_.top + 1024) cut_rows();
    } else if (options_.json) {
      json_vma(stats.vma, stats.classification, stats.sums, inspector.flags(stats.vma));
    } else {
      table_.row({.pid = process.pid(),
                  .comm = process.comm(),
                  .vma = &stats.vma,
                  .classification = stats.classification,
                  .key = {},
                  .sums = &stats.sums});
    }
  }

  void json_vma(const Vma& vma, Classification classification, const MemorySums& sums,
                const std::optional<VmFlags>& flags) {
    out_.append(vmas_++ != 0 ? ",\n{" : "\n{");
    out_.append(vma_json(vma, classification, flags));
    out_.append(",");
    append_sums(out_, sums, root_.page_size(), sharing_, frames_);
    out_.append("}");
    out_.relieve();
  }

  // ---- groups

  void add_to_group(const Process& process, const VmaStats& stats) {
    if (options_.by == "node") {
      for (const auto& [node, sums] : stats.by_node)
        group(node < 0 ? "unknown" : std::to_string(node)).sums.add(sums);
      return;
    }
    std::string key;
    if (options_.by == "class") {
      key = to_string(stats.classification.vma_class);
    } else if (options_.by == "kind") {
      key = to_string(stats.classification.kind);
    } else if (options_.by == "process") {
      key = std::to_string(process.pid());
    } else {
      key = file_of(stats);
    }
    HeldRow& row = group(key);
    row.sums.add(stats.sums);
    if (options_.by == "process") {
      row.pid = process.pid();
      row.comm = process.comm();
    }
  }

  /// What a mapping is of: its file, or what it is called.
  static std::string file_of(const VmaStats& stats) {
    if (!stats.vma.path.empty()) return stats.vma.path;
    return fmt::format("[{}]", to_string(stats.classification.kind));
  }

  HeldRow& group(const std::string& key) {
    const auto [at, added] = groups_.try_emplace(key, rows_.size());
    if (added) {
      rows_.emplace_back();
      rows_.back().key = key;
    }
    return rows_[at->second];
  }

  // ---- rows that were held

  bool before(const HeldRow& a, const HeldRow& b) const {
    if (sort_) {
      const StatRow left = a.view();
      const StatRow right = b.view();
      const auto x = stat_number(*sort_, left, root_.page_size());
      const auto y = stat_number(*sort_, right, root_.page_size());
      if (x != y) return sorts_descending(*sort_) ? x > y : (x && (!y || *x < *y));
      if (!x) {
        const std::string s = table_.cell(*sort_, left);
        const std::string t = table_.cell(*sort_, right);
        if (s != t) return s < t;
      }
    }
    if (a.pid != b.pid) return a.pid < b.pid;
    if (a.vma && b.vma) return a.vma->range.start < b.vma->range.start;
    return a.key < b.key;
  }

  void cut_rows() {
    const auto by_order = [&](const HeldRow& a, const HeldRow& b) { return before(a, b); };
    if (options_.top && rows_.size() > *options_.top) {
      const auto middle = rows_.begin() + static_cast<std::ptrdiff_t>(*options_.top);
      std::ranges::nth_element(rows_, middle, by_order);
      rows_.erase(middle, rows_.end());
    }
  }

  void sort_rows() {
    if (options_.top) cut_rows();
    if (sort_ || grouped_ || options_.top) {
      std::ranges::sort(rows_, [&](const HeldRow& a, const HeldRow& b) { return before(a, b); });
    }
  }

  void show_held() {
    if (processes_ == 0) return;
    sort_rows();
    if (options_.json) {
      for (const HeldRow& row : rows_) {
        json_vma(*row.vma, row.classification, row.sums, {});
        if (stopped()) break;
      }
    } else {
      heading();
      if (options_.tree)
        show_tree();
      else
        show_rows();
    }
    rows_.clear();
  }

  void show_rows() {
    for (const HeldRow& row : rows_) {
      StatRow view = row.view();
      if (grouped_ && options_.by == "process") view.key = row.comm;
      if (const auto old = old_.find(identity(row)); old != old_.end()) view.before = &old->second;
      if (!table_.row(view) || stopped()) return;
    }
  }

  void show_groups() {
    sort_rows();
    if (options_.json) {
      for (const HeldRow& row : rows_) {
        out_.print("{}\n{{\"key\":{}", &row != rows_.data() ? "," : "", json_string(row.key));
        if (options_.by == "process")
          out_.print(",\"pid\":{},\"comm\":{}", row.pid, json_string(row.comm));
        out_.append(",");
        append_sums(out_, row.sums, root_.page_size(), sharing_, frames_);
        out_.append("}");
        if (!out_.relieve() || stopped()) break;
      }
    } else if (processes_ != 0) {
      heading();
      show_rows();
    }
    rows_.clear();
    groups_.clear();
  }

  /// Each file with its sums, and below it its mappings.
  void show_tree() {
    std::map<std::pair<pid_t, std::string>, std::size_t> index;
    std::vector<std::vector<const HeldRow*>> files;
    for (const HeldRow& row : rows_) {
      const std::string name = row.vma->path.empty()
                                   ? fmt::format("[{}]", to_string(row.classification.kind))
                                   : row.vma->path;
      const auto [at, added] = index.try_emplace({row.pid, name}, files.size());
      if (added) files.emplace_back();
      files[at->second].push_back(&row);
    }
    std::vector<HeldRow> parents(files.size());
    std::vector<std::size_t> order(files.size());
    for (const auto& [key, i] : index) {
      parents[i].pid = key.first;
      parents[i].comm = files[i].front()->comm;
      parents[i].key = key.second;
      for (const HeldRow* row : files[i]) parents[i].sums.add(row->sums);
      order[i] = i;
    }
    if (sort_) {
      std::ranges::sort(
          order, [&](std::size_t a, std::size_t b) { return before(parents[a], parents[b]); });
    }
    for (const std::size_t i : order) {
      if (!table_.row(parents[i].view()) || stopped()) return;
      for (const HeldRow* row : files[i]) {
        StatRow view = row->view();
        const std::string branch = fmt::format(
            "{} {:x}-{:x} {} {}", row == files[i].back() ? "`-" : "|-", row->vma->range.start.value,
            row->vma->range.end.value, permissions(*row->vma), to_string(row->classification.kind));
        view.key = branch;
        view.branch = true;
        if (!table_.row(view)) return;
      }
    }
  }

  // ---- --watch

  using Identity = std::pair<pid_t, std::string>;
  static Identity identity(const HeldRow& row) {
    if (!row.vma) return {row.pid, row.key};
    return {row.pid, fmt::format("{:x} {}", row.vma->range.start.value, row.vma->path)};
  }

  /// Whether something that the table shows is another than before.
  bool differs(const HeldRow& row) const {
    const auto old = old_.find(identity(row));
    if (old == old_.end()) return true;
    const MemorySums& a = row.sums;
    const MemorySums& b = old->second;
    return a.size != b.size || a.rss != b.rss || a.pss_fixed != b.pss_fixed || a.uss != b.uss ||
           a.swap != b.swap || a.hugetlb != b.hugetlb || a.device != b.device ||
           a.extents != b.extents || a.largest_extent != b.largest_extent || a.leaf != b.leaf ||
           a.nodes != b.nodes || a.unknown != b.unknown;
  }

  void watch() {
    const bool screen = isatty(STDOUT_FILENO) != 0 && !options_.json;
    for (std::uint64_t round = 0; !stopped(); ++round) {
      if (options_.json) {
        begun_ = false;
        processes_ = 0;
        error_.clear();
        look();
      } else {
        watch_round(screen, round == 0);
      }
      out_.flush();
      if (status_ != Status::good && processes_ == 0) return;
      if (options_.count != 0 && round + 1 >= options_.count) break;
      poll(nullptr, 0, static_cast<int>(std::min(*options_.watch * 1000, 2e9)));
    }
  }

  void watch_round(bool screen, bool first) {
    processes_ = 0;
    total_.clear();
    for (const pid_t pid : pids_) {
      if (stopped()) return;
      look_at(pid);
    }
    if (stopped()) return;
    std::map<Identity, MemorySums> now;
    for (const HeldRow& row : rows_) now.emplace(identity(row), row.sums);
    std::timespec clock{};
    std::timespec_get(&clock, TIME_UTC);
    std::tm local{};
    localtime_r(&clock.tv_sec, &local);
    char stamp[16];
    std::strftime(stamp, sizeof stamp, "%H:%M:%S", &local);
    if (screen) {
      sort_rows();
      winsize size{};
      std::size_t lines = 24;
      if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 4) lines = size.ws_row;
      if (rows_.size() + 4 > lines) rows_.resize(lines - 4);
      out_.print("\033[H\033[Jvmastat {}  every {:g} s", stamp, *options_.watch);
      out_.end_line();
      heading();
      show_rows();
      table_.row({.key = "total", .sums = &total_, .before = first ? nullptr : &old_total_});
    } else {
      if (!first) std::erase_if(rows_, [&](const HeldRow& row) { return !differs(row); });
      sort_rows();
      if (first) {
        if (!options_.no_headings) out_.print("{:<8}  ", "TIME");
        heading();
      }
      for (const HeldRow& row : rows_) {
        StatRow view = row.view();
        if (grouped_ && options_.by == "process") view.key = row.comm;
        if (const auto old = old_.find(identity(row)); old != old_.end())
          view.before = &old->second;
        out_.print("{}  ", stamp);
        if (!table_.row(view) || stopped()) break;
      }
      for (const auto& [id, sums] : old_) {
        if (now.contains(id) || stopped()) continue;
        const MemorySums gone;
        out_.print("{}  ", stamp);
        const std::string key = id.second + " (gone)";
        table_.row({.pid = id.first, .key = key, .sums = &gone, .before = &sums});
      }
    }
    old_ = std::move(now);
    old_total_ = total_;
    rows_.clear();
    groups_.clear();
  }

  const StatOptions& options_;
  const SysRoot& root_;
  std::vector<pid_t> pids_;
  const bool grouped_;
  const bool held_;  ///< rows are not printed as they come
  const std::optional<StatColumn> sort_;
  const bool sharing_;
  const bool frames_;
  const Messages messages_{"vmastat"};
  Output out_{interrupted};
  StatTable table_;
  StatsReader reader_;
  std::unique_ptr<StatReport> report_;  ///< in place of tables and JSON
  std::string html_;
  MemorySums total_;
  std::vector<HeldRow> rows_;
  std::map<std::string, std::size_t> groups_;  ///< index into rows_
  std::map<Identity, MemorySums> old_;         ///< --watch: the last look
  MemorySums old_total_;
  std::size_t processes_ = 0;
  std::size_t vmas_ = 0;  ///< of the process that is being printed
  std::size_t refused_ = 0;
  bool begun_ = false;
  bool hidden_ = false;
  bool changed_ = false;
  std::uint32_t unknown_ = 0;
  std::string error_;  ///< the first, for the JSON document
  Status status_ = Status::good;
};

std::vector<StatColumn> default_columns(const StatOptions& options, bool several) {
  using enum StatColumn;
  std::vector<StatColumn> columns;
  if (options.by == "vma") {
    if (several) columns.push_back(pid);
    if (!options.tree) columns.insert(columns.end(), {start, end, perms, vma_class, kind});
  } else {
    if (options.by == "process") columns.push_back(pid);
    columns.push_back(vmas);
  }
  columns.insert(columns.end(), {size, rss});
  if (options.watch) columns.push_back(drss);
  columns.insert(columns.end(), {pss, uss, swap});
  if (options.watch) columns.push_back(dswap);
  if (options.by != "vma" || options.tree) columns.insert(columns.end(), {hugetlb, device});
  columns.insert(columns.end(), {pte, pmd, pud, extents, largest, nodes});
  if (options.pages)
    columns.insert(columns.end(), {zero, ksm, dirty, referenced, active, mlocked, folios, flags});
  columns.push_back(name);
  return columns;
}

}  // namespace

int run_vmastat(const StatOptions& options, const std::vector<std::string>& words) {
  const Messages messages{"vmastat"};
  const auto usage = [&](std::string_view text, std::string_view hint) {
    messages.error(text, hint);
    return static_cast<int>(Status::unanswered);
  };
  if (options.all && (!words.empty() || !options.comm.empty()))
    return usage("--all takes no TARGET", "see --help");
  if (options.tree && options.by != "vma")
    return usage("--tree and --by do not go together", "see --help");
  const int forms = (options.json ? 1 : 0) + (options.openmetrics ? 1 : 0) + (options.map ? 1 : 0) +
                    (options.html.empty() ? 0 : 1);
  const bool reports = options.openmetrics || options.map || !options.html.empty();
  if (forms > 1 || (reports && (options.watch || options.tree || options.by != "vma" ||
                                !options.sort.empty() || options.top || !options.columns.empty())))
    return usage(
        "--json, --openmetrics, --map and --html stand alone, without --watch, --tree, "
        "--by, --sort, --top and --output",
        "see --help");
  if (options.tree && options.json) return usage("--tree is not for --json", "use --by file");
  std::optional<StatColumn> sort;
  const std::string known = "columns: " + stat_column_names();
  if (!options.sort.empty()) {
    sort = stat_column(options.sort);
    if (!sort) return usage(fmt::format("{}: no such column", options.sort), known);
  }
  std::optional<std::vector<StatColumn>> columns;
  if (!options.columns.empty()) {
    auto chosen = parse_stat_columns(options.columns);
    if (!chosen) return usage(fmt::format("{}: no such column", chosen.error()), known);
    columns = std::move(*chosen);
  }
  catch_interrupts();
  const auto root = open_root(options, messages);
  if (!root) return static_cast<int>(Status::unanswered);
  std::vector<pid_t> pids;
  if (options.all) {
    auto all = root->processes();
    if (!all) {
      messages.error(all.error());
      return static_cast<int>(Status::unanswered);
    }
    pids = std::move(*all);
  } else {
    auto found = find_targets(*root, options, words, messages);
    if (!found) return static_cast<int>(Status::unanswered);
    pids = std::move(*found);
  }
  if (!columns) columns = default_columns(options, pids.size() > 1);
  return Vmastat{options, *root, std::move(pids), std::move(*columns), sort}.run();
}

}  // namespace vmem::tools
