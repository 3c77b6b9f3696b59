// SPDX-License-Identifier: MIT
/// Metrics with bounded labels: class and kind (fixed lists), NUMA nodes, sizes that are powers of
/// two, and the names of at most `most_names` commands; never PIDs, addresses or paths. All are
/// gauges, so that the text is good in the older Prometheus format, too.
#include <algorithm>
#include <map>

#include "vmastat_output.hpp"
#include "vmastat_report.hpp"

namespace vmem::tools {
namespace {

constexpr std::size_t most_names = 50;

/// A command's name as the value of a label: printable, and what the format itself reads as marks
/// is escaped.
std::string label_value(std::string_view text) {
  std::string escaped;
  for (const char c : printable(text)) {
    if (c == '\\' || c == '"') escaped += '\\';
    escaped += c;
  }
  return escaped;
}

struct Metric {
  std::string_view name, help;
  std::uint64_t (*value)(const MemorySums&);
  std::uint32_t needs;
};

const Metric metrics[] = {
    {"vmem_size_bytes", "Address space.", [](const MemorySums& s) { return s.size; }, 0},
    {"vmem_rss_bytes", "Resident memory, as Rss of smaps.",
     [](const MemorySums& s) { return s.rss; }, unknown_sum::rss},
    {"vmem_pss_bytes", "Resident memory, each page divided by its mappings, as Pss of smaps.",
     [](const MemorySums& s) { return s.pss(); }, unknown_sum::pss},
    {"vmem_uss_bytes", "Resident memory that is mapped once, as Private_* of smaps.",
     [](const MemorySums& s) { return s.uss; }, unknown_sum::uss},
    {"vmem_swap_bytes", "Memory in swap, as Swap of smaps.",
     [](const MemorySums& s) { return s.swap; }, unknown_sum::swap},
    {"vmem_hugetlb_bytes", "Mapped hugetlb pages.", [](const MemorySums& s) { return s.hugetlb; },
     unknown_sum::hugetlb},
    {"vmem_device_bytes", "Mapped device memory.", [](const MemorySums& s) { return s.device; },
     unknown_sum::device},
    {"vmem_lazyfree_bytes", "Memory under MADV_FREE, as LazyFree of smaps; with --smaps.",
     [](const MemorySums& s) { return s.lazyfree; }, unknown_sum::lazyfree},
    {"vmem_locked_bytes",
     "Memory under mlock, shared among its users, as Locked of smaps; with "
     "--smaps.",
     [](const MemorySums& s) { return s.locked; }, unknown_sum::locked},
    {"vmem_accessed_bytes", "Memory that was used lately, as Referenced of smaps; with --smaps.",
     [](const MemorySums& s) { return s.accessed; }, unknown_sum::accessed},
    {"vmem_pss_dirty_bytes", "Of pss, dirty pages, as Pss_Dirty of smaps; with --smaps.",
     [](const MemorySums& s) { return s.pss_dirty; }, unknown_sum::pss_dirty},
    {"vmem_swap_pss_bytes",
     "Swap, each page divided by its users, as SwapPss of smaps; with "
     "--smaps.",
     [](const MemorySums& s) { return s.swap_pss; }, unknown_sum::swap_pss},
};

class OpenMetrics final : public StatReport {
 public:
  OpenMetrics(Output& out, const MachineFacts& machine) : out_(out), machine_(machine) {}

  void begin(const Process& process) override {
    comm_ = process.comm();
    mappings_ = 0;
  }
  void extent(const Vma&, const Extent&) override {}
  void vma(const VmaStats& stats) override {
    kinds_[{stats.classification.vma_class, stats.classification.kind}].add(stats.sums);
    if (stats.vma.path != "[vsyscall]") ++mappings_;  // which no process's count has
  }
  void end(const MemorySums& sums, bool) override {
    ++processes_;
    total_.add(sums);
    Command& command = names_[label_value(comm_)];
    command.sums.add(sums);
    command.mappings = std::max(command.mappings, mappings_);
    most_mappings_ = std::max(most_mappings_, mappings_);
  }

