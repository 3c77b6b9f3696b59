// SPDX-License-Identifier: MIT
#include "cli.hpp"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>

#include "vmem/version.hpp"

namespace vmem::tools {
namespace {

volatile std::sig_atomic_t caught_signal = 0;

std::string_view name_of(PfnAccess access) {
  switch (access) {
    case PfnAccess::full:
      return "\"full\"";
    case PfnAccess::hidden:
      return "\"hidden\"";
    case PfnAccess::none:
      return "\"none\"";
    case PfnAccess::unknown:
      return "null";
  }
  return "null";
}

/// CLI11's usage line knows nothing of operands.
class HelpFormatter : public CLI::Formatter {
 public:
  explicit HelpFormatter(std::string usage) : usage_(std::move(usage)) {}
  std::string make_usage(const CLI::App*, std::string) const override {
    return "Usage: " + usage_ + "\n";
  }
  // Types and choices are named in the descriptions.
  std::string make_option_opts(const CLI::Option* option) const override {
    const std::string type = option->get_type_name();
    const std::size_t end = std::min(type.find(':'), type.size());
    return option->get_type_size() == 0 ? "" : " " + type.substr(0, end);
  }

 private:
  std::string usage_;
};

}  // namespace

void add_common_options(CLI::App& app, std::string_view tool, CommonOptions& options) {
  app.add_option("-n,--name", options.comm, "The process whose command name (comm) is exactly NAME")
      ->type_name("NAME");
  app.add_option("--sysroot", options.sysroot,
                 "Read the system recorded in DIR instead of this one")
      ->type_name("DIR");
  app.add_option("--backend", options.backend,
                 "Where page facts come from: auto, pagemap, bpf or kmod")
      ->type_name("WHICH")
      ->check(CLI::IsMember({"auto", "pagemap", "bpf", "kmod"}));
  app.add_flag("-J,--json", options.json, "One JSON document on stdout");
  app.add_flag("--bytes", options.bytes, "Sizes as plain numbers of bytes");
  app.add_flag("--noheadings", options.no_headings, "No heading line");
  app.add_option("--color", options.color, "Colour the output: auto, always or never")
      ->type_name("WHEN")
      ->check(CLI::IsMember({"auto", "always", "never"}));
  app.add_option("-o,--output", options.columns, "Columns to print, comma separated")
      ->type_name("COL,...");
  app.set_version_flag("-V,--version", std::string(tool) + " " VMEM_VERSION,
                       "Print the version and exit");
  app.set_help_flag("-h,--help", "Print this help and exit");
}

std::expected<std::vector<std::string>, int> parse_command_line(CLI::App& app,
                                                                std::string_view tool, int argc,
                                                                char** argv) {
  const Messages messages{tool};
  app.formatter(
      std::make_shared<HelpFormatter>(std::string(tool) + " [OPTIONS] TARGET [ADDRESS...]"));
  // Operands are taken as what is left: an option of CLI11's would read "[heap]" as a list.
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      app.exit(error);
      std::cout.flush();
      if (std::cout) return std::unexpected(0);
      messages.error(fmt::format("writing output: stdout: {}", std::strerror(errno)));
      return std::unexpected(2);
    }
    messages.error(error.what(), "see --help");
    return std::unexpected(2);
  }
  std::vector<std::string> words = app.remaining();
  for (const std::string& word : words) {
    if (word.size() < 2 || word.front() != '-') continue;
    messages.error(fmt::format("{}: no such option", word), "see --help");
    return std::unexpected(2);
  }
  return words;
}

void Messages::error(const Error& error) const {
  this->error(to_string(error), error.hint != nullptr ? error.hint : "");
}

void Messages::error(std::string_view text, std::string_view hint) const {
  std::string line = fmt::format("{}: {}\n", tool_, printable(text));
  if (!hint.empty()) line += fmt::format("hint: {}\n", hint);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

std::optional<Process> open_target(const CommonOptions& options, const std::string& target,
                                   const Messages& messages) {
  const auto say = [&](const Error& error) {
    messages.error(error);
    return std::nullopt;
  };
  auto root = options.sysroot.empty() ? SysRoot::live() : SysRoot::open(options.sysroot);
  if (!root) return say(root.error());

  pid_t pid = 0;
  if (!options.comm.empty()) {
    auto pids = root->find_by_comm(options.comm);
    if (!pids) return say(pids.error());
    if (pids->size() != 1) {
      std::string list;
      for (const pid_t found : *pids) list += fmt::format(" {}", found);
      if (pids->empty())
        messages.error(fmt::format("no process is named {}", options.comm));
      else
        messages.error(
            fmt::format("{} processes are named {}:{}", pids->size(), options.comm, list),
            "give one of these PIDs");
      return std::nullopt;
    }
    pid = pids->front();
  } else if (target == "self") {
    auto self = root->self();
    if (!self) return say(self.error());
    return std::move(*self);
  } else {
    const auto [end, error] = std::from_chars(target.data(), target.data() + target.size(), pid);
    if (error != std::errc{} || end != target.data() + target.size() || pid <= 0) {
      messages.error(fmt::format("{}: not a PID", target), "TARGET is a PID, 'self', or -n NAME");
      return std::nullopt;
    }
  }
  auto process = root->process(pid);
  if (!process) return say(process.error());
  return std::move(*process);
}

Result<Backend> choose_backend(const CommonOptions& options) {
  if (options.backend == "bpf") return Backend::bpf;
  if (options.backend == "kmod") return Backend::kmod;
  return Backend::pagemap;
}

std::string json_prologue(std::string_view tool, const SysRoot& root, PfnAccess access,
                          Backend backend) {
  const std::string kernel = root.kernel_release();
  return fmt::format(
      R"({{"schema":"vmem.{}/1","version":"{}","host":{{"kernel":{},"page_size":{},"pfn_access":{},"backend":"{}"}})",
      tool, VMEM_VERSION, kernel.empty() ? "null" : json_string(kernel), root.page_size().bytes(),
      name_of(access), to_string(backend));
}

void catch_interrupts() {
  struct sigaction action{};
  action.sa_handler = [](int signal) { caught_signal = signal; };
  // Without SA_RESTART, so that a read from a terminal ends too.
  for (const int signal : {SIGINT, SIGTERM}) {
    struct sigaction old{};
    sigaction(signal, nullptr, &old);
    if (old.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
  // A closed pipe is seen by write(2), which lets the tool end quietly.
  std::signal(SIGPIPE, SIG_IGN);
}

bool interrupted() { return caught_signal != 0; }

void end_by_signal() {
  const int signal = caught_signal;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
  std::_Exit(128 + signal);
}

Status finish_output(Output& out, Status status, const Messages& messages) {
  out.flush();
  if (!out.failed()) return status;
  if (out.error() == EPIPE) return Status::good;
  if (out.error() == EINTR) return status;  // the signal is the answer
  messages.error(fmt::format("writing output: stdout: {}", std::strerror(out.error())));
  return Status::unanswered;
}

}  // namespace vmem::tools
