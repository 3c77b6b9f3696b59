// SPDX-License-Identifier: MIT
/// The log of the recorder.
#include "regaudit_trace.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <unordered_map>

#include "callers_rights.hpp"
#include "regtrace.h"
#include "render.hpp"
#include "vmem/maps.hpp"

namespace vmem::tools {
namespace {

constexpr std::size_t kept_failures = 64;

class Reader {
 public:
  Reader(pid_t pid, std::uint64_t since) : pid_(pid), since_(since) {}

  void record(const regtrace_record& r) {
    if (r.pid != pid_) return;
    if (r.time_ns < since_) return;  // of another process, which had the PID before
    switch (r.op) {
      case regtrace_start:
        trace_ = Trace{.lost = trace_.lost, .seen = true};
        places_.clear();
        ended_.clear();
        break;
      case regtrace_register:
      case regtrace_dmabuf:
        add(region_of(r));
        break;
      case regtrace_deregister:
        if (const auto place = places_.find(r.id); place != places_.end()) {
          ended_[r.id] = trace_.regions[place->second];
          trace_.regions[place->second].length = 0;
          places_.erase(place);
        }
        break;
      case regtrace_kept:
        if (const auto ended = ended_.find(r.id); ended != ended_.end()) {
          const TracedRegion region = ended->second;  // add() erases it
          add(region);
        }
        break;
      case regtrace_failed:
        if (trace_.failures.size() == kept_failures) trace_.failures.erase(trace_.failures.begin());
        trace_.failures.push_back(region_of(r));
        break;
      case regtrace_fork_init:
        trace_.fork_init = true;
        break;
      default:  // of a later version
        break;
    }
  }

  Trace take(std::uint64_t lost) {
    std::erase_if(trace_.regions, [](const TracedRegion& r) { return r.length == 0; });
    trace_.lost = lost;
    return std::move(trace_);
  }

 private:
  static TracedRegion region_of(const regtrace_record& r) {
    return {.address = r.address,
            .length = r.length,
            .iova = r.iova,
            .lkey = r.lkey,
            .rkey = r.rkey,
            .access = r.access,
            .error = r.error,
            .dmabuf = r.op == regtrace_dmabuf,
            .id = r.id};
  }
  void add(const TracedRegion& region) {
    ended_.erase(region.id);
    places_[region.id] = trace_.regions.size();
    trace_.regions.push_back(region);
  }