  void finish(std::size_t refused) override {
    family("vmem_processes", "Processes that were read.", "");
    sample("vmem_processes", "", processes_);
    family("vmem_processes_refused", "Processes that could not be read.", "");
    sample("vmem_processes_refused", "", refused);
    family("vmem_processes_hidden", "1: not all processes are seen (hidepid); only with --all.",
           "");
    if (machine_.hidden) sample("vmem_processes_hidden", "", *machine_.hidden ? 1 : 0);
    family("vmem_max_map_count", "Mappings that one process may have (vm.max_map_count).", "");
    if (machine_.max_map_count) sample("vmem_max_map_count", "", *machine_.max_map_count);
    family("vmem_mappings_max", "Mappings of the process that has most.", "");
    sample("vmem_mappings_max", "", most_mappings_);
    family("vmem_mappings", "Mappings by class and kind.", "");
    for (const auto& [key, sums] : kinds_) sample("vmem_mappings", kind_labels(key), sums.vmas);
    for (const Metric& metric : metrics) {
      family(metric.name, metric.help, "bytes");
      for (const auto& [key, sums] : kinds_) {
        // What is not known has no sample.
        if (sums.known(metric.needs)) sample(metric.name, kind_labels(key), metric.value(sums));
      }
    }
    tally("vmem_leaf_bytes", "Mapped memory by size of the page-table leaf.", "bytes", "leaf",
          total_.leaf, unknown_sum::leaf, true);
    tally("vmem_extents", "Physically contiguous runs by their size, rounded down.", "", "size",
          total_.runs, unknown_sum::extents, true);
    tally("vmem_node_bytes", "Resident and hugetlb memory by NUMA node.", "bytes", "node",
          total_.nodes, unknown_sum::nodes, false);
    commands();
    out_.append("# EOF");
    out_.end_line();
  }

 private:
  using Kind = std::pair<VmaClass, VmaKind>;

  void family(std::string_view name, std::string_view help, std::string_view unit) {
    out_.print("# TYPE {} gauge\n", name);
    if (!unit.empty()) out_.print("# UNIT {} {}\n", name, unit);
    out_.print("# HELP {} {}", name, help);
    out_.end_line();
  }
  void sample(std::string_view name, const std::string& labels, std::uint64_t value) {
    if (labels.empty())
      out_.print("{} {}", name, value);
    else
      out_.print("{}{{{}}} {}", name, labels, value);
    out_.end_line();
  }
  static std::string kind_labels(const Kind& key) {
    return fmt::format(R"(class="{}",kind="{}")", to_string(key.first), to_string(key.second));
  }

  void tally(std::string_view name, std::string_view help, std::string_view unit,
             std::string_view label, const Tally& values, std::uint32_t needs, bool sizes) {
    family(name, help, unit);
    if (!total_.known(needs)) return;
    for (const auto& [key, amount] : values.entries()) {
      const std::string text = !sizes     ? std::to_string(key)
                               : key == 0 ? std::string("unknown")
                                          : shift_label(key);
      sample(name, fmt::format(R"({}="{}")", label, text), amount);
    }
  }

  /// The commands with most memory, and all others together.
  void commands() {
    std::vector<std::pair<std::string_view, const Command*>> order;
    order.reserve(names_.size());
    for (const auto& [name, command] : names_) order.emplace_back(name, &command);
    std::ranges::sort(order, [](const auto& a, const auto& b) {
      return std::pair(b.second->sums.mapped(), a.first) <
             std::pair(a.second->sums.mapped(), b.first);
    });
    Command rest;
    if (order.size() > most_names) {
      // A command may be called as all others are: it is one of them.
      const auto called = std::ranges::find(order, others, [](const auto& o) { return o.first; });
      if (called != order.end()) std::rotate(called, called + 1, order.end());
      for (std::size_t i = most_names; i < order.size(); ++i) rest.add(*order[i].second);
      order.resize(most_names);
      order.emplace_back(others, &rest);
    }
    for (const Metric& metric : metrics) {
      if (metric.needs == 0) continue;
      std::string name{metric.name};
      name.insert(name.find('_') + 1, "command_");
      family(name, std::string(metric.help) + " By command name.", "bytes");
      for (const auto& [comm, command] : order) {
        if (command->sums.known(metric.needs))
          sample(name, fmt::format(R"(comm="{}")", comm), metric.value(command->sums));
      }
    }
    family("vmem_command_mappings_max", "Mappings of the process that has most, by command name.",
           "");
    for (const auto& [comm, command] : order)
      sample("vmem_command_mappings_max", fmt::format(R"(comm="{}")", comm), command->mappings);
  }

  struct Command {
    MemorySums sums;
    std::uint64_t mappings = 0;  ///< of that of its processes that has most
    void add(const Command& other) {
      sums.add(other.sums);
      mappings = std::max(mappings, other.mappings);
    }
  };
  static constexpr std::string_view others = "(other)";

  Output& out_;
  const MachineFacts machine_;
  std::string comm_;
  std::uint64_t mappings_ = 0;  ///< of the process that is being read
  std::uint64_t most_mappings_ = 0;
  std::map<Kind, MemorySums> kinds_;
  std::map<std::string, Command> names_;  ///< by label
  MemorySums total_;
  std::uint64_t processes_ = 0;
};

}  // namespace

std::unique_ptr<StatReport> openmetrics_report(Output& out, const MachineFacts& machine) {
  return std::make_unique<OpenMetrics>(out, machine);
}

}  // namespace vmem::tools
