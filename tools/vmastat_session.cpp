// SPDX-License-Identifier: MIT
#include "vmastat_session.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <utility>

#include "report_file.hpp"
#include "targets.hpp"
#include "vma_json.hpp"
#include "vmastat_pool.hpp"
#include "vmastat_report.hpp"
#include "vmastat_thp.hpp"

namespace vmem::tools {
namespace {

/// What is told of a mapping beside its sums, where asked for; empty: not known.
struct Extras {
  std::string policy, split;
  ThpAnswer thp;
  std::optional<bool> thp_eligible;
};

/// What all members of a group have in common.
template <class T>
class Common {
 public:
  void add(const T& value) {
    if (!any_) value_ = value;
    if (value_ != value) value_.reset();
    any_ = true;
  }
  const std::optional<T>& value() const { return value_; }

 private:
  std::optional<T> value_;
  bool any_ = false;
};

/// What the mappings of a group have in common.
struct GroupFacts {
  Common<VmaClass> vma_class;
  Common<VmaKind> kind;
  Common<pid_t> pid;
  Common<std::string> comm;
};

/// A row that waits to be sorted, or grows. There are many, and sorting moves them.
struct HeldRow {
  pid_t pid = 0;  ///< 0: of a group of all processes' mappings
  std::string comm;
  std::optional<Vma> vma;
  Classification classification;
  std::string key;
  MemorySums sums;
  std::optional<VmFlags> flags;
  std::unique_ptr<Extras> extras;     ///< null: nothing of it is asked for
  std::unique_ptr<GroupFacts> group;  ///< null: it is no group

  StatRow view() const {
    StatRow row{.pid = pid,
                .comm = comm,
                .vma = vma ? &*vma : nullptr,
                .classification = classification,
                .key = key,
                .sums = &sums};
    if (group) {
      row.group_class = group->vma_class.value();
      row.group_kind = group->kind.value();
      if (pid == 0) {
        row.pid = group->pid.value().value_or(0);
        if (group->comm.value()) row.comm = *group->comm.value();
      }
    }
    if (extras) {
      row.policy = extras->policy;
      row.split = extras->split;
      row.thp = extras->thp.why;
    }
    return row;
  }
};

/// A process that could not be read.
struct Refused {
  pid_t pid = 0;
  std::string comm;
  std::string reason;
};

constexpr std::string_view gate = "[vsyscall]";  ///< the kernel's own: in no process's map_count

/// Whether the caller may look into other users' processes, as far as capabilities tell.
bool may_look_into_all() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  if (syscall(SYS_capget, &header, data) != 0) return false;
  const auto has = [&](unsigned n) { return (data[0].effective >> n & 1) != 0; };
  return has(CAP_SYS_PTRACE) && (has(CAP_DAC_READ_SEARCH) || has(CAP_DAC_OVERRIDE));
}

/// What lies in a driver's mapping is in these sums alone.
constexpr std::uint32_t sums_of_drivers = unknown_sum::device | unknown_sum::uncounted |
                                          unknown_sum::leaf | unknown_sum::extents |
                                          unknown_sum::frames;
constexpr std::string_view unseen_hint =
    "a driver's mapping (VM_PFNMAP): BPF or the kernel module read its page tables";
constexpr std::string_view frames_or_smaps =
    "/proc/kpagecount and kpageflags (CAP_DAC_READ_SEARCH) tell it, or smaps (CAP_SYS_PTRACE)";
constexpr std::string_view stronger = "it has capabilities that you have not, or an LSM refuses";

/// Empty: the system does not say it.
Result<std::optional<std::uint64_t>> read_max_map_count(const SysRoot& root) {
  auto text = root.read_file("proc/sys/vm/max_map_count", 4096);
  std::uint64_t count = 0;
  if (!text && text.error().code == Errc::not_found) return std::nullopt;
  if (!text) return std::unexpected(std::move(text.error()));
  const auto parsed = std::from_chars(text->data(), text->data() + text->size(), count);
  return parsed.ec == std::errc{} ? std::optional(count) : std::nullopt;
}

/// Why the kernel does not merge a mapping with the one before it (vma_merge() in mm/vma.c), as far
/// as that shows: words, separated by commas. Empty: VmFlags would tell, and are not known.
std::string why_apart(const Vma& a, const std::optional<VmFlags>& a_flags,
                      std::string_view a_policy, const Vma& b,
                      const std::optional<VmFlags>& b_flags, std::string_view b_policy) {
  if (a.range.end != b.range.start) return "gap";
  std::string words;
  const auto word = [&](std::string_view text) {
    if (!words.empty()) words += ',';
    words += text;
  };
  if (permissions(a) != permissions(b)) word("perms");
  const bool same_file =
      a.inode == b.inode && a.dev_major == b.dev_major && a.dev_minor == b.dev_minor;
  if (!same_file)
    word("file");
  else if (a.path != b.path)
    word("name");
  else if (a.inode != 0 && a.offset + a.range.bytes() != b.offset)
    word("offset");
  bool special = false;
  if (a_flags && b_flags) {
    std::string differ;
    const auto only_in = [&](const VmFlags& one, const VmFlags& other, char sign) {
      for (std::string_view rest = one.text(); !rest.empty();) {
        const std::size_t space = std::min(rest.find(' '), rest.size());
        const std::string_view code = rest.substr(0, space);
        rest.remove_prefix(std::min(space + 1, rest.size()));
        // These are permissions, and soft-dirty is no reason.
        if (code.empty() || code == "rd" || code == "wr" || code == "ex" || code == "sh" ||
            code == "sd" || other.has(code))
          continue;
        differ.append(1, sign).append(code);
      }
    };
    only_in(*b_flags, *a_flags, '+');
    only_in(*a_flags, *b_flags, '-');
    if (!differ.empty()) word("flags" + differ);
    for (const char* code : {"io", "de", "pf", "mm"})
      special = special || a_flags->has(code) || b_flags->has(code);
  }
  if (!a_policy.empty() && !b_policy.empty() && a_policy != b_policy) word("policy");
  if (special) word("special");
  if (words.empty() && a_flags && b_flags) word("other");
  return words;
}

class Vmastat {
 public:
  Vmastat(const StatOptions& options, const SysRoot& root, std::vector<pid_t> pids,
          std::optional<std::string_view> partial, std::vector<StatColumn> columns,
          std::optional<StatColumn> sort)
      : options_(options),
        root_(root),
        pids_(std::move(pids)),
        hidden_processes_(partial),
        grouped_(options.by != "vma"),
        held_(grouped_ || options.tree || options.top || sort || options.watch),
        sort_(sort),
        sharing_(options.json || options.openmetrics || !options.html.empty() ||
                 needs_sharing(columns) || sort_needs(needs_sharing)),
        frames_(options.pages || needs_frames(columns) || sort_needs(needs_frames)),
        smaps_(options.smaps || needs_smaps(columns) || sort_needs(needs_smaps)),
        policy_(needs_policy(columns) || sort_needs(needs_policy)),
        split_(shows(columns, StatColumn::split)),
        thp_(options.thp || shows(columns, StatColumn::thp)),
        table_(out_, root.page_size(), std::move(columns), options.bytes, use_color(options.color)),
        reader_(StatsReader::open(root, {.sharing = sharing_,
                                         .frames = frames_,
                                         .smaps = smaps_,
                                         .policy = policy_,
                                         .by_node = options.by == "node",
                                         .threads = threads(),
                                         .stop = interrupted})) {}

