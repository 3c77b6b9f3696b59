// SPDX-License-Identifier: MIT
#include "vmem/sysroot.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <utility>

#include "errors.hpp"
#include "pagemap_bits.hpp"
#include "proc_view.hpp"
#include "target_pace.hpp"

namespace vmem {

struct SysRoot::State {
  Fd directory;
  std::string name;  ///< prefix of paths in messages; empty for the live system
  bool recorded = false;
  PageSize page_size;
  PfnAccess access = PfnAccess::unknown;
  std::string release;  ///< from a manifest
  bool hides_processes = false;  ///< from a manifest
};

namespace {

/// In a recorded tree links resolve inside the tree, and "magic" links not at all.
int open_beneath(int directory, const char* path, int flags) {
  open_how how{};
  how.flags = static_cast<std::uint64_t>(flags) | O_CLOEXEC;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(syscall(SYS_openat2, directory, path, &how, sizeof how));
}

/// A path in a message is as the user knows it: with the tree's name in front.
std::string message_path(const std::string& root_name, const std::string& path) {
  return root_name + "/" + path;
}

Result<std::string> read_whole(const Fd& fd, std::size_t limit, const std::string& path) {
  std::string text;
  std::size_t used = 0;
  for (;;) {
    if (text.size() - used < 4096)
      text.resize(std::min(limit + 1, std::max<std::size_t>(8192, text.size() * 2)));
    const ssize_t n = ::read(fd.get(), text.data() + used, text.size() - used);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed_though_open(errno, "reading", path);
    if (n == 0) break;
    used += static_cast<std::size_t>(n);
    if (used > limit) return fail(Errc::malformed, "reading (too large)", path);
  }
  text.resize(used);
  return text;
}

Result<std::vector<std::string>> list_directory(Fd fd, const std::string& path) {
  DIR* stream = fdopendir(fd.get());
  if (stream == nullptr) return failed_though_open(errno, "listing", path);
  fd.release();
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = readdir(stream)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  const int error = errno;
  closedir(stream);
  if (error != 0) return failed_though_open(error, "listing", path);
  return names;
}

/// The base page size, found by trying: mincore(2) takes page-aligned addresses alone.
PageSize probe_page_size() {
  constexpr std::size_t largest = 1 << 20;
  void* area = mmap(nullptr, 2 * largest, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) return PageSize{static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))};
  const auto base = (reinterpret_cast<std::uintptr_t>(area) + largest - 1) & ~(largest - 1);
  std::size_t size = 4096;
  for (; size < largest; size *= 2) {
    unsigned char resident = 0;
    void* const page = reinterpret_cast<void*>(base + size);
    // A page is not larger for one refusal: seccomp and the like answer EINVAL, too.
    bool aligned = false;
    for (int asked = 0; asked != 2 && !aligned; ++asked)
      aligned = mincore(page, 1, &resident) == 0 || errno != EINVAL;
    if (aligned) break;
  }
  munmap(area, 2 * largest);
  return PageSize{size};
}

/// Whether PFNs are shown: read the entry of a page that is certainly present, our stack's.
PfnAccess try_pfn_access(int root, PageSize page_size) {
  volatile char page = 1;
  const auto address = reinterpret_cast<std::uintptr_t>(&page);
  const Fd fd{openat(root, "proc/self/pagemap", O_RDONLY | O_CLOEXEC)};
  if (!fd.valid()) return PfnAccess::none;
  std::uint64_t entry = 0;
  const auto offset = static_cast<off_t>(page_size.pages(address) * sizeof entry);
  if (pread(fd.get(), &entry, sizeof entry, offset) != sizeof entry) return PfnAccess::none;
  if (!pagemap::present(entry)) return PfnAccess::none;
  return pagemap::pfn(entry).value != 0 ? PfnAccess::full : PfnAccess::hidden;
}

