// SPDX-License-Identifier: MIT
#include "report_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "callers_rights.hpp"

namespace vmem::tools {
namespace {

/// Whether all was written; errno says why not.
bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR && !interrupted()) continue;
    if (n < 0) return false;
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

mode_t default_mode() {
  const mode_t mask = umask(0);
  umask(mask);
  return 0666 & ~mask;
}

bool write_as_it_is(const std::string& file, std::string_view text) {
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) return false;
  const bool written = write_all(fd, text);
  const int error = errno;
  const bool closed = close(fd) == 0;
  if (!written) errno = error;
  return written && closed;
}

bool replace(const std::string& file, mode_t mode, std::string_view text) {
  std::string part = file + ".XXXXXX";
  const int fd = mkostemp(part.data(), O_CLOEXEC);
  // A file that may be written, in a directory that may not.
  if (fd < 0 && (errno == EACCES || errno == EROFS || errno == ENAMETOOLONG))
    return write_as_it_is(file, text);
  if (fd < 0) return false;
  bool good = write_all(fd, text) && fchmod(fd, mode) == 0;
  int error = errno;
  if (close(fd) != 0 && good) {
    good = false;
    error = errno;
  }
  if (good && rename(part.c_str(), file.c_str()) == 0) return true;
  if (good) error = errno;
  unlink(part.c_str());
  errno = error;
  return false;
}

/// A descriptor by which this process writes to that file already (/dev/stdout, /dev/fd/3); or -1.
int own_output(const struct stat& file) {
  for (int fd = 0; fd < 64; ++fd) {
    struct stat own{};
    if (fstat(fd, &own) != 0 || own.st_dev != file.st_dev || own.st_ino != file.st_ino) continue;
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY) return fd;
  }
  return -1;
}

bool write_to(const std::string& file, std::string_view text) {
  struct stat there{};
  if (stat(file.c_str(), &there) != 0) {
    // A link that leads nowhere yet is followed by open() alone.
    if (errno == ENOENT && lstat(file.c_str(), &there) != 0)
      return replace(file, default_mode(), text);
    return write_as_it_is(file, text);
  }
  if (const int fd = own_output(there); fd >= 0) return write_all(fd, text);
  // Another's, or one of several names: in its place would be something else.
  if (!S_ISREG(there.st_mode) || there.st_nlink > 1 || there.st_uid != geteuid())
    return write_as_it_is(file, text);
  const std::unique_ptr<char, decltype(&std::free)> target(realpath(file.c_str(), nullptr),
                                                           &std::free);
  if (target == nullptr) return false;
  return replace(target.get(), there.st_mode & 07777, text);
}

}  // namespace

bool write_report(const std::string& file, std::string_view text, const Messages& messages) {
  const CallersRights rights;
  if (rights.had() && write_to(file, text)) return true;
  messages.error(fmt::format("writing output: {}: {}", file, std::strerror(errno)));
  return false;
}

}  // namespace vmem::tools
