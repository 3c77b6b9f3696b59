// SPDX-License-Identifier: MIT
#include "proc_view.hpp"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <string>
#include <vector>

#include "vmem/sysroot.hpp"

namespace vmem {
namespace {

constexpr std::string_view not_told =
    "/proc/self/mountinfo cannot be read: hidepid may hide processes";

/// A file of /proc, whole. Empty: it cannot be read.
std::optional<std::string> read_all(int root, const char* path) {
  const Fd fd{openat(root, path, O_RDONLY | O_CLOEXEC)};
  if (!fd.valid()) return {};
  std::string text;
  char piece[16384];
  for (;;) {
    const ssize_t n = read(fd.get(), piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return {};
    if (n == 0) return text;
    text.append(piece, static_cast<std::size_t>(n));
  }
}

std::string_view take_until(std::string_view& text, char end) {
  const std::size_t at = text.find(end);
  const std::string_view part = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return part;
}

/// The options of the mount that /proc is (proc_show_options() in fs/proc/root.c), out of
/// mountinfo: ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS…] - TYPE SOURCE SUPEROPTIONS.
std::optional<std::string> proc_options(int root) {
  const auto mounts = read_all(root, "proc/self/mountinfo");
  if (!mounts) return {};
  std::string id;
  struct statx info{};
  if (statx(root, "proc", AT_STATX_DONT_SYNC, STATX_MNT_ID, &info) == 0 &&
      (info.stx_mask & STATX_MNT_ID) != 0)
    id = std::to_string(info.stx_mnt_id);
  std::optional<std::string> options;
  for (std::string_view rest = *mounts; !rest.empty();) {
    const std::string_view line = take_until(rest, '\n');
    std::string_view fields = line;
    const std::string_view number = take_until(fields, ' ');
    for (int skipped = 0; skipped < 3; ++skipped) take_until(fields, ' ');
    const std::string_view point = take_until(fields, ' ');
    // Kernels before 5.8 do not tell the id: the last mount on a place lies on top.
    if (id.empty() ? point != "/proc" : number != id) continue;
    const std::size_t separator = fields.find(" - ");
    if (separator == std::string_view::npos) continue;
    fields.remove_prefix(separator + 3);
    take_until(fields, ' ');
    take_until(fields, ' ');
    options = fields;
  }
  return options;
}

std::optional<std::string_view> option_value(std::string_view options, std::string_view key) {
  while (!options.empty()) {
    const std::string_view option = take_until(options, ',');
    if (option.starts_with(key)) return option.substr(key.size());
  }
  return {};
}

bool in_group(gid_t group) {
  if (getegid() == group) return true;
  std::vector<gid_t> groups(static_cast<std::size_t>(std::max(getgroups(0, nullptr), 0)));
  const int n = getgroups(static_cast<int>(groups.size()), groups.data());
  return n > 0 && std::find(groups.begin(), groups.begin() + n, group) != groups.begin() + n;
}

/// Whether the mount's gid= exempts this reader. Without the option it is group 0 of the initial
/// user namespace, and a group that this namespace does not know is shown as 65534.
bool exempt_by_group(int root, std::string_view options) {
  const auto map = read_all(root, "proc/self/gid_map");
  std::string_view rest = map ? std::string_view(*map) : std::string_view{};
  std::vector<std::string_view> words;
  for (std::string_view line = take_until(rest, '\n'); !line.empty();) {
    if (const std::string_view word = take_until(line, ' '); !word.empty()) words.push_back(word);
  }
  const bool initial =
      words.size() == 3 && words[0] == "0" && words[1] == "0" && words[2] == "4294967295";
  constexpr gid_t overflow = 65534;
  gid_t group = 0;
  if (const auto text = option_value(options, "gid=")) {
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), group);
    if (error != std::errc{} || end != text->data() + text->size()) return false;
    if (group == overflow && !initial) return false;
  } else if (!initial) {
    return false;
  }
  return in_group(group);
}

/// Effective capabilities, a bit each; none if they cannot be asked for.
std::uint64_t capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2];
  if (syscall(SYS_capget, &header, data) != 0) return 0;
  return std::uint64_t{data[1].effective} << 32 | data[0].effective;
}

constexpr std::uint64_t capability(unsigned n) { return std::uint64_t{1} << n; }

bool has_ptrace_capability() { return (capabilities() & capability(CAP_SYS_PTRACE)) != 0; }

/// Whether root here is root of the machine: the first user namespace has a number of its own
/// (PROC_USER_INIT_INO in include/linux/proc_ns.h).
bool in_initial_user_namespace() {
  struct stat info{};
  return stat("/proc/self/ns/user", &info) != 0 || info.st_ino == 0xEFFFFFFDU;
}

