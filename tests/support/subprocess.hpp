// SPDX-License-Identifier: MIT
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace vmem::test {

struct RunOptions {
  std::vector<std::string> environment;  ///< "NAME=value", on top of the inherited one
  std::string input;                     ///< what stdin holds
  std::string stdout_path;               ///< where stdout goes instead of being captured
  bool stdout_closed_pipe = false;       ///< a pipe that nobody reads
  std::optional<uid_t> uid;              ///< user and group to become (needs root)
  std::string directory;                 ///< to start in
  std::chrono::seconds timeout{60};      ///< then it is killed
};

struct RunResult {
  std::string out;
  std::string err;
  int status = -1;  ///< exit status; -1 if a signal ended it
  int signal = 0;
  bool timed_out = false;
};

/// A program built with the tests: where the environment variable `name` says, as in a guest, else
/// at `built`.
std::string program_path(const char* name, const char* built);

/// Runs a program to its end. Throws if it cannot be started.
RunResult run(const std::vector<std::string>& arguments, const RunOptions& options = {});

}  // namespace vmem::test
