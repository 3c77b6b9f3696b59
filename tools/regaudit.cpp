// SPDX-License-Identifier: MIT
/// regaudit: whether memory that a device was told of is still what it was told.
#include "regaudit.hpp"

#include <linux/capability.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <new>

#include "options.hpp"

namespace vmem::tools {
namespace {

std::expected<std::vector<std::string>, int> parse(RegauditOptions& options, int argc,
                                                   char** argv) {
  CLI::App app{
      "Audits memory registrations of RDMA and DPDK programs from outside.\n"
      "  regaudit dpdk [--prefix NAME|--dir DIR] [--pid PID]   a DPDK primary's segments\n"
      "  regaudit rdma [TARGET]                                 memory regions, by netlink\n"
      "  regaudit ranges TARGET FILE|-                          lines VA LEN [KEY]\n"
      "  regaudit plan TARGET RANGE...                          would registering work?\n"
      "  regaudit trace [--log FILE] -- CMD...                  record what CMD registers",
      "regaudit"};
  app.add_option("--prefix", options.prefix, "dpdk: the primary started with --file-prefix=NAME")
      ->type_name("NAME");
  app.add_option("--dir", options.directory, "dpdk: its runtime directory, or a copy of it")
      ->type_name("DIR");
  app.add_option("--pid", options.pid, "dpdk: the process to look at, primary or secondary")
      ->type_name("PID");
  app.add_option("--access", options.access,
                 "ranges, plan: what the device may do: rw or ro (default: rw)")
      ->type_name("HOW")
      ->check(CLI::IsMember({"rw", "ro"}));
  app.add_option("--log", options.log, "rdma: the log of 'regaudit trace --log FILE'")
      ->type_name("FILE");
  app.add_option("--junit", options.junit, "Also write the result as JUnit XML to FILE")
      ->type_name("FILE");
  app.add_flag("-a,--all", options.all, "One row for each registration, also where all is well");
  add_common_options(app, "regaudit", options);
  app.footer("Columns: " + regaudit_columns() +
             "\n\n"
             "Exit status: 0 no errors, 1 errors were found, 2 it could not be told.\n\n"
             "Examples:\n"
             "  regaudit dpdk                          every DPDK primary there is\n"
             "  regaudit dpdk --prefix vm1 -J          one of them, as JSON\n"
             "  regaudit trace -- ib_write_bw          record a program's registrations\n"
             "  regaudit rdma -n ib_write_bw           audit them while it runs\n"
             "  echo '7f2c00000000 16M ring' | regaudit ranges 1234 -\n"
             "  regaudit plan 1234 7f2c00000000+1G     what would registering this cost?");
  return parse_command_line(app, "regaudit", "dpdk | rdma | ranges | plan | trace ...", argc, argv);
}

/// `regaudit -J trace -- CMD`: trace after options of the others'. What follows it is no option of
/// ours, so this is asked before they are parsed.
bool trace_after_options(int argc, char** argv) {
  constexpr std::string_view with_value[] = {
      "--prefix", "--dir",     "--pid",   "--access",  "--log", "--junit", "-n",
      "--name",   "--sysroot", "--color", "--backend", "-o",    "--output"};
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "trace") return true;
    if (!word.starts_with('-') || word == "--" || word == "-h" || word == "--help" ||
        word == "-V" || word == "--version") {
      return false;
    }
    if (std::ranges::find(with_value, word) != std::end(with_value)) ++i;
  }
  return false;
}

int run(int argc, char** argv) {
  const Messages messages{"regaudit"};
  // What follows `trace` is another program's command line.
  if (argc > 1 && std::string_view(argv[1]) == "trace") return run_trace(argc, argv, messages);
  if (trace_after_options(argc, argv)) {
    messages.error(fmt::format("{}: trace comes first, and has no option but --log", argv[1]),
                   "regaudit trace [--log FILE] -- CMD...; audit CMD by regaudit rdma PID");
    return 2;
  }
  catch_interrupts();
  RegauditOptions options;
  auto words = parse(options, argc, argv);
  if (!words) return words.error();
  if (words->empty()) {
    messages.error("what to audit is missing", "dpdk, rdma, ranges, plan or trace; see --help");
    return 2;
  }
  const std::string mode = words->front();
  // What `trace` runs keeps its caller's. The kernel tells keys of memory regions with
  // CAP_NET_ADMIN, and a DPDK primary's telemetry socket may be another user's.
  drop_capabilities(options.junit.empty() && mode != "dpdk" ? Writes::output : Writes::files,
                    mode == "rdma" ? std::uint64_t{1} << CAP_NET_ADMIN : 0);
  if (mode != "trace") yield_to_others();
  words->erase(words->begin());
  const bool dpdk = mode == "dpdk";
  if (!dpdk && !(options.prefix.empty() && options.directory.empty() && options.pid.empty())) {
    messages.error("--prefix, --dir and --pid belong to dpdk", "see --help");
    return 2;
  }
  if (mode != "rdma" && !options.log.empty()) {
    messages.error("--log belongs to rdma and trace", "see --help");
    return 2;
  }
  if (dpdk) {
    if (words->empty()) return run_dpdk(options, messages);
    messages.error(fmt::format("{}: dpdk takes no operand", words->front()),
                   "name a primary by --prefix, --dir or --pid");
    return 2;
  }
  if (mode == "ranges") return run_ranges(options, std::move(*words), messages);
  if (mode == "plan") return run_plan(options, std::move(*words), messages);
  if (mode == "rdma") return run_rdma(options, *words, messages);
  messages.error(fmt::format("{}: nothing that can be audited", mode),
                 "dpdk, rdma, ranges, plan or trace; see --help");
  return 2;
}

}  // namespace
}  // namespace vmem::tools

int main(int argc, char** argv) {
  try {
    return vmem::tools::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("regaudit: out of memory\n", stderr);
    return 2;
  }
}