  int run() {
    if (const Error* error = reader_.frames_error()) fail(*error);
    if (options_.all) hidden_processes_ = root_.hidden_processes();
    if (auto limit = read_max_map_count(root_))
      max_map_count_ = *limit;
    else
      fail(limit.error());
    if (thp_) machine_ = ThpMachine::read(root_);
    if (machine_.error) fail(*machine_.error);
    if (options_.openmetrics)
      report_ = openmetrics_report(
          out_,
          {.max_map_count = max_map_count_,
           .hidden = options_.all ? std::optional(hidden_processes_.has_value()) : std::nullopt});
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
  bool shows(const std::vector<StatColumn>& columns, StatColumn column) const {
    return sort_ == column || std::ranges::find(columns, column) != columns.end();
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
    std::uint32_t asked =
        options_.json || report_ ? unknown_sum::all : shown_sums(table_.columns());
    // Which rows there are, and what is in which.
    if (options_.by == "node") asked |= unknown_sum::nodes;
    if (sort_) asked |= shown_sums(*sort_);
    const std::uint32_t sums =
        unknown_sum::rss | unknown_sum::pss | unknown_sum::uss | unknown_sum::swap |
        unknown_sum::frames |
        (reader_.tells_nodes() || options_.by == "node" ? unknown_sum::nodes : 0U);
    const bool recorded = root_.recorded();
    if (hidden_ &&
        (unknown_ & asked &
         (sums | unknown_sum::nodes | unknown_sum::extents | unknown_sum::uncounted)) != 0) {
      if (recorded)
        fail("PFNs are hidden in this recording", hidden_recorded_hint);
      else
        fail("PFNs are hidden from this user", permission_hint(Privilege::pfns));
    } else if (changed_) {
      fail("a mapping kept changing while it was read", "stop the process (SIGSTOP), or try again");
    } else if ((unknown_ & asked & sums) != 0 && error_.empty()) {
      if ((unknown_ & asked & sums) == unknown_sum::nodes)
        fail(
            "on which nodes some memory lies cannot be told: neither page frames nor numa_maps say "
            "it",
            recorded ? "the recording lacks sys/devices/system/node, or frames and numa_maps"
                     : "it moves just now, or is on no node that the kernel lists");
      else
        fail("some sums cannot be told: neither page frames nor smaps say them",
             recorded ? "the recording lacks kpagecount or smaps with sums" : frames_or_smaps);
    } else if ((node_unknown_ & asked) != 0 && error_.empty()) {
      fail(
          "what is shared cannot be told node by node: page frames do not say how often they are "
          "mapped",
          recorded ? "the recording lacks kpagecount" : frames_or_smaps);
    } else {
      untold_columns();
    }
    const bool all_by_default = options_.columns.empty() && !recorded;
    if (leaves_untold_ != 0 && all_by_default && !report_ && error_.empty() &&
        (shown_sums(table_.columns()) & unknown_sum::leaf) != 0) {
      fail(fmt::format("the leaf sizes of {} could not be told", human_size(leaves_untold_, false)),
           "page tables tell them: use --backend bpf or kmod");
    } else if (unseen_ != 0 && all_by_default && error_.empty()) {
      fail(fmt::format("what is mapped in {} of drivers' mappings (VM_PFNMAP) could not be seen",
                       human_size(unseen_, false)),
           unseen_hint);
    }
    if (!refused_.empty() && !refused_said_) fail_refused();
    if (hidden_processes_ && options_.all)
      fail(*hidden_processes_, "see hidepid in proc(5): CAP_SYS_PTRACE lifts it");
    else if (hidden_processes_)
      raise(Status::unanswered);  // find_targets() has said it
    say_what_no_mapping_shows();
    const Status status = finish_output(out_, status_, messages_);
    if (interrupted()) end_by_signal();
    return static_cast<int>(status);
  }

  /// What the sums of mappings cannot have. No answer is less for it.
  void say_what_no_mapping_shows() {
    if (options_.json || report_ || interrupted() ||
        !shows(table_.columns(), StatColumn::hugetlb) || (!options_.all && untouched_hugetlb_ == 0))
      return;
    const auto pool = read_huge_page_pool(root_);
    if (!pool) return;
    out_.flush();
    // A page that several processes map counts several times: there may be more, and never less.
    if (options_.all && pool->used > total_.hugetlb)
      messages_.error(
          fmt::format("huge pages: {} of the pool is in use, and no process read here maps it",
                      human_size(pool->used - total_.hugetlb, false)),
          "files of hugetlbfs, memfds and SysV segments keep huge pages that nobody maps: "
          "grep hugetlbfs /proc/mounts; ipcs -m");
    if (pool->reserved != 0)
      messages_.error(fmt::format(
          "huge pages: {} of the pool is reserved for mappings that have not touched it",
          human_size(pool->reserved, false)));
  }

  /// What was asked for by name and cannot be had is said, and raises the status.
  void untold_columns() {
    std::vector<StatColumn> named;
    if (!options_.columns.empty()) named = table_.columns();
    if (options_.smaps && options_.columns.empty())
      named = {StatColumn::swap_pss, StatColumn::pss_dirty, StatColumn::accessed,
               StatColumn::lazyfree, StatColumn::locked};
    if (sort_) named.push_back(*sort_);
    std::string names;
    std::string_view hint;
    const auto untold = [&](std::string_view name, std::string_view why) {
      names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
      if (hint.empty()) hint = why;
    };
    for (const StatColumn column : named) {
      std::uint32_t missing = shown_sums(column) & (unknown_ | row_unknown_ | frames_unseen_);
      if (reader_.frames_error() != nullptr) missing &= ~unknown_sum::frames;  // it has been said
      const std::string_view name = stat_column_name(column);
      if ((missing & unknown_sum::smaps) != 0)
        untold(name, "smaps cannot be read, or this kernel's smaps does not say it");
      else if (missing != 0 && unseen_ != 0 && (missing & ~sums_of_drivers) == 0)
        untold(name, unseen_hint);
      else if ((missing & unknown_sum::nodes) != 0)
        untold(name, "neither frames nor numa_maps tell on which node it lies");
      else if ((missing & unknown_sum::ksm) != 0)
        untold(name, "kernels 6.10 to 6.16 set this flag of all anonymous memory");
      else if (missing != 0)
        untold(name, options_.by == "node" ? "this is not told apart by node" : frames_or_smaps);
      else if (leaves_untold_ != 0 && (column == StatColumn::pte || column == StatColumn::pmd ||
                                       column == StatColumn::pud))
        untold(name, "kernels before 6.7 do not tell leaf sizes: BPF or the kernel module do");
      else if (column == StatColumn::policy && no_policy_)
        untold(name, "numa_maps cannot be read, or this kernel has no NUMA");
      else if ((column == StatColumn::split && no_split_) || (column == StatColumn::thp && no_thp_))
        untold(name, "VmFlags cannot be read");
    }
    if (options_.thp && no_thp_ && names.empty())
      untold("thp", "VmFlags or leaf sizes cannot be read");
    if (!names.empty()) fail(fmt::format("not all of this can be told: {}", names), hint);
  }

  /// Which processes could not be read, and why.
  std::string refused_text() const {
    constexpr std::size_t most = 3;
    std::string who;
    for (const Refused& one : std::span(refused_).first(std::min(most, refused_.size())))
      who += fmt::format("{}PID {}{}{}", who.empty() ? "" : ", ", one.pid,
                         one.comm.empty() ? "" : " ", printable(one.comm));
    if (refused_.size() > most) who += fmt::format(" and {} more", refused_.size() - most);
    const bool one = refused_.size() == 1;
    return fmt::format("{} could not be read ({}): {}",
                       one ? "1 process" : fmt::format("{} processes", refused_.size()), who,
                       !capable_ ? "permission denied"
                       : one     ? stronger
                                 : "they have capabilities that you have not, or an LSM refuses");
  }

  void fail_refused() { fail(refused_text(), capable_ ? "" : permission_hint(Privilege::process)); }

  void refuse(pid_t pid) {
    Refused one{.pid = pid, .comm = {}, .reason = {}};
    if (const auto comm = root_.read_file(("proc/" + std::to_string(pid) + "/comm").c_str(), 4096))
      one.comm = comm->substr(0, comm->find('\n'));
    one.reason = capable_ ? stronger : "permission denied";
    refused_.push_back(std::move(one));
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
    report_->finish(refused_.size());
    if (!options_.html.empty() && !write_report(options_.html, html_, messages_))
      raise(Status::unanswered);
  }

  // ---- one look at everything

  void look() {
    total_.clear();
    torn_.clear();
    gone_.clear();
    refused_.clear();
    set_time();
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
      out_.append("}");
      end_json();
      return;
    }
    if (grouped_)
      show_groups();
    else if (held_)
      show_held();
    if (processes_ > 1 && !options_.no_headings && !stopped() && !options_.top) {
      print_row({.key = "total of all", .sums = &total_});
    }
    if (options_.thp && processes_ != 0 && !stopped()) show_thp();
  }

