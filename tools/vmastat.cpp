// SPDX-License-Identifier: MIT
/// vmastat: what the memory of processes is made of.
#include <cstdio>
#include <new>

#include "options.hpp"
#include "vmastat_session.hpp"

namespace vmem::tools {
namespace {

int run(int argc, char** argv) {
  StatOptions options;
  CLI::App app{
      "Sums the memory of processes: what is resident, in which leaf sizes, how contiguous, on\n"
      "which NUMA nodes, swapped, shared, of devices.\n"
      "TARGET is a PID, 'self', or -n NAME; there may be several.",
      "vmastat"};
  app.add_option("--by", options.by, "One row for each: vma, class, kind, file, node or process")
      ->type_name("WHAT")
      ->transform(
          CLI::IsMember({"vma", "class", "kind", "file", "node", "process"}, CLI::ignore_case));
  app.add_flag("-a,--all", options.all, "Every process");
  app.add_option("--sort", options.sort, "Sort by this column, largest first")->type_name("COL");
  app.add_option("--top", options.top, "Print only the first N rows")
      ->type_name("N")
      ->check(whole_number(1));
  app.add_flag("-p,--pages", options.pages, "Add columns from the flags of each page frame");
  app.add_flag("--smaps", options.smaps,
               "Add what smaps alone tells (the target cannot map memory meanwhile)");
  app.add_flag("--thp", options.thp, "Why each mapping is not on huge pages (reads smaps)");
  CLI::Option* const tree =
      app.add_flag("--tree", options.tree, "The mappings of each file below it");
  app.add_flag("--map", options.map, "Draw the address space, one cell for each block");
  app.add_option("--html", options.html, "Write a report with pictures into FILE")
      ->type_name("FILE")
      ->check(not_empty());
  app.add_flag("--openmetrics", options.openmetrics,
               "Metrics for the node exporter's textfile collector");
  CLI::Option* const watch =
      app.add_option("--watch", options.watch, "Look again every SECONDS; show what changed")
          ->type_name("SECONDS")
          ->check(seconds())
          ->excludes(tree);
  app.add_option("--count", options.count, "With --watch: stop after N looks")
      ->type_name("N")
      ->check(whole_number(1))
      ->needs(watch);
  app.add_option("--threads", options.threads,
                 "Threads for long walks: 1 or 2 (default: 2 with two CPUs or more)")
      ->type_name("N")
      ->check(whole_number(1, 2));
  add_common_options(app, "vmastat", options);
  app.footer("Columns: " + stat_column_names() +
             "\n\n"
             "Exit status: 0 answered, 2 not answered (no such process, hidden PFNs).\n\n"
             "Examples:\n"
             "  vmastat 1234                        every mapping\n"
             "  vmastat --by kind --sort rss 1234   where the memory is\n"
             "  vmastat -a --by process --sort pss --top 10\n"
             "  vmastat --by file -o device,rss,name -n testpmd\n"
             "  vmastat -J --pages 1234             everything, with frame flags, as JSON\n"
             "  vmastat --thp 1234                  why it is not on huge pages\n"
             "  vmastat --html report.html 1234     to look at in a browser");
  const auto words = parse_command_line(app, "vmastat", "TARGET...", argc, argv);
  if (!words) return words.error();
  return run_vmastat(options, *words);
}

}  // namespace
}  // namespace vmem::tools

int main(int argc, char** argv) {
  vmem::tools::drop_capabilities(vmem::tools::Writes::files);
  vmem::tools::yield_to_others();
  try {
    return vmem::tools::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("vmastat: out of memory\n", stderr);
    return 2;
  }
}
