// SPDX-License-Identifier: MIT
#include "cli.hpp"

#include <linux/capability.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>

#include "callers_rights.hpp"
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
  if (!hint.empty()) line += fmt::format("hint: {}\n", printable(hint));
  std::fwrite(line.data(), 1, line.size(), stderr);
}

Result<std::unique_ptr<Translator>> open_source(const CommonOptions& options,
                                                const Process& process) {
  for (const Backend backend : {Backend::pagemap, Backend::bpf, Backend::kmod}) {
    if (options.backend == to_string(backend)) return open_translator(process, backend);
  }
  return open_translator(process);
}

std::string json_prologue(std::string_view tool, const SysRoot& root, PfnAccess access,
                          Backend backend, std::string_view vm_flags) {
  const std::string kernel = root.kernel_release();
  return fmt::format(
      R"({{"schema":"vmem.{}/1","version":"{}","host":{{"kernel":{},"page_size":{},"pfn_access":{},"backend":"{}"{}}})",
      tool, VMEM_VERSION, kernel.empty() ? "null" : json_string(kernel), root.page_size().bytes(),
      name_of(access), to_string(backend),
      vm_flags.empty() ? "" : fmt::format(R"(,"vm_flags":"{}")", vm_flags));
}

std::string_view flags_source_name(VmaInspector& inspector, const SysRoot& root) {
  if (root.recorded()) return {};
  return inspector.flags_from_smaps() ? "smaps" : "bpf";
}

void yield_to_others() {
  // struct sched_attr (include/uapi/linux/sched/types.h), which not all headers have.
  struct {
    std::uint32_t size, policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime, deadline, period;
  } attributes{};
  attributes.size = sizeof attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;
  attributes.runtime = 100'000'000;  // nanoseconds, the longest
  (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
}

std::string left_out_text(const OddLine& line) {
  return fmt::format("reading maps: {}: line {}: {}: left out", line.path, line.line, line.what);
}

std::vector<std::string> left_out_texts(const Process& process) {
  constexpr std::size_t most = 16;
  const auto lines = process.odd_lines();
  std::vector<std::string> texts;
  for (const OddLine& line : std::span(lines).first(std::min(most, lines.size())))
    texts.push_back(left_out_text(line));
  if (lines.size() > most)
    texts.push_back(fmt::format("{}: {} lines were left out", lines[0].path, lines.size()));
  return texts;
}

unsigned usable_cpus(unsigned most) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return most;  // more than CPU_SETSIZE CPUs
  return std::min(most, static_cast<unsigned>(CPU_COUNT(&set)));
}

Progress::Progress(std::string_view tool)
    : tool_(tool), enabled_(isatty(STDERR_FILENO) != 0 && isatty(STDOUT_FILENO) == 0) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void Progress::show(VirtAddr va) {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < std::chrono::seconds(1)) return;
  last_ = now;
  shown_ = true;
  std::fputs(fmt::format("\r\033[K{}: at {:#x}", tool_, va.value).c_str(), stderr);
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
  // A closed pipe is seen by write(2), which lets the tool end quietly; so is RLIMIT_FSIZE.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
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
  // A closed pipe ends quietly; what was found out by then stands.
  if (out.error() == EPIPE) return status;
  if (out.error() == EINTR) return status;  // the signal is the answer
  messages.error(fmt::format("writing output: stdout: {}", std::strerror(out.error())));
  return Status::unanswered;
}

void drop_capabilities(Writes writes, std::uint64_t also) {
  (void)callers_capabilities();  // before the ambient ones go with the inheritable ones
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  if (syscall(SYS_capget, &header, data) != 0) return;
  // Without CAP_SYS_PTRACE (containers have it not by default) the kernel shows those processes
  // whose capabilities the reader has, too: none can be spared.
  if ((data[0].permitted & (1U << CAP_SYS_PTRACE)) == 0) return;
  // Other users' files in /proc; PFNs; /proc/kcore and /proc/kallsyms, which lead BPF to the direct
  // map. The last two are newer than some headers.
  constexpr unsigned cap_perfmon = 38, cap_bpf = 39;
  std::uint64_t keep = also;
  for (const unsigned n :
       {unsigned{CAP_DAC_READ_SEARCH}, unsigned{CAP_SYS_PTRACE}, unsigned{CAP_SYS_ADMIN},
        unsigned{CAP_SYS_RAWIO}, unsigned{CAP_SYSLOG}, cap_perfmon, cap_bpf}) {
    keep |= std::uint64_t{1} << n;
  }
  // Where the first is missing (containers have it not by default), this opens the same files.
  if (writes == Writes::files || (data[0].permitted & (1U << CAP_DAC_READ_SEARCH)) == 0)
    keep |= std::uint64_t{1} << CAP_DAC_OVERRIDE;
  for (unsigned i = 0; i < 2; ++i) {
    data[i].permitted &= static_cast<std::uint32_t>(keep >> (32 * i));
    data[i].effective &= data[i].permitted;
    data[i].inheritable = 0;
  }
  (void)syscall(SYS_capset, &header, data);
}

}  // namespace vmem::tools