  void show_thp() {
    out_.end_line();
    for (const std::string_view word : thp_seen_) {
      out_.print("{}: {}", word, thp_meaning(word));
      out_.end_line();
    }
    append_thp_text(out_, machine_);
  }

  void end_json() {
    if (error_.empty() && !refused_.empty()) error_ = refused_text();
    if (error_.empty() && hidden_processes_) error_ = *hidden_processes_;
    out_.append(",\"refused\":[");
    for (const Refused& one : refused_)
      out_.print(R"({}{{"pid":{},{},"reason":{}}})", &one != refused_.data() ? "," : "", one.pid,
                 json_name("comm", one.comm), json_string(one.reason));
    out_.append("],\"hidden_processes\":");
    out_.append(hidden_processes_ ? json_string(*hidden_processes_) : "null");
    out_.append(",\"near_map_count\":[");
    out_.append(near_limit_);
    out_.append("]");
    if (thp_) {
      out_.append(",\"thp\":");
      append_thp_json(out_, machine_);
    }
    out_.print(",\"error\":{}}}", error_.empty() ? "null" : json_string(error_));
    out_.end_line();
    near_limit_.clear();
  }

  void set_time() {
    std::timespec clock{};
    std::timespec_get(&clock, TIME_UTC);
    std::tm local{};
    localtime_r(&clock.tv_sec, &local);
    std::strftime(time_, sizeof time_, "%H:%M:%S", &local);
  }

