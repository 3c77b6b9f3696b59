// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <expected>
#include <string>

#include "vmem/export.hpp"

namespace vmem {

/// What kind of failure. "Not supported", "not there" and "failed" stay apart.
enum class Errc : std::uint8_t {
  invalid_argument,   ///< the caller asked for something that has no meaning
  not_supported,      ///< this kernel, architecture or recorded tree has no such interface
  not_found,          ///< it is not there
  no_process,         ///< no such process, or it has ended
  no_user_memory,     ///< a kernel thread or a zombie: it has no address space
  process_changed,    ///< it ended, or replaced its address space (exec), while being read
  permission,         ///< the kernel refused
  malformed,          ///< what was read does not have the form it must have
  io,                 ///< any other failed system call
};

/// One failure. `what` and `hint` are static strings: making an Error costs no
/// allocation beyond the path.
struct Error {
  Errc code = Errc::io;
  int os_errno = 0;              ///< errno, or 0 where no system call failed
  const char* what = "";         ///< what was being done: "reading pagemap"
  std::string path;              ///< as opened, with a leading '/'; may be empty
  std::uint64_t address = 0;     ///< virtual address or file offset concerned, or 0
  const char* hint = nullptr;    ///< what the user can do, or null
  std::uint64_t line = 0;        ///< of the text file at `path`, from 1; 0: none
  /// The reason in words (static), where they are more exact than the code's; or null.
  const char* reason = nullptr;
};

template <class T>
using Result = std::expected<T, Error>;

/// "what: path: reason" ("what: path: line 2: reason"), in one line without a newline; the hint is
/// not part of it.
VMEM_EXPORT std::string to_string(const Error& error);

}  // namespace vmem
