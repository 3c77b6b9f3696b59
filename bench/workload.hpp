// SPDX-License-Identifier: MIT
/// The kinds of memory that are measured, made by a process of their own.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <string_view>

namespace vmem::bench {

struct Workload {
  std::string_view name;
  std::string_view what;
};
std::span<const Workload> workloads();

/// [start, end), in bytes.
struct Memory {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
};

/// From VMEM_BENCH_SCALE: a factor on every size, over 0 and up to 1; 1 if unset.
std::expected<double, std::string> scale_from_environment();

/// Makes the memory in this process. Errors say what this machine lacks. For hugetlb the
/// pool is raised by what is needed; release() gives that back.
std::expected<Memory, std::string> make(std::string_view name, double scale);
void release();

/// A process that holds one workload until its end is asked for.
class Target {
 public:
  static std::expected<Target, std::string> start(std::string_view name, double scale);
  Target(Target&& other) noexcept;
  Target& operator=(Target&& other) noexcept;
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;
  ~Target();

  pid_t pid() const { return pid_; }
  const Memory& memory() const { return memory_; }

 private:
  Target() = default;
  void end();
  pid_t pid_ = 0;
  int control_ = -1;  ///< closing it ends the process
  Memory memory_;
};

/// The life of a target: makes the memory, writes "START END\n" (hexadecimal) to `out`, or
/// "error: ...\n"; waits for the end of `in`; gives back what the machine lent. It ends
/// also when the other side dies, and not by a signal from a terminal.
int serve(std::string_view name, double scale, int in, int out);

}  // namespace vmem::bench
