// SPDX-License-Identifier: MIT
// What a PID can name: a thread, this process, a zombie, a kernel thread, nobody, and a process
// whose number was given to another one.
#include <linux/sched.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <sstream>

#include "live/children.hpp"
#include "live/oracle.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// A child with a number of our choice: needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
pid_t fork_as(pid_t wanted) {
  clone_args arguments{};
  arguments.exit_signal = SIGCHLD;
  arguments.set_tid = reinterpret_cast<std::uint64_t>(&wanted);
  arguments.set_tid_size = 1;
  const long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    wait_for_ever();
  }
  return static_cast<pid_t>(pid);
}

Child sleeper() {
  return fork_child([](const std::function<void()>& ready) {
    ready();
    wait_for_ever();
  });
}

Errc process_error(pid_t pid) {
  const auto root = SysRoot::live();
  REQUIRE(root);
  const auto process = root->process(pid);
  REQUIRE_FALSE(process);
  INFO(to_string(process.error()));
  CHECK(to_string(process.error()).find('\n') == std::string::npos);
  return process.error().code;
}

}  // namespace

TEST_CASE("PFN access is what a page of our own shows") {
  const auto root = SysRoot::live();
  REQUIRE(root);
  CHECK_FALSE(root->recorded());
  CHECK(root->page_size().bytes() == static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)));
  CHECK((root->pfn_access() == PfnAccess::full) == shown_pfns());
  if (required("pfn")) CHECK(root->pfn_access() == PfnAccess::full);
}

TEST_CASE("this process, by self and by its own PID") {
  const auto root = SysRoot::live();
  REQUIRE(root);
  const auto self = root->self();
  REQUIRE(self);
  CHECK(self->pid() == getpid());
  const auto by_pid = root->process(getpid());
  REQUIRE(by_pid);
  CHECK(by_pid->start_time() == self->start_time());
  CHECK(by_pid->comm() == first_line("/proc/self/comm"));
  static char page[2 * base_page] = {1};
  page[base_page] = 2;
  const auto address = VirtAddr{reinterpret_cast<std::uint64_t>(&page[base_page])};
  auto translator = open_translator(*self, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(*self);
  const auto t = translate(*self, **translator, inspector, address);
  REQUIRE(t);
  REQUIRE(t->vma);
  CHECK(t->vma->range.contains(address));
  CHECK(t->extent.state == (shown_pfns() ? PageState::resident : PageState::hidden));
}

TEST_CASE("a thread's id names its process") {
  std::mutex mutex;
  std::condition_variable condition;
  pid_t tid = 0;
  bool end = false;
  std::thread thread([&] {
    std::unique_lock lock(mutex);
    tid = static_cast<pid_t>(syscall(SYS_gettid));
    condition.notify_all();
    condition.wait(lock, [&] { return end; });
  });
  {
    std::unique_lock lock(mutex);
    condition.wait(lock, [&] { return tid != 0; });
  }
  REQUIRE(tid != getpid());
  const Process process = process_of(tid);
  CHECK(process.pid() == getpid());
  CHECK(process.start_time() == process_of(getpid()).start_time());
  CHECK(process.check_alive());
  {
    const std::lock_guard lock(mutex);
    end = true;
  }
  condition.notify_all();
  thread.join();
  CHECK(process.check_alive());
}

TEST_CASE("a zombie and a kernel thread have no user memory, and a free number is nobody") {
  const pid_t zombie = fork();
  if (zombie == 0) _exit(0);
  siginfo_t info{};
  REQUIRE(waitid(P_PID, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT) == 0);
  CHECK(process_error(zombie) == Errc::no_user_memory);
  REQUIRE(waitpid(zombie, nullptr, 0) == zombie);
  CHECK(process_error(zombie) == Errc::no_process);
  // kthreadd, except where this runs in a PID namespace of its own.
  if (first_line("/proc/2/comm") == "kthreadd") CHECK(process_error(2) == Errc::no_user_memory);
  CHECK(process_error(0x7ffffff0) == Errc::no_process);
  CHECK(process_error(0) != Errc::io);
  CHECK(process_error(-1) != Errc::io);
}

TEST_CASE("a process whose first thread has ended lives on in the others") {
  static char page[2 * base_page];
  page[base_page] = 1;
  const Child child = fork_child([](const std::function<void()>& ready) {
    std::thread other([&] {
      while (task_state("/proc/self") != 'Z') std::this_thread::yield();
      ready();
      wait_for_ever();
    });
    syscall(SYS_exit, 0);  // of this thread alone
  });
  CHECK(process_of(child.pid()).check_alive());
  std::ostringstream address;
  address << std::hex << reinterpret_cast<std::uint64_t>(&page[base_page]);
  const RunResult one = run({VMEM_TOOLS_PATH "/vtop", std::to_string(child.pid()), address.str()});
  INFO(one.out << one.err);
  CHECK(one.status == (shown_pfns() ? 0 : 2));
  CHECK(one.out.find(shown_pfns() ? "resident" : "hidden") != std::string::npos);
}

TEST_CASE("a watch of a mapping by its name ends with its process") {
  // A name that is there, and one that was never.
  for (const char* const name : {"[stack]", "nosuchfile+0"}) {
    Child child = sleeper();
    const pid_t pid = child.pid();
    // It stays as a zombie.
    std::thread killer([pid] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      kill(pid, SIGKILL);
    });
    const RunResult watch = run(
        {VMEM_TOOLS_PATH "/vtop", "--watch", "0.05", "--count", "400", std::to_string(pid), name});
    killer.join();
    INFO(name << ": " << watch.out << watch.err);
    CHECK(watch.status == 2);
    CHECK(watch.out.find("unmapped") == std::string::npos);
    std::size_t errors = 0;
    for (std::size_t at = 0; (at = watch.err.find("vtop: ", at)) != std::string::npos; ++at)
      ++errors;
    CHECK((errors == 1 || (errors == 2 && !shown_pfns())));
  }
}