  /// Prints a row, with the time of the look.
  bool print_row(StatRow row) {
    row.time = time_;
    return table_.row(row);
  }

  void heading() {
    if (!options_.no_headings) table_.heading();
  }

  void look_at(pid_t pid) {
    auto process = root_.process(pid);
    // A call may fail as it does of a process that has ended, and it has not.
    const auto has_ended = [&](const Error& error) {
      return (error.code == Errc::no_process || error.code == Errc::process_changed) &&
             !(process ? process->check_alive().has_value() : root_.process(pid).has_value());
    };
    const auto refused = [&](const Error& error) {
      if (error.code == Errc::permission) refuse(pid);
      if (!options_.all) {
        // Who has the capabilities is not told to get them.
        if (error.code == Errc::permission && capable_)
          fail(to_string(error), fmt::format("PID {}: {}", pid, stronger));
        else
          fail(error);
        refused_said_ = true;
        return;
      }
      // Kernel threads have no memory, and processes end.
      if (error.code == Errc::permission || error.code == Errc::no_user_memory ||
          error.code == Errc::not_found || has_ended(error))
        return;
      fail(error);
    };
    if (!process) return refused(process.error());
    process->skip_odd_lines();  // the others are answered all the same
    auto translator = open_source(options_, *process);
    if (!translator) {
      const Error& error = translator.error();
      if (!options_.all || options_.backend == "auto" ||
          (error.code != Errc::not_found && error.code != Errc::not_supported))
        return refused(error);
      // The backend is not there, whatever the process.
      if (error_.empty()) fail(error);
      return;
    }
    VmaInspector inspector{*process, vm_flags_source(*process, **translator)};
    if (thp_) {
      auto allowed = thp_allowed(*process);
      if (!allowed) fail(allowed.error());
      thp_allowed_ = allowed.value_or(std::nullopt);
    }
    if (options_.json && !begun_) begin_json(*process, **translator, inspector);
    if (report_)
      report_->begin(*process);
    else
      begin_process(*process);
    MemorySums sums;
    map_count_ = 0;
    before_.reset();
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
      note_unknown(stats.sums);
      leaves_untold_ += stats.sums.leaf.at(0);
      if (stats.classification.kind == VmaKind::hugetlb)
        untouched_hugetlb_ += stats.sums.size - std::min(stats.sums.size, stats.sums.hugetlb);
      if (const VmaKind kind = stats.classification.kind;
          kind != VmaKind::vvar && kind != VmaKind::vsyscall)
        unseen_ += stats.sums.unseen;
      if (stats.vma.path != gate) ++map_count_;
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
    // Sums that a failure cut short are no sums. A process of -a that has ended is passed over.
    const bool gone = !read && options_.all && has_ended(read.error());
    if (!read && !interrupted() && !gone && (!options_.all || sums.vmas != 0)) {
      sums.unknown = unknown_sum::all;
      torn_.push_back(pid);
    }
    total_.add(sums);
    if (gone) {
      sums.unknown = unknown_sum::all;
      gone_.push_back(pid);
    }
    for (const std::string& text : left_out_texts(*process)) fail(text);
    if (!read) refused(read.error());
    // Of all processes some keep a file to themselves.
    if (const Error* const missing = inspector.missing();
        missing != nullptr && (!options_.all || missing->code != Errc::permission))
      fail(*missing);
    if (inspector.smaps_stalled() && options_.json && !grouped_)
      messages_.error(smaps_stalled_text, smaps_stalled_hint);
    compare_map_count(*process);
    if (report_)
      report_->end(sums, read.has_value());
    else
      end_process(*process, sums);
  }

