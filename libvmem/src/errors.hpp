// SPDX-License-Identifier: MIT
/// Short ways to make an Error from errno.
#pragma once

#include <cerrno>
#include <expected>
#include <string>
#include <utility>

#include "vmem/error.hpp"

namespace vmem {

inline Errc errc_of(int os_errno) {
  switch (os_errno) {
    case ENOENT:
    case ENOTDIR:
    case ENXIO:
      return Errc::not_found;
    case ESRCH:
      return Errc::no_process;
    case EACCES:
    case EPERM:
      return Errc::permission;
    case ENOTTY:
    case ENOSYS:
    case EOPNOTSUPP:
      return Errc::not_supported;
    case EINVAL:
      return Errc::invalid_argument;
    default:
      return Errc::io;
  }
}

inline Error make_error(int os_errno, const char* what, std::string path) {
  return {.code = errc_of(os_errno), .os_errno = os_errno, .what = what, .path = std::move(path)};
}

/// For `return failed(errno, ...)` in a function that returns a Result.
inline std::unexpected<Error> failed(int os_errno, const char* what, std::string path) {
  return std::unexpected(make_error(os_errno, what, std::move(path)));
}

/// For a file that has been opened: "not there" is no answer of it any more.
inline std::unexpected<Error> failed_though_open(int os_errno, const char* what, std::string path) {
  Error error = make_error(os_errno, what, std::move(path));
  if (error.code == Errc::not_found) error.code = Errc::io;
  return std::unexpected(std::move(error));
}

inline std::unexpected<Error> fail(Errc code, const char* what, std::string path) {
  return std::unexpected(Error{.code = code, .what = what, .path = std::move(path)});
}

}  // namespace vmem