/// Asked twice before PFNs are said not to be shown: all that follows goes by it.
PfnAccess probe_pfn_access(int root, PageSize page_size) {
  const PfnAccess first = try_pfn_access(root, page_size);
  return first == PfnAccess::none ? try_pfn_access(root, page_size) : first;
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

struct Manifest {
  PageSize page_size;
  PfnAccess access = PfnAccess::unknown;
  std::string release;
  bool hides_processes = false;
};

Result<Manifest> parse_manifest(std::string_view text, const std::string& path) {
  Manifest manifest;
  while (!text.empty()) {
    const std::size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline);
    text.remove_prefix(newline == std::string_view::npos ? text.size() : newline + 1);
    if (line.empty() || line.front() == '#') continue;
    const std::size_t space = line.find(' ');
    const std::string_view key = line.substr(0, space);
    constexpr std::string_view key_letters = "abcdefghijklmnopqrstuvwxyz0123456789_-";
    if (space == std::string_view::npos || key.empty() ||
        key.find_first_not_of(key_letters) != std::string_view::npos) {
      return fail(Errc::malformed, "manifest: a line that is not \"key value\"", path);
    }
    const std::string_view value = line.substr(space + 1);
    if (key == "vmem-tree") {
      if (value != "1") return fail(Errc::not_supported, "manifest of another version", path);
    } else if (key == "page_size") {
      const auto bytes = parse_number(value);
      if (!bytes || !PageSize::valid(*bytes) || *bytes > (1 << 20)) {
        return fail(Errc::malformed, "manifest: page_size", path);
      }
      manifest.page_size = PageSize{*bytes};
    } else if (key == "pfn_access") {
      if (value == "full")
        manifest.access = PfnAccess::full;
      else if (value == "hidden")
        manifest.access = PfnAccess::hidden;
      else if (value == "none")
        manifest.access = PfnAccess::none;
      else
        return fail(Errc::malformed, "manifest: pfn_access", path);
    } else if (key == "hidepid") {
      // As mountinfo writes it; "noaccess" leaves nobody out of the list.
      manifest.hides_processes = value == "invisible" || value == "ptraceable";
      if (!manifest.hides_processes && value != "off" && value != "noaccess")
        return fail(Errc::malformed, "manifest: hidepid", path);
    } else if (key == "kernel") {
      manifest.release = value;
    }
    // Other keys are for people and for later versions.
  }
  return manifest;
}

/// Fields of /proc/PID/stat after the comm, which may hold spaces and parentheses:
/// field 3 (state) is the first after the last ')'.
struct Stat {
  std::string comm;
  char state = '?';
  std::uint64_t flags = 0;       ///< field 9, PF_* of include/linux/sched.h
  std::uint64_t start_time = 0;  ///< field 22
  /// Of fields 26 to 28, where code and stack begin: another program has others.
  std::uint64_t layout = 0;
  /// Field 38 (exit_signal) is not -1, which copy_process() in kernel/fork.c gives to every
  /// thread but the first of a process.
  bool leader = false;
};

std::optional<Stat> parse_stat(std::string_view text) {
  const std::size_t open = text.find('(');
  const std::size_t close = text.rfind(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) return {};
  Stat stat;
  stat.comm = text.substr(open + 1, close - open - 1);
  text.remove_prefix(close + 1);
  for (int field = 3; field <= 38; ++field) {
    const std::size_t start = text.find_first_not_of(" \n");
    if (start == std::string_view::npos) {
      if (field > 22) break;
      return {};
    }
    text.remove_prefix(start);
    const std::string_view word = text.substr(0, text.find_first_of(" \n"));
    text.remove_prefix(word.size());
    if (field == 3) stat.state = word[0];
    if (field == 9 || field == 22) {
      const auto value = parse_number(word);
      if (!value) return {};
      (field == 9 ? stat.flags : stat.start_time) = *value;
    }
    if (field >= 26 && field <= 28)
      stat.layout = stat.layout * 1000003 + parse_number(word).value_or(0);
    if (field == 38) stat.leader = word != "-1";
  }
  return stat;
}

constexpr std::uint64_t pf_kthread = 0x00200000;

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = other.release();
  }
  return *this;
}

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