  void note_unknown(const MemorySums& sums) {
    unknown_ |= sums.unknown & ~unknown_sum::frames;
    if (sums.known(unknown_sum::frames)) return;
    (sums.unseen != 0 ? frames_unseen_ : unknown_) |= unknown_sum::frames;
  }

  void begin_json(const Process& process, Translator& translator, VmaInspector& inspector) {
    begun_ = true;
    // Groups have no VmFlags: nothing is opened for them.
    out_.append(json_prologue("vmastat", root_, pfn_access(process, translator),
                              translator.backend(),
                              grouped_ ? "" : flags_source_name(inspector, root_)));
    out_.append(",\"max_map_count\":");
    out_.append(max_map_count_ ? std::to_string(*max_map_count_) : "null");
    out_.append(grouped_ ? ",\n\"groups\":[" : ",\n\"processes\":[");
  }

  /// From nine tenths of the limit on it is near: mmap(2), and what splits a mapping, fail there.
  void compare_map_count(const Process& process) {
    if (!max_map_count_ || map_count_ * 10 < *max_map_count_ * 9) return;
    if (options_.json) {
      near_limit_ += fmt::format(R"({}{{"pid":{},{},"vmas":{}}})", near_limit_.empty() ? "" : ",",
                                 process.pid(), json_name("comm", process.comm()), map_count_);
    }
    out_.flush();
    messages_.error(
        fmt::format("warning: PID {} {} has {} of the {} mappings that it may have "
                    "(vm.max_map_count)",
                    process.pid(), printable(process.comm()), map_count_, *max_map_count_),
        "-o split says why neighbours are not one mapping");
  }

  void begin_process(const Process& process) {
    if (!options_.json && !held_ && processes_ == 0) heading();
    if (!options_.json || grouped_) return;
    out_.print("{}\n{{\"pid\":{},{},\"start_time\":", processes_ != 0 ? "," : "", process.pid(),
               json_name("comm", process.comm()));
    if (process.start_time())
      out_.print("{}", *process.start_time());
    else
      out_.append("null");
    if (thp_)
      out_.print(",\"thp_enabled\":{}", !thp_allowed_ ? "null" : *thp_allowed_ ? "true" : "false");
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
      print_row({.pid = process.pid(), .comm = process.comm(), .key = "total", .sums = &sums});
    }
  }

  Extras extras_of(VmaInspector& inspector, const VmaStats& stats) {
    Extras extras;
    if (policy_) extras.policy = stats.policy;
    if (policy_ && extras.policy.empty() && stats.vma.path != gate) no_policy_ = true;
    if (!split_ && !thp_) return extras;
    std::optional<SmapsEntry> entry;
    if (thp_) entry = inspector.smaps(stats.vma);
    const auto flags = entry && entry->flags ? entry->flags : inspector.flags(stats.vma);
    if (split_) {
      extras.split = before_ ? why_apart(before_->vma, before_->flags, before_->policy, stats.vma,
                                         flags, stats.policy)
                             : "gap";
      no_split_ = no_split_ || extras.split.empty();
      before_ = Neighbour{stats.vma, flags, std::string(stats.policy)};
    }
    if (thp_) {
      if (entry) extras.thp_eligible = entry->thp_eligible;
      const bool kernel_file = stats.vma.inode != 0 && inspector.may_be_shmem(stats.vma) &&
                               inspector.filesystem(stats.vma) == "";
      extras.thp = thp_of(machine_, {.vma = stats.vma,
                                     .classification = stats.classification,
                                     .sums = stats.sums,
                                     .flags = flags,
                                     .eligible = extras.thp_eligible,
                                     .allowed = thp_allowed_,
                                     .kernel_file = kernel_file,
                                     .page_size = root_.page_size()});
      if (extras.thp.why.empty())
        no_thp_ = true;
      else if (std::ranges::find(thp_seen_, extras.thp.why) == thp_seen_.end())
        thp_seen_.push_back(extras.thp.why);
    }
    return extras;
  }