TEST_CASE("self is this process, also where /proc is that of another PID namespace") {
  enum { right, wrong, no_namespace };
  const pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWPID) != 0) _exit(no_namespace);
    const pid_t inside = fork();
    if (inside == 0) {
      // Number 1 here; in this /proc that is somebody else.
      const auto root = SysRoot::live();
      const auto self = root->self();
      std::error_code none;
      const auto name = std::filesystem::read_symlink("/proc/self", none).string();
      _exit(self && std::to_string(self->pid()) == name && name != "1" ? right : wrong);
    }
    int status = 0;
    if (inside < 0 || waitpid(inside, &status, 0) != inside) _exit(no_namespace);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : wrong);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == no_namespace) return skip_or_fail("pfn", "no new PID namespace");
  CHECK(WEXITSTATUS(status) == right);
}

TEST_CASE("where no more files can be opened, that is what is said, and not that nobody is there") {
  const Process process = process_of(getpid());
  rlimit before{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
  rlimit none = before;
  none.rlim_cur = 0;
  REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
  const auto alive = process.check_alive();
  REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
  REQUIRE_FALSE(alive);
  CHECK(alive.error().os_errno == EMFILE);
  CHECK(alive.error().code == Errc::io);
}

TEST_CASE("a process that has become a zombie after it was opened") {
  Child child = sleeper();
  const Process process = process_of(child.pid());
  kill(child.pid(), SIGKILL);
  siginfo_t info{};
  REQUIRE(waitid(P_PID, static_cast<id_t>(child.pid()), &info, WEXITED | WNOWAIT) == 0);
  CHECK_FALSE(process.check_alive());
  const auto translator = open_translator(process, Backend::pagemap);
  if (translator) {
    VmaInspector inspector(process);
    const auto t = translate(process, **translator, inspector, VirtAddr{0x1000});
    CHECK_FALSE(t);
  } else {
    INFO(to_string(translator.error()));
    CHECK((translator.error().code == Errc::no_user_memory ||
           translator.error().code == Errc::no_process));
  }
}

TEST_CASE("a number that was given to another process is an error, not an answer about it") {
  Child first = sleeper();
  const pid_t pid = first.pid();
  const Process process = process_of(pid);
  auto translator = open_translator(process, Backend::pagemap);
  REQUIRE(translator);
  VmaInspector inspector(process);
  const auto before = read_vmas(process);
  REQUIRE(before);
  const VirtAddr address = before->front().range.start;
  REQUIRE(translate(process, **translator, inspector, address));
  first.end();

  const pid_t again = fork_as(pid);
  if (again < 0) {
    return skip_or_fail("pfn", std::string("clone3 with a chosen PID: ") + std::strerror(errno));
  }
  const Child second(again);
  REQUIRE(again == pid);
  const auto alive = process.check_alive();
  REQUIRE_FALSE(alive);
  CHECK((alive.error().code == Errc::no_process || alive.error().code == Errc::process_changed));
  CHECK_FALSE(translate(process, **translator, inspector, address));
  CHECK_FALSE(open_translator(process, Backend::pagemap));
  CHECK_FALSE(find_vma(process, address));
  const auto vmas = read_vmas(process);
  CHECK((!vmas || vmas->empty()));
  // The new one, asked for by the same number, is answered.
  CHECK(process_of(pid).check_alive());
}

TEST_CASE("processes are found by their exact comm") {
  const Child child = fork_child([](const std::function<void()>& ready) {
    prctl(PR_SET_NAME, "vmem (x) y");
    ready();
    wait_for_ever();
  });
  const auto root = SysRoot::live();
  REQUIRE(root);
  const auto found = root->find_by_comm("vmem (x) y");
  REQUIRE(found);
  CHECK(*found == std::vector<pid_t>{child.pid()});
  CHECK(process_of(child.pid()).comm() == "vmem (x) y");
  const auto none = root->find_by_comm("vmem (x)");
  REQUIRE(none);
  CHECK(none->empty());
}

TEST_CASE("vtop on itself") {
  const RunResult text = run({VMEM_TOOLS_PATH "/vtop", "self"});
  INFO(text.out << text.err);
  CHECK(text.status == (shown_pfns() ? 0 : 2));
  CHECK(text.out.find("vtop") != std::string::npos);
  CHECK(text.out.find("[stack]") != std::string::npos);
  const RunResult stack = run({VMEM_TOOLS_PATH "/vtop", "self", "[stack]"});
  INFO(stack.out << stack.err);
  CHECK(stack.status == (shown_pfns() ? 0 : 2));
}

TEST_CASE("vtop on a zombie, a kernel thread and nobody: status 2 and one line") {
  const pid_t zombie = fork();
  if (zombie == 0) _exit(0);
  siginfo_t info{};
  REQUIRE(waitid(P_PID, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT) == 0);
  for (const std::string& target :
       {std::to_string(zombie), std::string("2"), std::string("2147483600"), std::string("0")}) {
    for (const bool address : {false, true}) {
      std::vector<std::string> arguments{VMEM_TOOLS_PATH "/vtop", target};
      if (address) arguments.emplace_back("1000");
      const RunResult r = run(arguments);
      INFO(target << ": " << r.out << r.err);
      CHECK(r.status == 2);
      CHECK(r.out.empty());
      CHECK(r.err.starts_with("vtop: "));
    }
  }
  (void)waitpid(zombie, nullptr, 0);
}
