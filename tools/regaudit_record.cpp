// SPDX-License-Identifier: MIT
/// regaudit trace: runs a program with the recorder before its libibverbs.
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "callers_rights.hpp"
#include "regaudit.hpp"
#include "regtrace.h"

#ifndef VMEM_LIBDIR
#define VMEM_LIBDIR "lib"
#endif

namespace vmem::tools {
namespace {

constexpr char recorder[] = "libregtrace.so";
constexpr char usage[] = "regaudit trace [--log FILE] -- CMD...";

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
    fd = open_as_caller(file.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return failed("making the log");
    std::error_code error;
    path = std::filesystem::absolute(file, error).string();
    if (error) {  // the recorder could not open a name that is relative to another folder
      errno = error.value();
      return failed("making the log");
    }
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

/// The file that execvp(3) will run; empty if there is none.
std::string found_in_path(const std::string& command) {
  if (command.find('/') != std::string::npos) return command;
  const char* const path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/bin:/usr/bin";
  while (true) {
    const std::size_t end = std::min(rest.find(':'), rest.size());
    const std::string folder(rest.substr(0, end));
    std::string file = (folder.empty() ? "." : folder) + "/" + command;
    if (access(file.c_str(), X_OK) == 0) return file;
    if (end == rest.size()) return {};
    rest.remove_prefix(end + 1);
  }
}

/// Why the loader will not preload the recorder into this program (ld.so(8)); null: it will, or
/// what it is cannot be told.
const char* not_preloaded(const std::string& file) {
  const Fd fd{open_as_caller(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY)};
  struct stat info{};
  ElfW(Ehdr) header{};
  if (!fd.valid() || fstat(fd.get(), &info) != 0) return nullptr;
  if (pread(fd.get(), &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header) ||
      std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
    return nullptr;  // a script: its interpreter tells nothing of what it will start
  }
  constexpr unsigned char own = sizeof(void*) == 8 ? ELFCLASS64 : ELFCLASS32;
  if (header.e_ident[EI_CLASS] != own) return "it is of another word size than the recorder";
  const bool other_user = (info.st_mode & S_ISUID) != 0 && info.st_uid != getuid();
  if (other_user || ((info.st_mode & S_ISGID) != 0 && info.st_gid != getgid()))
    return "it is set-user-ID or set-group-ID, and the loader ignores LD_PRELOAD";
  if (getuid() != 0 && fgetxattr(fd.get(), "security.capability", nullptr, 0) > 0)
    return "it has file capabilities, and the loader ignores LD_PRELOAD";
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    ElfW(Phdr) program{};
    const auto at = static_cast<off_t>(header.e_phoff + std::uint64_t{i} * header.e_phentsize);
    if (pread(fd.get(), &program, sizeof program, at) != static_cast<ssize_t>(sizeof program))
      return nullptr;
    if (program.p_type == PT_INTERP) return nullptr;
  }
  return "it is statically linked";
}

int help(const Messages& messages) {
  catch_interrupts();  // nothing is run: a closed pipe may be ignored
  Output out{interrupted};
  out.print(
      "Usage: {}\n"
      "Runs CMD with a recorder of ibv_reg_mr() and its relatives preloaded, and ends as CMD "
      "does.\n\n"
      "  --log FILE  keep the log in FILE; else it is in memory that CMD holds open\n"
      "  -h,--help   Print this help and exit\n\n"
      "While CMD runs, regaudit rdma PID audits what it registered.\n",
      usage);
  return static_cast<int>(finish_output(out, Status::good, messages));
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
    if (word == "--log" || word.starts_with("--log=")) {
      const bool joined = word != "--log";
      const char* const value = joined ? argv[i] + 6 : i + 1 < argc ? argv[++i] : "";
      if (*value == '\0' || (!joined && std::string_view(value) == "--")) {
        messages.error("--log: FILE is missing", usage);
        return 2;
      }
      log = value;
    } else if (word == "-h" || word == "--help") {
      return help(messages);
    } else if (word.starts_with('-')) {
      messages.error(fmt::format("{}: no such option of trace", word), usage);
      return 2;
    } else {
      break;
    }
  }
  if (i >= argc) {
    messages.error("CMD is missing", usage);
    return 2;
  }
  const auto library = find_recorder();
  if (!library) {
    messages.error(
        fmt::format("{}: not found beside regaudit, nor where it is installed", recorder));
    return 2;
  }
  if (library->find_first_of(": ") != std::string::npos) {
    messages.error(fmt::format("{}: the loader splits LD_PRELOAD at colons and blanks", *library),
                   "install regaudit in a folder whose name has neither");
    return 2;
  }
  const auto path = make_log(log, messages);
  if (!path) return 2;
  std::string preload = *library;
  if (const char* const others = std::getenv("LD_PRELOAD"); others != nullptr && *others != '\0')
    preload += std::string(":") + others;
  if (const char* const why = not_preloaded(found_in_path(argv[i]))) {
    messages.error(fmt::format("{}: {}: nothing that it registers will be recorded", argv[i], why),
                   "programs that it starts are recorded");
  }
  if (setenv(REGTRACE_ENVIRONMENT, path->c_str(), 1) != 0 ||
      setenv("LD_PRELOAD", preload.c_str(), 1) != 0) {
    messages.error(fmt::format("setting the environment: {}", std::strerror(errno)));
    return 2;
  }
  execvp(argv[i], argv + i);
  messages.error(fmt::format("running {}: {}", argv[i], std::strerror(errno)));
  return 2;
}

}  // namespace vmem::tools