  void add_vma(const Process& process, VmaInspector& inspector, const VmaStats& stats) {
    Extras extras;
    if (policy_ || split_ || thp_) extras = extras_of(inspector, stats);
    if (held_) {
      HeldRow& row = rows_.emplace_back();
      row.pid = process.pid();
      row.comm = process.comm();
      row.vma = stats.vma;
      row.classification = stats.classification;
      row.sums = stats.sums;
      if (policy_ || split_ || thp_) row.extras = std::make_unique<Extras>(std::move(extras));
      // Now, for they are told in ascending order.
      if (options_.json) row.flags = inspector.flags(stats.vma);
      // The rows that will be printed are among the first so many of any of their sets.
      if (options_.top && !options_.watch && rows_.size() >= 2 * *options_.top + 1024) cut_rows();
    } else if (options_.json) {
      json_vma(stats.vma, stats.classification, stats.sums, inspector.flags(stats.vma), extras);
    } else {
      print_row({.pid = process.pid(),
                 .comm = process.comm(),
                 .vma = &stats.vma,
                 .classification = stats.classification,
                 .key = {},
                 .sums = &stats.sums,
                 .policy = extras.policy,
                 .split = extras.split,
                 .thp = extras.thp.why});
    }
  }

  void json_vma(const Vma& vma, Classification classification, const MemorySums& sums,
                const std::optional<VmFlags>& flags, const Extras& extras) {
    out_.append(vmas_++ != 0 ? ",\n{" : "\n{");
    out_.append(vma_json(vma, classification, flags));
    out_.append(",");
    if (policy_ || split_ || thp_) json_extras(extras);
    append_sums(out_, sums, root_.page_size(), sharing_, frames_);
    out_.append("}");
    out_.relieve();
  }

  void json_extras(const Extras& extras) {
    const auto word = [](std::string_view text) {
      return text.empty() ? std::string("null") : json_string(text);
    };
    if (policy_) out_.print("\"policy\":{},", word(extras.policy));
    if (split_) {
      out_.append("\"split\":");
      if (extras.split.empty()) {
        out_.append("null,");
      } else {
        std::string list;
        for (std::string_view rest = extras.split; !rest.empty();) {
          const std::size_t comma = std::min(rest.find(','), rest.size());
          list += (list.empty() ? "" : ",") + json_string(rest.substr(0, comma));
          rest.remove_prefix(std::min(comma + 1, rest.size()));
        }
        out_.print("[{}],", list);
      }
    }
    if (thp_)
      out_.print(R"("thp":{{"why":{},"eligible":{},"aligned":{}}},)", word(extras.thp.why),
                 !extras.thp_eligible   ? "null"
                 : *extras.thp_eligible ? "true"
                                        : "false",
                 extras.thp.room);
  }

  // ---- groups