bool same_file(int root, const char* a, const char* b) {
  struct stat one{}, other{};
  return fstatat(root, a, &one, 0) == 0 && fstatat(root, b, &other, 0) == 0 &&
         one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

}  // namespace

bool proc_is_mounted(int root) {
  const Fd fd{openat(root, "proc", O_PATH | O_DIRECTORY | O_CLOEXEC)};
  struct statfs info{};
  return fd.valid() && fstatfs(fd.get(), &info) == 0 && info.f_type == PROC_SUPER_MAGIC;
}

void explain_missing(int root, std::string_view path, Error& error) {
  if (error.os_errno != ENOENT || !path.starts_with("proc/")) return;
  if (!proc_is_mounted(root)) {
    error.reason = "/proc is not mounted";
    error.hint = "mount -t proc proc /proc";
    return;
  }
  path.remove_prefix(5);
  if (path == "self" || path.starts_with("self/")) {
    error.reason = "/proc shows another PID namespace than this process's";
    error.hint = "mount -t proc proc /proc, in a mount namespace of its own";
    return;
  }
  if (!path.empty() && path[0] >= '0' && path[0] <= '9') return;
  const auto options = proc_options(root);
  if (options && option_value(*options, "subset=") == "pid")
    error.hint = "proc is mounted with subset=pid: it has nothing but processes";
}

const char* permission_hint(Privilege wanted) {
  const bool initial = in_initial_user_namespace();
  const auto choose = [&](std::uint64_t needed, const char* lacking, const char* confined,
                          const char* refused) {
    if ((capabilities() & needed) != needed) return lacking;
    return initial ? refused : confined;
  };
  constexpr std::uint64_t ptrace = capability(CAP_SYS_PTRACE);
  constexpr std::uint64_t admin = capability(CAP_SYS_ADMIN);
  switch (wanted) {
    case Privilege::process:
      return choose(
          ptrace,
          "another user's (or a non-dumpable) process needs CAP_SYS_PTRACE and "
          "CAP_DAC_READ_SEARCH (and CAP_SYS_ADMIN for PFNs): run as root",
          "root of a user namespace may not read processes of another one: run outside of it",
          "the process has capabilities that you have not, or an LSM (SELinux, AppArmor) refuses");
    case Privilege::pfns:
      return choose(admin, "PFNs take CAP_SYS_ADMIN in the initial user namespace: run as root",
                    "PFNs need CAP_SYS_ADMIN in the initial user namespace, and this one is "
                    "another: run outside of the container",
                    "the kernel hides PFNs although you have CAP_SYS_ADMIN");
    case Privilege::frames:
      return choose(capability(CAP_DAC_READ_SEARCH),
                    "frame facts need CAP_DAC_READ_SEARCH (the files have mode 0400): run as root",
                    "frame facts need root of the initial user namespace, and this one is another: "
                    "run outside of the container",
                    "an LSM refuses, although you have CAP_DAC_READ_SEARCH");
    case Privilege::page_tables:
      return choose(admin, "page tables need CAP_SYS_ADMIN: run as root",
                    "page tables need CAP_SYS_ADMIN in the initial user namespace, and this one is "
                    "another: run outside of the container",
                    "an LSM or lockdown refuses, although you have CAP_SYS_ADMIN");
  }
  return "run as root";
}

std::optional<std::string_view> hidden_processes(int root) {
  struct stat info{};
  if (fstatat(root, "proc", &info, 0) != 0) return {};
  const auto options = proc_options(root);
  if (!options) return not_told;
  const auto hidepid = option_value(*options, "hidepid=");
  // "noaccess" (1) lists all processes, and refuses each openly.
  const bool invisible = hidepid == "invisible" || hidepid == "2";
  const bool ptraceable = hidepid == "ptraceable" || hidepid == "4";
  if (!invisible && !ptraceable) return {};
  // Every PID namespace has a first process, mostly a privileged one: who is not shown it does not
  // see all (has_pid_permissions() in fs/proc/base.c). Who is may see it as its own.
  if (fstatat(root, "proc/1", &info, 0) == 0) {
    if (invisible && exempt_by_group(root, *options)) return {};
    if (has_ptrace_capability() && same_file(root, "proc/1/ns/user", "proc/self/ns/user"))
      return {};
  }
  return has_ptrace_capability()
             ? "proc is mounted with hidepid: processes that you may not trace are not seen"
             : "proc is mounted with hidepid: only your own processes are seen";
}

}  // namespace vmem
