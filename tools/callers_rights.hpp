// SPDX-License-Identifier: MIT
/// Files that a user names, where the tool has more rights than its user.
#pragma once

#include <cstdint>

namespace vmem::tools {

/// While it lives, this thread opens files with the rights of who called the tool, and not with
/// those that the tool's own file gives it (setcap(8), set-user-ID): for every file that is named
/// on the command line, to be read or written.
class CallersRights {
 public:
  CallersRights();
  ~CallersRights();
  CallersRights(const CallersRights&) = delete;
  CallersRights& operator=(const CallersRights&) = delete;

  /// False, with errno: they cannot be had, and nothing may be opened.
  bool had() const { return had_; }
  /// They stay until the end, for threads that are yet to start as well.
  void keep();

 private:
  bool lowered_ = false, had_ = true;
  std::uint64_t effective_ = 0;  ///< before
};

/// Capabilities that the caller had itself, as they were when this was first called: to be called
/// before any are dropped.
std::uint64_t callers_capabilities();

/// open(2) with the caller's rights.
int open_as_caller(const char* path, int flags, unsigned mode = 0);

}  // namespace vmem::tools
