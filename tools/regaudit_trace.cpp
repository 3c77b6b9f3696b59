// SPDX-License-Identifier: MIT
/// The log of the recorder.
#include "regaudit_trace.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <unordered_map>

#include "regtrace.h"
#include "render.hpp"
#include "vmem/maps.hpp"

namespace vmem::tools {
namespace {

constexpr std::size_t kept_failures = 64;

class Reader {
 public:
  explicit Reader(pid_t pid) : pid_(pid) {}

  void record(const regtrace_record& r) {
    if (r.pid != pid_) return;
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
  Trace trace_;
  std::unordered_map<std::uint64_t, std::size_t> places_;  ///< by id, into regions
  std::unordered_map<std::uint64_t, TracedRegion> ended_;
};

std::unexpected<Error> malformed(const char* what, const std::string& path) {
  return std::unexpected(Error{.code = Errc::malformed, .what = what, .path = path});
}

/// The process's number in its innermost PID namespace.
pid_t inner_pid(const Process& process) {
  const auto status = process.read_file("status");
  if (!status) return process.pid();
  const std::size_t at = status->find("\nNSpid:");
  if (at == std::string::npos) return process.pid();
  const std::size_t end = status->find('\n', at + 1);
  const std::string line = status->substr(at, end - at);
  pid_t pid = 0;
  const std::size_t last = line.find_last_of(" \t:") + 1;
  std::from_chars(line.data() + last, line.data() + line.size(), pid);
  return pid > 0 ? pid : process.pid();
}

std::string environment_of(const Process& process) {
  const auto text = process.read_file("environ", 4 << 20);
  if (!text) return {};
  constexpr std::string_view name = REGTRACE_ENVIRONMENT "=";
  std::string_view rest = *text;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\0'), rest.size());
    if (rest.starts_with(name)) return std::string(rest.substr(name.size(), end - name.size()));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return {};
}

/// Opens the log that the process maps. It is the process's: a path in it is its own, too.
Fd open_log_of(const Process& process) {
  const int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  constexpr std::string_view own = "/proc/self/fd/";
  const std::string path = environment_of(process);
  if (path.empty()) return {};
  const std::string proc = fmt::format("/proc/{}", process.pid());
  // The descriptor may have been closed since; the mapping stays.
  if (auto reader = VmaReader::open(process)) {
    Vma vma;
    while (true) {
      const auto more = reader->next(vma);
      if (!more || !*more) break;
      if (vma.path != "/memfd:" REGTRACE_MEMFD " (deleted)" && vma.path != path) continue;
      Fd fd{open(
          fmt::format("{}/map_files/{:x}-{:x}", proc, vma.range.start.value, vma.range.end.value)
              .c_str(),
          flags)};
      if (fd.valid()) return fd;
    }
  }
  const std::string file = path.starts_with(own)
                               ? fmt::format("{}/fd/{}", proc, path.substr(own.size()))
                               : fmt::format("{}/root{}", proc, path);
  return Fd{open(file.c_str(), flags)};
}

}  // namespace

Result<Trace> read_trace(const Fd& fd, const std::string& name, pid_t pid) {
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
  Reader reader{pid};
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
  Fd fd;
  if (!log.empty()) {
    fd = Fd{open(log.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
    if (!fd.valid()) {
      return std::unexpected(Error{.code = errno == ENOENT ? Errc::not_found : Errc::io,
                                   .os_errno = errno,
                                   .what = "reading a trace",
                                   .path = log});
    }
  } else {
    fd = open_log_of(process);
    if (!fd.valid()) return std::optional<Trace>{};
  }
  auto trace = read_trace(fd, log.empty() ? process.path("environ") : log, inner_pid(process));
  if (!trace) return std::unexpected(std::move(trace.error()));
  if (!trace->seen) return std::optional<Trace>{};
  return std::optional<Trace>(std::move(*trace));
}

}  // namespace vmem::tools
