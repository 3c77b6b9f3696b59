// SPDX-License-Identifier: MIT
#include "cli.hpp"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

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

}  // namespace

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

Result<std::unique_ptr<Translator>> open_source(const CommonOptions& options,
                                                const Process& process) {
  for (const Backend backend : {Backend::pagemap, Backend::bpf, Backend::kmod}) {
    if (options.backend == to_string(backend)) return open_translator(process, backend);
  }
  return open_translator(process);
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