  void add_to_group(const Process& process, const VmaStats& stats) {
    if (options_.by == "node") {
      for (const auto& [node, sums] : stats.by_node) {
        HeldRow& row = group(node < 0 ? "unknown" : std::to_string(node));
        row.sums.add(sums);
        row_unknown_ |= sums.unknown;
        if (node >= 0) node_unknown_ |= sums.unknown & (unknown_sum::pss | unknown_sum::uss);
        add_common(row, process, stats);
      }
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
    add_common(row, process, stats);
    if (options_.by == "process") {
      row.pid = process.pid();
      row.comm = process.comm();
    }
  }

  static void add_common(HeldRow& row, const Process& process, const VmaStats& stats) {
    if (!row.group) row.group = std::make_unique<GroupFacts>();
    row.group->vma_class.add(stats.classification.vma_class);
    row.group->kind.add(stats.classification.kind);
    row.group->pid.add(process.pid());
    row.group->comm.add(process.comm());
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

  /// What --sort compares, where it is a number.
  std::optional<std::uint64_t> sort_number(const HeldRow& row) const {
    return sort_ ? stat_number(*sort_, row.view(), root_.page_size()) : std::nullopt;
  }

  bool before(const HeldRow& a, const HeldRow& b) const {
    return before(a, sort_number(a), b, sort_number(b));
  }
  bool before(const HeldRow& a, std::optional<std::uint64_t> x, const HeldRow& b,
              std::optional<std::uint64_t> y) const {
    if (sort_) {
      if (x != y) return sorts_descending(*sort_) ? x > y : (x && (!y || *x < *y));
      if (!x) {
        const std::string s = table_.cell(*sort_, a.view());
        const std::string t = table_.cell(*sort_, b.view());
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
      // Rows are large: their places are sorted, and each row is moved once.
      std::vector<std::size_t> from;
      from.reserve(rows_.size());
      for (std::size_t i = 0; i != rows_.size(); ++i) from.push_back(i);
      std::vector<std::optional<std::uint64_t>> numbers;
      numbers.reserve(rows_.size());
      for (const HeldRow& row : rows_) numbers.push_back(sort_number(row));
      std::ranges::sort(from, [&](std::size_t a, std::size_t b) {
        return before(rows_[a], numbers[a], rows_[b], numbers[b]);
      });
      for (std::size_t start = 0; start != from.size(); ++start) {
        std::size_t at = start;
        while (from[at] != start) {
          const std::size_t next = from[at];
          std::swap(rows_[at], rows_[next]);
          from[at] = at;
          at = next;
        }
        from[at] = at;
      }
    }
  }

  void show_held() {
    if (processes_ == 0) return;
    sort_rows();
    if (options_.json) {
      for (const HeldRow& row : rows_) {
        json_vma(*row.vma, row.classification, row.sums, row.flags,
                 row.extras ? *row.extras : Extras{});
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
      if (!print_row(view) || stopped()) return;
    }
  }

  void show_groups() {
    for (HeldRow& row : rows_) {
      const bool torn = options_.by == "process" ? std::ranges::find(torn_, row.pid) != torn_.end()
                                                 : !torn_.empty();
      if (torn) row.sums.unknown = unknown_sum::all;
    }
    if (options_.by == "process") {
      std::erase_if(rows_, [&](const HeldRow& row) {
        return std::ranges::find(gone_, row.pid) != gone_.end();
      });
    }
    sort_rows();
    if (options_.json) {
      for (const HeldRow& row : rows_) {
        out_.print("{}\n{{{}", &row != &rows_.front() ? "," : "", json_name("key", row.key));
        if (options_.by == "process")
          out_.print(",\"pid\":{},{}", row.pid, json_name("comm", row.comm));
        if (options_.by == "file") out_.print(",{}", json_name("file", row.key));
        if (options_.by == "node")
          out_.print(",\"node\":{}", row.key == "unknown" ? "null" : row.key);
        json_group_kind(row);
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

  void json_group_kind(const HeldRow& row) {
    const auto word = [](const auto& value) {
      return value ? json_string(to_string(*value)) : std::string("null");
    };
    out_.print(",\"class\":{},\"kind\":{}", word(row.group->vma_class.value()),
               word(row.group->kind.value()));
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
      if (!print_row(parents[i].view()) || stopped()) return;
      for (const HeldRow* row : files[i]) {
        StatRow view = row->view();
        const std::string branch = fmt::format(
            "{} {:x}-{:x} {} {}", row == files[i].back() ? "`-" : "|-", row->vma->range.start.value,
            row->vma->range.end.value, permissions(*row->vma), to_string(row->classification.kind));
        view.key = branch;
        view.branch = true;
        if (!print_row(view)) return;
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
           a.nodes != b.nodes || a.swap_pss != b.swap_pss || a.pss_dirty != b.pss_dirty ||
           a.accessed != b.accessed || a.lazyfree != b.lazyfree || a.locked != b.locked ||
           a.unknown != b.unknown;
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
    torn_.clear();
    gone_.clear();
    refused_.clear();
    set_time();
    for (const pid_t pid : pids_) {
      if (stopped()) return;
      look_at(pid);
    }
    if (stopped()) return;
    std::map<Identity, MemorySums> now;
    for (const HeldRow& row : rows_) now.emplace(identity(row), row.sums);
    if (screen) {
      sort_rows();
      winsize size{};
      std::size_t lines = 24;
      if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 4) lines = size.ws_row;
      if (rows_.size() + 4 > lines) rows_.resize(lines - 4);
      out_.print("\033[H\033[Jvmastat {}  every {:g} s", time_, *options_.watch);
      out_.end_line();
      heading();
      show_rows();
      print_row({.key = "total", .sums = &total_, .before = first ? nullptr : &old_total_});
    } else {
      if (!first) std::erase_if(rows_, [&](const HeldRow& row) { return !differs(row); });
      sort_rows();
      if (first) heading();
      for (const HeldRow& row : rows_) {
        StatRow view = row.view();
        if (grouped_ && options_.by == "process") view.key = row.comm;
        if (const auto old = old_.find(identity(row)); old != old_.end())
          view.before = &old->second;
        if (!print_row(view) || stopped()) break;
      }
      for (const auto& [id, sums] : old_) {
        if (now.contains(id) || stopped()) continue;
        const MemorySums gone;
        const std::string key = id.second + " (gone)";
        print_row({.pid = id.first, .key = key, .sums = &gone, .before = &sums});
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
  std::optional<std::string_view> hidden_processes_;  ///< why not all are seen
  const bool grouped_;
  const bool held_;  ///< rows are not printed as they come
  const std::optional<StatColumn> sort_;
  const bool sharing_;
  const bool frames_;
  const bool smaps_;
  const bool policy_;
  const bool split_;
  const bool thp_;
  const bool capable_ = !root_.recorded() && may_look_into_all();
  bool refused_said_ = false;
  bool begun_ = false;
  bool hidden_ = false;
  bool changed_ = false;
  bool no_policy_ = false, no_split_ = false, no_thp_ = false;
  std::optional<bool> thp_allowed_;
  Status status_ = Status::good;
  const Messages messages_{"vmastat"};
  Output out_{interrupted};
  StatTable table_;
  StatsReader reader_;
  std::unique_ptr<StatReport> report_;  ///< in place of tables and JSON
  std::string html_;
  MemorySums total_;
  std::deque<HeldRow> rows_;  ///< growing moves none of them
  std::map<std::string, std::size_t> groups_;  ///< index into rows_
  std::map<Identity, MemorySums> old_;  ///< --watch: the last look
  MemorySums old_total_;
  std::size_t processes_ = 0;
  std::size_t vmas_ = 0;  ///< of the process that is being printed
  std::vector<Refused> refused_;
  std::optional<std::uint64_t> max_map_count_;
  std::uint64_t map_count_ = 0;  ///< of the process that is being read
  std::string near_limit_;  ///< JSON objects
  char time_[16] = "";
  // For `split`: the mapping before.
  struct Neighbour {
    Vma vma;
    std::optional<VmFlags> flags;
    std::string policy;
  };
  std::optional<Neighbour> before_;
  ThpMachine machine_;
  std::vector<std::string_view> thp_seen_;  ///< words, as they came
  std::vector<pid_t> gone_;  ///< processes of -a that ended while they were read
  std::vector<pid_t> torn_;  ///< processes of which a failure let be read only a part
  std::uint32_t unknown_ = 0;
  std::uint32_t row_unknown_ = 0;  ///< of rows by node alone
  std::uint32_t node_unknown_ = 0;  ///< of rows of a node that is known
  std::uint32_t frames_unseen_ = 0;  ///< unknown_sum::frames, of what could not be seen
  std::uint64_t leaves_untold_ = 0;  ///< bytes
  std::uint64_t untouched_hugetlb_ = 0;  ///< bytes of hugetlb mappings without a page
  std::uint64_t unseen_ = 0;  ///< bytes of address space, but for the kernel's own pages
  std::string error_;  ///< the first, for the JSON document
};

std::vector<StatColumn> default_columns(const StatOptions& options, bool several) {
  using enum StatColumn;
  std::vector<StatColumn> columns;
  if (options.thp) {
    if (several) columns.push_back(pid);
    if (!options.tree) columns.insert(columns.end(), {start, end, kind});
    columns.insert(columns.end(), {size, rss, pte, pmd, pud});
    columns.insert(columns.end(), {thp, name});
    return columns;
  }
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
  if (options.smaps)
    columns.insert(columns.end(), {swap_pss, pss_dirty, accessed, lazyfree, locked});
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
  if (options.thp && (reports || options.watch || options.by != "vma"))
    return usage("--thp stands alone, without --by, --watch, --openmetrics, --map and --html",
                 "see --help");
  catch_interrupts();
  const auto root = open_root(options, messages);
  if (!root) return static_cast<int>(Status::unanswered);
  std::optional<StatColumn> sort;
  const ColumnWords column_words{.page_size = root->page_size(), .by = options.by};
  if (!options.sort.empty()) {
    sort = stat_column(options.sort, column_words);
    if (!sort)
      return usage(fmt::format("{}: no such column", options.sort),
                   stat_column_words(column_words));
  }
  std::optional<std::vector<StatColumn>> columns;
  if (!options.columns.empty()) {
    auto chosen = parse_stat_columns(options.columns, column_words);
    if (!chosen)
      return usage(fmt::format("{}: no such column", chosen.error()),
                   stat_column_words(column_words));
    columns = std::move(*chosen);
  }
  std::vector<pid_t> pids;
  std::optional<std::string_view> partial;
  if (options.all) {
    auto all = root->processes();
    if (!all) {
      messages.error(all.error());
      return static_cast<int>(Status::unanswered);
    }
    pids = std::move(*all);
  } else {
    auto found = find_targets(*root, options, words, messages, partial);
    if (!found) return static_cast<int>(Status::unanswered);
    pids = std::move(*found);
  }
  if (!columns) columns = default_columns(options, pids.size() > 1);
  // Where each look adds lines, these say when.
  if (options.watch && !options.json && isatty(STDOUT_FILENO) == 0 &&
      std::ranges::find(*columns, StatColumn::time) == columns->end())
    columns->insert(columns->begin(), StatColumn::time);
  return Vmastat{options, *root, std::move(pids), partial, std::move(*columns), sort}.run();
}

}  // namespace vmem::tools
