// SPDX-License-Identifier: MIT
/// What every tool shares: messages, the source of page facts, exit status.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "render.hpp"
#include "vmem/error.hpp"
#include "vmem/pages.hpp"
#include "vmem/sysroot.hpp"

namespace vmem::tools {

/// All that was asked is answered and good; answered, and the answer is negative; it could
/// not be answered. The worst of several answers is the tool's.
enum class Status : std::uint8_t { good = 0, negative = 1, unanswered = 2 };

struct CommonOptions {
  std::string comm;  ///< -n
  std::string sysroot;
  std::string backend = "auto";
  bool json = false;
  bool bytes = false;
  bool no_headings = false;
  std::string color = "auto";
  std::string columns;  ///< -o, comma separated; empty: the default ones
};

/// Messages to stderr: "TOOL: what: path: reason", then "hint: …".
class Messages {
 public:
  explicit Messages(std::string_view tool) : tool_(tool) {}
  void error(const Error& error) const;
  void error(std::string_view text, std::string_view hint = {}) const;

 private:
  std::string_view tool_;
};

/// The source of page facts that the options ask for.
Result<std::unique_ptr<Translator>> open_source(const CommonOptions& options,
                                                const Process& process);

/// The start of every JSON document, up to and without the tool's own members:
/// {"schema":…,"version":…,"host":{…}. `vm_flags`: where VmFlags come from; empty: not said.
std::string json_prologue(std::string_view tool, const SysRoot& root, PfnAccess access,
                          Backend backend, std::string_view vm_flags = {});

/// Where this inspector's VmFlags come from, as json_prologue() says it.
std::string_view flags_source_name(VmaInspector& inspector, const SysRoot& root);

/// What is said of a line of maps that was left out.
std::string left_out_text(const OddLine& line);
/// That of each line that was left out of a process's maps by now; of many the first, and how many.
std::vector<std::string> left_out_texts(const Process& process);

/// What to do about PFNs that a recording does not have.
inline constexpr const char* hidden_recorded_hint =
    "it was recorded without CAP_SYS_ADMIN: record it again as root";

/// What is said of a process that smaps may have held up: text and hint.
inline constexpr std::string_view smaps_stalled_text =
    "smaps was read, and the process's mmap() may have waited for it";
inline constexpr std::string_view smaps_stalled_hint =
    "BPF tells VmFlags without it: CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN are needed";

/// Where a tool writes to: files may be in directories of other users'.
enum class Writes : std::uint8_t { output, files };

/// Of its capabilities a tool keeps what some backend reads with. The library leaves them alone:
/// they are its caller's. `also`: those that this tool needs besides, as bits (1 << CAP_…).
void drop_capabilities(Writes writes, std::uint64_t also = 0);

/// Lets whoever wakes up on this CPU go first, a thread of the target for one: tasks with a shorter
/// slice preempt this one then (PREEMPT_SHORT in kernel/sched/fair.c, since Linux 6.12; kernels
/// before ignore it). Threads and children inherit it.
void yield_to_others();

/// CPUs that this process may run on, `most` at most. (hardware_concurrency() reads a file of
/// /sys, and does not know of taskset.)
unsigned usable_cpus(unsigned most);

/// Says on stderr how far a long walk has come, from one second on. Only where nothing else
/// is being printed to the same terminal.
class Progress {
 public:
  explicit Progress(std::string_view tool);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Cheap: to be called for every extent.
  void at(VirtAddr va) {
    if (enabled_ && ++calls_ % 1024 == 0) show(va);
  }

 private:
  void show(VirtAddr va);
  std::string_view tool_;
  bool enabled_;
  bool shown_ = false;
  unsigned calls_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// Catches SIGINT and SIGTERM, so that output ends at a whole line. Check interrupted() where work
/// is long.
void catch_interrupts();
bool interrupted();
/// Ends as the signal would have ended the process.
[[noreturn]] void end_by_signal();

/// Flushes and turns a failed write into a message and a status. A closed pipe ends quietly, with
/// the status that was earned.
Status finish_output(Output& out, Status status, const Messages& messages);

}  // namespace vmem::tools
