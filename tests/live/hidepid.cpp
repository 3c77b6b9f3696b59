// SPDX-License-Identifier: MIT
// What a reader is told where its /proc does not show all: hidepid, no /proc at all. Each reader is
// a child in a mount namespace of its own, so root has to start these tests.
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include <functional>

#include "live/children.hpp"
#include "live/oracle.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr uid_t nobody = 65534;

bool become(uid_t uid, gid_t gid, bool ptrace) {
  if (setgroups(0, nullptr) != 0 || prctl(PR_SET_KEEPCAPS, 1) != 0 ||
      setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0)
    return false;
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (ptrace) data[0].permitted = data[0].effective = 1U << CAP_SYS_PTRACE;
  return syscall(SYS_capset, &header, data) == 0 && prctl(PR_SET_DUMPABLE, 1) == 0;
}

/// What `body` returns in a child with a mount namespace of its own, where `options` is what proc
/// is mounted with; "-": it is mounted nowhere.
std::string with_proc(const std::string& options, const std::function<std::string()>& body) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
  const pid_t pid = fork();
  if (pid == 0) {
    const auto prepare = [&] {
      if (unshare(CLONE_NEWNS) != 0) return false;
      if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
      if (options == "-") return mount("none", "/proc", "tmpfs", 0, nullptr) == 0;
      return mount("proc", "/proc", "proc", 0, options.c_str()) == 0;
    };
    const std::string line = prepare() ? body() : "cannot mount";
    (void)!write(ends[1], line.data(), line.size());
    _exit(0);
  }
  close(ends[1]);
  std::string line;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = read(ends[0], buffer.data(), buffer.size())) > 0;)
    line.append(buffer.data(), static_cast<std::size_t>(n));
  close(ends[0]);
  (void)waitpid(pid, nullptr, 0);
  return line;
}

/// "hidden" or "all", as SysRoot says, and whether PID 1 is shown.
std::string as_reader(uid_t uid, gid_t gid, bool ptrace) {
  if (!become(uid, gid, ptrace)) return "cannot become another user";
  const auto root = SysRoot::live();
  if (!root) return to_string(root.error());
  const auto pids = root->processes();
  if (!pids) return to_string(pids.error());
  const bool first = std::ranges::find(*pids, 1) != pids->end();
  return std::string(root->hidden_processes() ? "hidden" : "all") + (first ? " with 1" : "");
}

}  // namespace

TEST_CASE("who is not shown all processes is told so") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can mount proc");
  const auto plain = [] { return as_reader(nobody, nobody, false); };
  const auto ptracer = [] { return as_reader(nobody, nobody, true); };
  const auto member = [] { return as_reader(nobody, 4242, false); };
  const auto of_root_group = [] { return as_reader(nobody, 0, false); };
  CHECK(with_proc("", plain) == "all with 1");
  CHECK(with_proc("hidepid=0", plain) == "all with 1");
  CHECK(with_proc("hidepid=1", plain) == "all with 1");
  CHECK(with_proc("hidepid=2", plain) == "hidden");
  CHECK(with_proc("hidepid=4", plain) == "hidden");
  CHECK(with_proc("hidepid=2,gid=4242", plain) == "hidden");
  CHECK(with_proc("hidepid=2,gid=4242", member) == "all with 1");
  // Without gid= it is root's group, and ptraceable knows no exempt group.
  CHECK(with_proc("hidepid=2", of_root_group) == "all with 1");
  CHECK(with_proc("hidepid=2,gid=4242", of_root_group) == "hidden");
  CHECK(with_proc("hidepid=4", of_root_group) == "hidden");
  // A first process that refuses even CAP_SYS_PTRACE (in a sandbox) is hidden from it, too.
  for (const char* const options : {"hidepid=2", "hidepid=4"}) {
    const std::string line = with_proc(options, ptracer);
    CAPTURE(options, line);
    CHECK((line == "all with 1" || line == "hidden"));
  }
}

TEST_CASE("a hidepid mount below another one does not count") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can mount proc");
  CHECK(with_proc("hidepid=2", [] {
          if (mount("proc", "/proc", "proc", 0, "hidepid=0") != 0) return std::string("no mount");
          return as_reader(nobody, nobody, false);
        }) == "all with 1");
}

namespace {

std::string error_of(const Error& error) {
  return to_string(error) + "; " + (error.hint != nullptr ? error.hint : "no hint");
}

/// The error that a reader gets for process `pid`.
std::string asked_for(pid_t pid, uid_t uid) {
  if (uid != 0 && !become(uid, uid, false)) return "cannot become another user";
  const auto root = SysRoot::live();
  if (!root) return error_of(root.error());
  const auto process = root->process(pid);
  return process ? "opened" : error_of(process.error());
}

}  // namespace

TEST_CASE("a process that hidepid hides, or keeps shut, is not simply said to be none") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can mount proc");
  const pid_t ours = getpid();
  for (const char* const options : {"hidepid=2", "hidepid=4"}) {
    const std::string line = with_proc(options, [&] { return asked_for(ours, nobody); });
    CAPTURE(options, line);
    CHECK(line.find("no such process, or hidden by hidepid") != std::string::npos);
    CHECK(line.find("only your own processes are seen") != std::string::npos);
  }
  const std::string shut = with_proc("hidepid=1", [&] { return asked_for(ours, nobody); });
  CAPTURE(shut);
  CHECK(shut.find("Operation not permitted") != std::string::npos);
  CHECK(shut.find("mounted with hidepid") != std::string::npos);
  const std::string none = with_proc("", [] { return asked_for(4194303, nobody); });
  CHECK(none.find("hidepid") == std::string::npos);
}

TEST_CASE("without a proc file system that is the reason, not the process") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can mount proc");
  const pid_t ours = getpid();
  const std::string one = with_proc("-", [&] { return asked_for(ours, 0); });
  CHECK(one.find("/proc is not mounted; mount -t proc") != std::string::npos);
  const auto in = [](const std::function<std::string(const SysRoot&)>& body) {
    return with_proc("-", [&] { return body(*SysRoot::live()); });
  };
  CHECK(in([](const SysRoot& root) {
          return error_of(root.processes().error());
        }).find("/proc is not mounted") != std::string::npos);
  CHECK(in([](const SysRoot& root) {
          return error_of(root.self().error());
        }).find("/proc is not mounted") != std::string::npos);
  CHECK(in([](const SysRoot& root) {
          return error_of(root.open_file("proc/kpageflags").error());
        }).find("/proc is not mounted") != std::string::npos);
  const std::string subset = with_proc(
      "subset=pid", [] { return error_of(SysRoot::live()->open_file("proc/kpageflags").error()); });
  CAPTURE(subset);
  CHECK((subset.find("subset=pid") != std::string::npos || subset == "cannot mount"));
}

TEST_CASE("who has the capability is not told to get it") {
  if (geteuid() != 0) return skip_or_fail("pfn", "only root can become another user");
  const auto hint = [](bool ptrace) {
    return with_proc("", [=] {
      if (!become(nobody, nobody, ptrace)) return std::string("cannot become another user");
      return std::string(permission_hint(Privilege::process));
    });
  };
  CHECK(hint(false).find("run as root") != std::string::npos);
  CHECK(hint(true).find("run as root") == std::string::npos);
}
