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

std::string label_value(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '\n')
      escaped += "\\n";
    else if (c == '\\' || c == '"')
      escaped.append(1, '\\').append(1, c);
    else
      escaped += c;
  }
  return escaped;
}

/// UTF-8, or bytes replaced: OpenMetrics takes nothing else.
std::string utf8(std::string_view text) {
  const std::string quoted = json_string(text);
  std::string plain;
  for (const char c : text) plain += static_cast<unsigned char>(c) < 0x80 ? c : '?';
  const bool intact =
      quoted.find("\\u") == std::string::npos && quoted.find("\xef\xbf\xbd") == std::string::npos;
  return intact ? std::string(text) : plain;
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
};

class OpenMetrics final : public StatReport {
 public:
  explicit OpenMetrics(Output& out) : out_(out) {}

  void begin(const Process& process) override { comm_ = process.comm(); }
  void extent(const Vma&, const Extent&) override {}
  void vma(const VmaStats& stats) override {
    kinds_[{stats.classification.vma_class, stats.classification.kind}].add(stats.sums);
  }
  void end(const MemorySums& sums, bool) override {
    ++processes_;
    total_.add(sums);
    names_[utf8(comm_)].add(sums);
  }

  void finish(std::size_t refused) override {
    family("vmem_processes", "Processes that were read.", "");
    sample("vmem_processes", "", processes_);
    family("vmem_processes_refused", "Processes that could not be read.", "");
    sample("vmem_processes_refused", "", refused);
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
    std::vector<std::pair<std::string, const MemorySums*>> order;
    order.reserve(names_.size());
    for (const auto& [name, sums] : names_) order.emplace_back(name, &sums);
    std::ranges::sort(order, [](const auto& a, const auto& b) {
      return std::pair(b.second->mapped(), a.first) < std::pair(a.second->mapped(), b.first);
    });
    MemorySums rest;
    const bool many = order.size() > most_names;
    if (many) {
      for (std::size_t i = most_names; i < order.size(); ++i) rest.add(*order[i].second);
      order.resize(most_names);
      order.emplace_back("(other)", &rest);
    }
    for (const Metric& metric : metrics) {
      if (metric.needs == 0) continue;
      std::string name{metric.name};
      name.insert(name.find('_') + 1, "command_");
      family(name, std::string(metric.help) + " By command name.", "bytes");
      for (const auto& [comm, sums] : order) {
        if (sums->known(metric.needs))
          sample(name, fmt::format(R"(comm="{}")", label_value(comm)), metric.value(*sums));
      }
    }
  }

  Output& out_;
  std::string comm_;
  std::map<Kind, MemorySums> kinds_;
  std::map<std::string, MemorySums> names_;
  MemorySums total_;
  std::uint64_t processes_ = 0;
};

}  // namespace

std::unique_ptr<StatReport> openmetrics_report(Output& out) {
  return std::make_unique<OpenMetrics>(out);
}

}  // namespace vmem::tools
