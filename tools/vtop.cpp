// SPDX-License-Identifier: MIT
/// vtop: which physical memory a virtual address is.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "options.hpp"
#include "targets.hpp"
#include "vtop_output.hpp"
#include "vtop_session.hpp"

namespace vmem::tools {
namespace {

/// The operands, or the exit status. Most calls have no options: setting up a parser for
/// them would be a tenth of what one lookup costs.
std::expected<std::vector<std::string>, int> parse(VtopOptions& options, int argc, char** argv) {
  const std::span<char*> arguments(argv + 1, argv + argc);
  const auto is_option = [](std::string_view word) {
    return word.size() > 1 && word.front() == '-';
  };
  if (std::ranges::none_of(arguments, is_option)) {
    return std::vector<std::string>(arguments.begin(), arguments.end());
  }
  CLI::App app{
      "Translates virtual addresses of a process to physical ones.\n"
      "TARGET is a PID, 'self', or -n NAME; without an ADDRESS: every mapping.",
      "vtop"};
  app.add_flag("-p,--pages", options.pages, "One row for each page");
  app.add_flag("-f,--frames", options.frames, "Add the kernel's facts of each frame");
  app.add_flag("-w,--walk", options.walk,
               "Print the page-table walk of each address, through bpf or kmod");
  CLI::Option* const watch =
      app.add_option("--watch", options.watch, "Look again every SECONDS; print what changed")
          ->type_name("SECONDS")
          ->check(seconds());
  app.add_option("--count", options.count, "With --watch: stop after N looks")
      ->type_name("N")
      ->check(whole_number(1))
      ->needs(watch);
  app.add_option("--threads", options.threads,
                 "Threads for long walks: 1 or 2 (default: 2 with two CPUs or more)")
      ->type_name("N")
      ->check(whole_number(1, 2));
  add_common_options(app, "vtop", options);
  app.footer(
      "ADDRESS is 7f00… or 0x7f00…, START-END, START+LEN (K, M, G, T), [heap], [stack]+OFFSET,\n"
      "FILE+OFFSET, or - to read one per line from stdin.\n\n"
      "Columns: " +
      column_names() +
      "\n\n"
      "Exit status: 0 resident (or a range is answered), 1 not resident, 2 not answered.\n\n"
      "Examples:\n"
      "  vtop 1234 0x7ffd1c2a4000       one address\n"
      "  vtop 1234 '[heap]' libc.so.6+0 a mapping, and the first byte of a file\n"
      "  vtop -w 1234 0x7ffd1c2a4000    with the entry of each page-table level\n"
      "  vtop -J -f 1234                everything, with frame facts, as JSON\n"
      "  vtop -n postgres 7f2c00000000+16M --pages");
  return parse_command_line(app, "vtop", "TARGET [ADDRESS...]", argc, argv);
}

int run(int argc, char** argv) {
  VtopOptions options;
  auto words = parse(options, argc, argv);
  if (!words) return words.error();
  const Messages messages{"vtop"};
  std::vector<std::string> addresses = std::move(*words);
  std::string target;
  if (options.comm.empty()) {
    if (addresses.empty()) {
      messages.error("TARGET is missing", "give a PID, 'self', or -n NAME; see --help");
      return 2;
    }
    target = addresses.front();
    addresses.erase(addresses.begin());
  }
  std::vector<Column> columns = default_columns(options.frames);
  if (!options.columns.empty()) {
    auto chosen = parse_columns(options.columns);
    if (!chosen) {
      messages.error(fmt::format("{}: no such column", chosen.error()),
                     "columns: " + column_names());
      return 2;
    }
    columns = std::move(*chosen);
    options.frames = options.frames || needs_frames(columns);
  }
  catch_interrupts();
  auto process = open_target(options, target, messages);
  if (!process) return 2;
  auto translator = open_source(options, *process);
  if (!translator) {
    messages.error(translator.error());
    return 2;
  }
  return run_vtop(options, *process, **translator, std::move(columns), addresses);
}

}  // namespace
}  // namespace vmem::tools

int main(int argc, char** argv) {
  vmem::tools::drop_capabilities(vmem::tools::Writes::output);
  vmem::tools::yield_to_others();
  try {
    return vmem::tools::run(argc, argv);
  } catch (const std::bad_alloc&) {
    std::fputs("vtop: out of memory\n", stderr);
    return 2;
  }
}
