// SPDX-License-Identifier: MIT
/// regaudit trace: runs a program with the recorder before its libibverbs.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "regaudit.hpp"
#include "regtrace.h"

#ifndef VMEM_LIBDIR
#define VMEM_LIBDIR "lib"
#endif

namespace vmem::tools {
namespace {

constexpr char recorder[] = "libregtrace.so";

/// The recorder: beside this program (as built), or where it is installed.
std::optional<std::string> find_recorder() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return std::nullopt;
  const std::filesystem::path folder = self.parent_path();
  for (const std::filesystem::path& path :
       {folder / recorder, folder.parent_path() / VMEM_LIBDIR / "vmem" / recorder}) {
    if (access(path.c_str(), R_OK) == 0) return path.string();
  }
  return std::nullopt;
}

/// An empty log. Its path is what the recorder opens.
std::optional<std::string> make_log(const std::string& file, const Messages& messages) {
  const auto failed = [&](const char* what) {
    messages.error(fmt::format("{}: {}: {}", what, file.empty() ? "memfd" : file.c_str(),
                               std::strerror(errno)));
    return std::nullopt;
  };
  std::string path = file;
  int fd = -1;
  if (file.empty()) {
    const int low = memfd_create(REGTRACE_MEMFD, 0);
    if (low < 0) return failed("making the log");
    // Out of the way of programs that expect their first files at low numbers.
    fd = fcntl(low, F_DUPFD, 500);
    if (fd >= 0)
      close(low);
    else
      fd = low;
    path = fmt::format("/proc/self/fd/{}", fd);
  } else {
    fd = open(file.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return failed("making the log");
    std::error_code error;
    path = std::filesystem::absolute(file, error).string();
  }
  regtrace_header header{};
  std::memcpy(header.magic, REGTRACE_MAGIC, sizeof header.magic);
  header.record_bytes = sizeof(regtrace_record);
  header.capacity = REGTRACE_CAPACITY;
  const std::uint64_t bytes = sizeof header + REGTRACE_CAPACITY * sizeof(regtrace_record);
  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0 ||
      pwrite(fd, &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header)) {
    return failed("writing the log");
  }
  return path;
}

}  // namespace

int run_trace(int argc, char** argv, const Messages& messages) {
  std::string log;
  int i = 2;
  for (; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--") {
      ++i;
      break;
    }
    if (word.starts_with("--log=")) {
      log = word.substr(6);
    } else if (word == "--log" && i + 1 < argc) {
      log = argv[++i];
    } else if (word == "-h" || word == "--help") {
      std::fputs("Usage: regaudit trace [--log FILE] -- CMD...\n", stdout);
      return 0;
    } else if (word.starts_with('-')) {
      messages.error(fmt::format("{}: no such option of trace", word),
                     "regaudit trace [--log FILE] -- CMD...");
      return 2;
    } else {
      break;
    }
  }
  if (i >= argc) {
    messages.error("CMD is missing", "regaudit trace [--log FILE] -- CMD...");
    return 2;
  }
  const auto library = find_recorder();
  if (!library) {
    messages.error(
        fmt::format("{}: not found beside regaudit, nor where it is installed", recorder));
    return 2;
  }
  const auto path = make_log(log, messages);
  if (!path) return 2;
  std::string preload = *library;
  if (const char* const others = std::getenv("LD_PRELOAD"); others != nullptr && *others != '\0')
    preload += std::string(":") + others;
  setenv(REGTRACE_ENVIRONMENT, path->c_str(), 1);
  setenv("LD_PRELOAD", preload.c_str(), 1);
  execvp(argv[i], argv + i);
  messages.error(fmt::format("running {}: {}", argv[i], std::strerror(errno)));
  return 2;
}

}  // namespace vmem::tools