  pid_t pid_;
  std::uint64_t since_;
  Trace trace_;
  std::unordered_map<std::uint64_t, std::size_t> places_;  ///< by id, into regions
  std::unordered_map<std::uint64_t, TracedRegion> ended_;
};

std::unexpected<Error> malformed(const char* what, const std::string& path) {
  return std::unexpected(Error{.code = Errc::malformed, .what = what, .path = path});
}

/// The process's number in its innermost PID namespace.
Result<pid_t> inner_pid(const Process& process) {
  const auto status = process.read_file("status");
  if (!status) return std::unexpected(status.error());
  const std::size_t at = status->find("\nNSpid:");
  if (at == std::string::npos) return process.pid();
  const std::size_t end = status->find('\n', at + 1);
  const std::string line = status->substr(at, end - at);
  pid_t pid = 0;
  const std::size_t last = line.find_last_of(" \t:") + 1;
  std::from_chars(line.data() + last, line.data() + line.size(), pid);
  return pid > 0 ? pid : process.pid();
}

std::unexpected<Error> refused(Errc code, const char* what, std::string path, int os_errno = 0) {
  return std::unexpected(
      Error{.code = code, .os_errno = os_errno, .what = what, .path = std::move(path)});
}

/// What the recorder's variable says; empty: the process was not started with it.
Result<std::string> environment_of(const Process& process) {
  auto text = process.read_file("environ", 4 << 20);
  if (!text) {
    text.error().what = "telling whether it was started under regaudit trace";
    return std::unexpected(std::move(text.error()));
  }
  constexpr std::string_view name = REGTRACE_ENVIRONMENT "=";
  std::string_view rest = *text;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\0'), rest.size());
    if (rest.starts_with(name)) return std::string(rest.substr(name.size(), end - name.size()));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return std::string();
}

/// Opens a log. Its name may be the process's own choice: opening a device has effects, so what it
/// is is asked first.
Result<Fd> open_log(const std::string& path) {
  const Fd named{open(path.c_str(), O_PATH | O_CLOEXEC)};
  struct stat info{};
  if (!named.valid() || fstat(named.get(), &info) != 0) {
    const int error = errno;
    return refused(error == ENOENT                     ? Errc::not_found
                   : error == EACCES || error == EPERM ? Errc::permission
                                                       : Errc::io,
                   "reading a trace", path, error);
  }
  if (!S_ISREG(info.st_mode)) return malformed("reading a trace (not a regular file)", path);
  Fd fd{open(fmt::format("/proc/self/fd/{}", named.get()).c_str(),
             O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
  if (!fd.valid()) {
    const int error = errno;
    return refused(error == EACCES || error == EPERM ? Errc::permission : Errc::io,
                   "reading a trace", path, error);
  }
  return fd;
}

/// One that is named, on the command line or by the process: with the rights of who asks.
Result<Fd> open_named_log(const std::string& path) {
  const CallersRights rights;
  if (!rights.had()) return refused(Errc::permission, "reading a trace", path, errno);
  return open_log(path);
}

/// Whether the log may be believed of the process: what another user wrote is no evidence.
Result<void> check_owner(const Fd& fd, const std::string& path, const Process& process) {
  struct stat log{};
  if (fstat(fd.get(), &log) != 0) return refused(Errc::io, "reading a trace", path, errno);
  if (log.st_uid == 0 || log.st_uid == geteuid()) return {};
  const auto status = process.read_file("status");
  if (!status) return std::unexpected(status.error());
  // "Uid:\t1000\t1000\t1000\t1000": whoever the process is or was may have made it.
  const std::size_t at = status->find("\nUid:");
  const std::size_t end = at == std::string::npos ? at : status->find('\n', at + 1);
  std::string_view line = at == std::string::npos
                              ? std::string_view{}
                              : std::string_view(*status).substr(at + 5, end - at - 5);
  while (!line.empty()) {
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    uid_t uid = 0;
    const auto read = std::from_chars(line.data(), line.data() + line.size(), uid);
    if (read.ec != std::errc{}) break;
    if (uid == log.st_uid) return {};
    line.remove_prefix(static_cast<std::size_t>(read.ptr - line.data()));
  }
  return refused(Errc::permission, "reading a trace (it belongs to another user)", path);
}

/// Opens the log that the process maps; an invalid one: it maps none, so nothing is recorded. The
/// log is the process's: a path in it is its own, too.
Result<Fd> open_log_of(const Process& process) {
  constexpr std::string_view own = "/proc/self/fd/";
  auto path = environment_of(process);
  const std::string proc = fmt::format("/proc/{}", process.pid());
  const std::string file = !path || path->empty() ? std::string()
                           : path->starts_with(own)
                               ? fmt::format("{}/fd/{}", proc, path->substr(own.size()))
                               : fmt::format("{}/root{}", proc, *path);
  struct stat named{};
  const bool is_file = !file.empty() && !path->starts_with(own) && stat(file.c_str(), &named) == 0;
  auto reader = VmaReader::open(process);
  if (!reader) return std::unexpected(std::move(reader.error()));
  Vma vma;
  while (true) {
    const auto more = reader->next(vma);
    if (!more) return std::unexpected(more.error());
    if (!*more) break;
    // Its name may lead through links.
    const bool is_it = vma.path == "/memfd:" REGTRACE_MEMFD " (deleted)" ||
                       (path && !path->empty() && vma.path == *path) ||
                       (is_file && vma.inode == named.st_ino && vma.shared && vma.writable);
    if (!is_it) continue;
    // The descriptor may have been closed since; the mapping stays.
    auto fd = open_log(
        fmt::format("{}/map_files/{:x}-{:x}", proc, vma.range.start.value, vma.range.end.value));
    if (fd || file.empty()) return fd;
    return open_named_log(file);
  }
  // Not mapped: a program that it ran since is not recorded. Of a log in a file only the
  // environment tells, so that must have been read.
  if (!path) return std::unexpected(std::move(path.error()));
  return Fd{};
}

/// When the process began, by CLOCK_MONOTONIC in nanoseconds, or earlier; 0: not known.
std::uint64_t began(const Process& process) {
  const long ticks = sysconf(_SC_CLK_TCK);
  timespec boot{}, monotonic{};
  if (!process.start_time() || ticks <= 0 || clock_gettime(CLOCK_MONOTONIC, &monotonic) != 0 ||
      clock_gettime(CLOCK_BOOTTIME, &boot) != 0 ||
      process.root().read_link("proc/self/ns/time").value_or("") !=
          process.root()
              .read_link(fmt::format("proc/{}/ns/time", process.pid()).c_str())
              .value_or(""))
    return 0;
  constexpr std::uint64_t second = 1'000'000'000;
  const auto nanoseconds = [](const timespec& t) {
    return static_cast<std::uint64_t>(t.tv_sec) * second + static_cast<std::uint64_t>(t.tv_nsec);
  };
  // The time asleep, by which the two clocks differ, has only grown since then.
  const std::uint64_t asleep =
      nanoseconds(boot) - std::min(nanoseconds(boot), nanoseconds(monotonic));
  const std::uint64_t start = *process.start_time() * (second / static_cast<std::uint64_t>(ticks));
  return start - std::min(start, asleep);
}

}  // namespace

Result<Trace> read_trace(const Fd& fd, const std::string& name, pid_t pid, std::uint64_t since) {
  struct stat info{};
  if (fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode))
    return malformed("reading a trace (not a regular file)", name);
  regtrace_header header{};
  auto got = read_at(fd, &header, sizeof header, 0);
  if (!got) {
    got.error().path = name;
    return std::unexpected(std::move(got.error()));
  }
  if (*got != sizeof header ||
      std::memcmp(header.magic, REGTRACE_MAGIC, sizeof header.magic) != 0 ||
      header.record_bytes != sizeof(regtrace_record)) {
    return malformed("reading a trace (not a log of regaudit trace)", name);
  }
  const std::uint64_t fit =
      (static_cast<std::uint64_t>(info.st_size) - sizeof header) / sizeof(regtrace_record);
  const std::uint64_t capacity = std::min(header.capacity, fit);
  const std::uint64_t records = std::min(header.next, capacity);
  Reader reader{pid, since};
  std::vector<regtrace_record> buffer(1024);
  for (std::uint64_t at = 0; at < records;) {
    const std::size_t count = std::min<std::uint64_t>(buffer.size(), records - at);
    auto read = read_at(fd, buffer.data(), count * sizeof(regtrace_record),
                        sizeof header + at * sizeof(regtrace_record));
    if (!read) {
      read.error().path = name;
      return std::unexpected(std::move(read.error()));
    }
    const std::size_t whole = *read / sizeof(regtrace_record);
    for (std::size_t i = 0; i < whole; ++i) reader.record(buffer[i]);
    if (whole != count) return malformed("reading a trace (it ends early)", name);
    at += count;
  }
  return reader.take(header.next - std::min(header.next, capacity));
}

Result<std::optional<Trace>> find_trace(const Process& process, const std::string& log) {
  auto fd = log.empty() ? open_log_of(process) : open_named_log(log);
  if (!fd) return std::unexpected(std::move(fd.error()));
  if (!fd->valid()) return std::optional<Trace>{};
  const std::string name = log.empty() ? process.path("environ") : log;
  if (auto trusted = check_owner(*fd, name, process); !trusted)
    return std::unexpected(std::move(trusted.error()));
  auto pid = inner_pid(process);
  if (!pid) return std::unexpected(std::move(pid.error()));
  auto trace = read_trace(*fd, name, *pid, began(process));
  if (!trace) return std::unexpected(std::move(trace.error()));
  if (!trace->seen) return std::optional<Trace>{};
  return std::optional<Trace>(std::move(*trace));
}

}  // namespace vmem::tools