Result<std::size_t> read_at(const Fd& fd, void* buffer, std::size_t bytes, std::uint64_t offset) {
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t n = pread(fd.get(), static_cast<char*>(buffer) + done, bytes - done,
                            static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(errno, "reading", {});
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

SysRoot::SysRoot(std::shared_ptr<const State> state) : state_(std::move(state)) {}

Result<SysRoot> SysRoot::live() {
  auto state = std::make_shared<State>();
  state->directory = Fd{::open("/", O_PATH | O_DIRECTORY | O_CLOEXEC)};
  if (!state->directory.valid()) return failed(errno, "opening", "/");
  state->page_size = probe_page_size();
  state->access = probe_pfn_access(state->directory.get(), state->page_size);
  return SysRoot{std::move(state)};
}

Result<SysRoot> SysRoot::open(const std::string& directory) {
  auto state = std::make_shared<State>();
  state->recorded = true;
  state->name = directory;
  while (state->name.size() > 1 && state->name.back() == '/') state->name.pop_back();
  state->directory = Fd{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (!state->directory.valid()) {
    Error error = make_error(errno, "opening recorded system", directory);
    if (error.os_errno == ENOTDIR) error.hint = "a recorded system is a directory laid out like /";
    return std::unexpected(std::move(error));
  }
  SysRoot root{state};
  if (auto text = root.read_file("manifest", 1 << 16); text) {
    auto manifest = parse_manifest(*text, message_path(state->name, "manifest"));
    if (!manifest) return std::unexpected(std::move(manifest.error()));
    state->page_size = manifest->page_size;
    state->access = manifest->access;
    state->release = manifest->release;
    state->hides_processes = manifest->hides_processes;
  } else if (text.error().code != Errc::not_found) {
    return std::unexpected(std::move(text.error()));
  }
  return root;
}

bool SysRoot::recorded() const { return state_->recorded; }
PageSize SysRoot::page_size() const { return state_->page_size; }
PfnAccess SysRoot::pfn_access() const { return state_->access; }

namespace {

/// Opens a file below `directory`. A recorded tree holds regular files and directories
/// only: anything else (a FIFO would block for ever) is refused.
Result<Fd> open_in(int directory, bool recorded, const char* path, int flags, std::string shown) {
  if (!recorded) {
    Fd fd{openat(directory, path, flags | O_CLOEXEC)};
    if (!fd.valid()) return failed(errno, "opening", std::move(shown));
    return fd;
  }
  Fd fd{open_beneath(directory, path, flags | O_NONBLOCK | O_NOCTTY)};
  if (!fd.valid()) return failed(errno, "opening", std::move(shown));
  struct stat info{};
  if (fstat(fd.get(), &info) != 0) return failed_though_open(errno, "opening", std::move(shown));
  const bool wanted = (flags & O_DIRECTORY) != 0 ? S_ISDIR(info.st_mode) : S_ISREG(info.st_mode);
  if (!wanted) return fail(Errc::malformed, "opening (not a regular file)", std::move(shown));
  return fd;
}

}  // namespace

/// Opens a file of the root. On the live system what is missing in /proc may be so because there is
/// no /proc, or not all of it.
Result<Fd> SysRoot::open_below(const char* path, int flags) const {
  auto fd = open_in(state_->directory.get(), state_->recorded, path, flags,
                    message_path(state_->name, path));
  if (!fd && !state_->recorded) explain_missing(state_->directory.get(), path, fd.error());
  return fd;
}

Result<Fd> SysRoot::open_file(const char* path) const { return open_below(path, O_RDONLY); }

Result<std::string> SysRoot::read_file(const char* path, std::size_t limit) const {
  auto fd = open_file(path);
  if (!fd) return std::unexpected(std::move(fd.error()));
  return read_whole(*fd, limit, message_path(state_->name, path));
}

Result<std::vector<std::string>> SysRoot::list(const char* path) const {
  auto fd = open_below(path, O_RDONLY | O_DIRECTORY);
  if (!fd) return std::unexpected(std::move(fd.error()));
  return list_directory(std::move(*fd), message_path(state_->name, path));
}

Result<std::string> SysRoot::read_link(const char* path) const {
  constexpr int flags = O_PATH | O_NOFOLLOW | O_CLOEXEC;
  const Fd link{state_->recorded ? open_beneath(state_->directory.get(), path, flags)
                                 : openat(state_->directory.get(), path, flags)};
  const auto refused = [&](const char* what) {
    Error error = make_error(errno, what, message_path(state_->name, path));
    if (!state_->recorded) explain_missing(state_->directory.get(), path, error);
    return std::unexpected(std::move(error));
  };
  if (!link.valid()) return refused("opening link");
  char target[4096];
  const ssize_t n = readlinkat(link.get(), "", target, sizeof target);
  if (n < 0) return refused("reading link");
  return std::string(target, static_cast<std::size_t>(n));
}

Result<Process> SysRoot::self() const {
  // Not getpid(): /proc may be that of another PID namespace, where this number is another's.
  auto target = read_link("proc/self");
  if (!target) return std::unexpected(std::move(target.error()));
  const auto pid = parse_number(*target);
  if (!pid || *pid == 0 || *pid > 0x7fffffff) {
    return fail(Errc::malformed, "reading link", message_path(state_->name, "proc/self"));
  }
  return process(static_cast<pid_t>(*pid));
}

Result<Process> SysRoot::process(pid_t pid) const {
  Process process{*this};
  std::optional<Stat> stat;
  for (int attempt = 0;; ++attempt) {
    const std::string name = "proc/" + std::to_string(pid);
    auto directory = open_below(name.c_str(), O_RDONLY | O_DIRECTORY);
    process.pid_ = pid;
    if (!directory) {
      Error& error = directory.error();
      error.what = "opening process";
      if (error.reason == nullptr && error.code == Errc::not_found) {
        error.code = Errc::no_process;
        if (const auto hidden = hidden_processes()) {
          error.reason = "no such process, or hidden by hidepid";
          error.hint = hidden->data();
        }
      } else if (!state_->recorded && error.code == Errc::permission) {
        // Nothing else keeps anybody from opening the directory (proc_pid_permission()).
        error.hint =
            "proc is mounted with hidepid: other users' processes need CAP_SYS_PTRACE, or "
            "the group that the mount's gid= names";
      }
      return std::unexpected(std::move(error));
    }
    process.directory_ = std::move(*directory);
    auto text = process.read_file("stat", 1 << 16);
    if (text) {
      stat = parse_stat(*text);
      if (!stat) return fail(Errc::malformed, "reading", process.path("stat"));
    } else if (!state_->recorded || text.error().code != Errc::not_found) {
      return std::unexpected(std::move(text.error()));
    }
    if (stat && stat->leader && !state_->recorded) break;
    // A thread's id names its process. The thread group id stands in status alone, which
    // costs as much as all the rest of this.
    auto status = process.read_file("status", 1 << 16);
    if (!status) break;
    const std::size_t at = status->find("\nTgid:\t");
    if (at == std::string::npos) break;
    const std::string_view rest = std::string_view(*status).substr(at + 7);
    const auto tgid = parse_number(rest.substr(0, rest.find('\n')));
    if (!tgid || *tgid == 0 || *tgid > 0x7fffffff || static_cast<pid_t>(*tgid) == pid) break;
    if (attempt == 1) return fail(Errc::malformed, "opening process", process.path("status"));
    pid = static_cast<pid_t>(*tgid);
  }
  // Who reads itself does not wait for itself.
  if (!state_->recorded && process.pid_ != getpid())
    process.pace_ = std::make_shared<TargetPace>(process.pid_);
  if (!stat) {
    // A recorded tree may be sparse: maps and pagemap are enough.
    if (auto comm = process.read_file("comm", 4096); comm) {
      process.comm_ = comm->substr(0, comm->find('\n'));
    }
    return process;
  }
  process.comm_ = stat->comm;
  process.start_time_ = stat->start_time;
  process.layout_ = stat->layout;
  if ((stat->flags & pf_kthread) != 0) {
    return std::unexpected(Error{
        .code = Errc::no_user_memory, .what = "opening kernel thread", .path = process.path("")});
  }
  if ((stat->state == 'Z' || stat->state == 'X') && !process.turn_to_living_thread()) {
    return std::unexpected(
        Error{.code = Errc::no_user_memory, .what = "opening zombie", .path = process.path("")});
  }
  return process;
}

Result<std::vector<pid_t>> SysRoot::processes() const {
  // Of a /proc that is an empty directory the list would be empty.
  if (!state_->recorded && !proc_is_mounted(state_->directory.get())) {
    Error error = make_error(ENOENT, "listing processes", "/proc");
    explain_missing(state_->directory.get(), "proc/", error);
    return std::unexpected(std::move(error));
  }
  auto names = list("proc");
  if (!names) return std::unexpected(std::move(names.error()));
  std::vector<pid_t> pids;
  for (const std::string& name : *names) {
    const auto pid = parse_number(name);
    if (pid && *pid != 0 && *pid <= 0x7fffffff) pids.push_back(static_cast<pid_t>(*pid));
  }
  std::ranges::sort(pids);
  return pids;
}

std::optional<std::string_view> SysRoot::hidden_processes() const {
  if (!state_->recorded) return vmem::hidden_processes(state_->directory.get());
  if (!state_->hides_processes) return {};
  return "the recorder's proc was mounted with hidepid: only its own processes are recorded";
}

Result<std::vector<pid_t>> SysRoot::find_by_comm(std::string_view comm) const {
  auto pids = processes();
  if (!pids) return pids;
  std::erase_if(*pids, [&](pid_t pid) {
    // A process that ends meanwhile is simply not there.
    const auto text = read_file(("proc/" + std::to_string(pid) + "/comm").c_str(), 4096);
    if (!text) return true;
    std::string_view found = *text;
    if (found.ends_with('\n')) found.remove_suffix(1);
    return found != comm;
  });
  return pids;
}

std::string SysRoot::kernel_release() const {
  if (!state_->release.empty()) return state_->release;
  auto text = read_file("proc/sys/kernel/osrelease", 4096);
  if (!text) return {};
  return text->substr(0, text->find('\n'));
}

std::string Process::path(const char* name) const {
  std::string path = message_path(root_.state_->name, "proc/" + std::to_string(pid_));
  if (*name != '\0') path.append("/").append(name);
  return path;
}

Result<Fd> Process::open_file(const char* name) const {
  auto fd = open_in(directory_.get(), root_.recorded(), name, O_RDONLY, path(name));
  if (fd || root_.recorded()) return fd;
  Error& error = fd.error();
  // The directory of a process that has ended stays open but answers ESRCH or ENOENT;
  // so does pagemap of a process without an address space.
  if (error.os_errno == ESRCH) {
    error.code = check_alive() ? Errc::no_user_memory : Errc::no_process;
  } else if (error.os_errno == ENOENT && !check_alive()) {
    error.code = Errc::no_process;
  } else if (error.code == Errc::permission) {
    // Of a zombie's files some are refused before it is noticed that there is nothing.
    if (!check_alive())
      error.code = Errc::no_process;
    else
      error.hint = permission_hint(Privilege::process);
  }
  return fd;
}

/// A process whose first thread has ended (pthread_exit in main) looks like a zombie, but
/// lives on, and its memory with it, in the others: then one of these stands for it.
bool Process::turn_to_living_thread() {
  const auto threads = list("task");
  if (!threads) return false;
  for (const std::string& thread : *threads) {
    const std::string name = "task/" + thread;
    auto directory = open_in(directory_.get(), root_.recorded(), name.c_str(),
                             O_RDONLY | O_DIRECTORY, path(name.c_str()));
    if (!directory) continue;
    const auto text = read_file((name + "/stat").c_str(), 1 << 16);
    const auto stat = text ? parse_stat(*text) : std::nullopt;
    if (!stat || stat->state == 'Z' || stat->state == 'X') continue;
    directory_ = std::move(*directory);
    layout_ = stat->layout;  // of the first thread it is all zeros now
    return true;
  }
  return false;
}

Result<std::string> Process::read_file(const char* name, std::size_t limit) const {
  auto fd = open_file(name);
  if (!fd) return std::unexpected(std::move(fd.error()));
  return read_whole(*fd, limit, path(name));
}

Result<std::vector<std::string>> Process::list(const char* name) const {
  auto fd = open_in(directory_.get(), root_.recorded(), name, O_RDONLY | O_DIRECTORY, path(name));
  if (!fd) return std::unexpected(std::move(fd.error()));
  return list_directory(std::move(*fd), path(name));
}

void Process::skip_odd_lines(std::function<void(const OddLine&)> tell) {
  odd_lines_ = std::make_shared<OddLines>();
  odd_lines_->tell = std::move(tell);
}

void Process::OddLines::add(OddLine line) {
  const OddLine told = line;
  {
    const std::scoped_lock lock(mutex);
    const auto at = std::ranges::lower_bound(lines, line.line, {}, &OddLine::line);
    if (at != lines.end() && at->line == line.line) return;
    lines.insert(at, std::move(line));
  }
  if (tell) tell(told);
}

std::vector<OddLine> Process::odd_lines() const {
  if (!odd_lines_) return {};
  const std::scoped_lock lock(odd_lines_->mutex);
  return odd_lines_->lines;
}

bool Process::may_be_left_out(VaRange range) const {
  const std::vector<OddLine> lines = odd_lines();
  return std::ranges::any_of(lines, [&](const OddLine& line) {
    if (line.range.empty()) return line.range.start.value == 0;
    return !part_told_by(line, range).empty();
  });
}

VaRange Process::part_told_by(const OddLine& line, VaRange range) const {
  if (line.range.empty()) return {};
  const PageSize page = root_.page_size();
  // Rounded up, the end of the address space would be 0.
  const VirtAddr up = page.ceil(line.range.end);
  return intersect(range, {page.floor(line.range.start), up < line.range.end ? range.end : up});
}

Result<void> Process::check_alive() const {
  if (root_.recorded()) return {};
  const Fd fd{openat(directory_.get(), "stat", O_RDONLY | O_CLOEXEC)};
  if (!fd.valid() && errno != ENOENT && errno != ESRCH)
    return failed(errno, "opening", path("stat"));  // that says nothing of the process
  if (fd.valid()) {
    // The descriptor belongs to one process, so a PID used again cannot answer here.
    auto text = read_whole(fd, 1 << 16, path("stat"));
    if (text) {
      const auto stat = parse_stat(*text);
      if (stat && stat->state != 'Z' && stat->state != 'X') {
        // A process whose old address space is still shared with a child (vfork) can exec
        // and leave descriptors of the old one readable.
        if (stat->layout == layout_) return {};
        return fail(Errc::process_changed, "reading process", path(""));
      }
    }
  }
  return std::unexpected(
      Error{.code = Errc::no_process, .what = "reading process", .path = path("")});
}

namespace {

/// Of the file behind a mapping. Not to be asked of the file's server, which may be a dead one
/// (FUSE, NFS).
std::string mapped_file_link(VaRange range) {
  char name[64];
  std::snprintf(name, sizeof name, "map_files/%llx-%llx",
                static_cast<unsigned long long>(range.start.value),
                static_cast<unsigned long long>(range.end.value));
  return name;
}

std::optional<struct statx> mapped_file(const Fd& process, VaRange range, unsigned wanted) {
  const std::string name = mapped_file_link(range);
  struct statx info{};
  if (statx(process.get(), name.c_str(), AT_STATX_DONT_SYNC, wanted, &info) != 0) return {};
  if ((info.stx_mask & wanted) != wanted) return {};
  return info;
}

}  // namespace

std::optional<std::uint32_t> Process::mapped_file_mode(VaRange range) const {
  if (root_.recorded()) return {};
  const auto info = mapped_file(directory_, range, STATX_TYPE);
  return info ? std::optional<std::uint32_t>(info->stx_mode) : std::nullopt;
}

std::optional<std::uint64_t> Process::mapped_file_bytes(VaRange range) const {
  if (root_.recorded()) return {};
  const auto info = mapped_file(directory_, range, STATX_TYPE | STATX_SIZE);
  if (!info || !S_ISREG(info->stx_mode)) return {};
  return info->stx_size;
}

std::optional<std::uint64_t> Process::mapped_hugetlb_page_bytes(VaRange range) const {
  if (root_.recorded()) return {};
  const Fd file{openat(directory_.get(), mapped_file_link(range).c_str(), O_PATH | O_CLOEXEC)};
  struct statfs info{};
  if (!file.valid() || fstatfs(file.get(), &info) != 0) return {};
  if (info.f_type != HUGETLBFS_MAGIC) return 0;
  return static_cast<std::uint64_t>(info.f_bsize);
}

}  // namespace vmem
