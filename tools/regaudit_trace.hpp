// SPDX-License-Identifier: MIT
/// The log of `regaudit trace`, read.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/sysroot.hpp"

namespace vmem::tools {

/// A registration that the process holds, or failed to get.
struct TracedRegion {
  std::uint64_t address = 0, length = 0, iova = 0;
  std::uint32_t lkey = 0, rkey = 0, access = 0;
  int error = 0;        ///< of one that failed
  bool dmabuf = false;  ///< address is an offset, and no memory of the process
  std::uint64_t id = 0;
};

struct Trace {
  std::vector<TracedRegion> regions;   ///< in the order in which they were made
  std::vector<TracedRegion> failures;  ///< the last 64
  bool fork_init = false;              ///< ibv_fork_init() was called
  std::uint64_t lost = 0;              ///< records that found the log full
  bool seen = false;                   ///< the log knows the process
};

/// What the log in `fd` says of process `pid`, by its number in its own PID namespace. What the log
/// notes of a program that began before `since` (CLOCK_MONOTONIC, nanoseconds) is of an earlier
/// process with that PID. Errors: malformed, with `name` as the path.
Result<Trace> read_trace(const Fd& fd, const std::string& name, pid_t pid, std::uint64_t since = 0);

/// The trace of a live process that was started under `regaudit trace`, from the file `log` or,
/// if that is empty, by the process's own environment and mappings. Empty: it was not. Errors:
/// whether it was cannot be told, or its log cannot be read or is another user's.
Result<std::optional<Trace>> find_trace(const Process& process, const std::string& log);

}  // namespace vmem::tools
