// SPDX-License-Identifier: MIT
/// mapcheck on live processes: what page tables show of mappings that pagemap does not, users
/// without privilege, processes that end or remap meanwhile.
#include <fcntl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <set>
#include <sstream>

#include "live/programs.hpp"
#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"
#include "vmem/pages.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// A child that does something until this goes.
class Child {
 public:
  explicit Child(const std::function<void()>& body) {
    int ready[2];
    REQUIRE(pipe2(ready, O_CLOEXEC) == 0);
    pid_ = fork();
    REQUIRE(pid_ >= 0);
    if (pid_ == 0) {
      ready_ = ready[1];
      body();
      _exit(0);
    }
    close(ready[1]);
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    close(ready[0]);
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  std::string pid() const { return std::to_string(pid_); }

  static void say_ready() { (void)!write(ready_, "x", 1); }

 private:
  static inline int ready_ = -1;
  pid_t pid_ = -1;
};

bool sees_pfns() {
  const auto root = SysRoot::live();
  return root && root->pfn_access() == PfnAccess::full;
}

bool has_tables() {
  const auto root = SysRoot::live();
  const auto self = root ? root->self() : std::unexpected(root.error());
  return self && open_translator(*self, Backend::bpf).has_value();
}

constexpr std::size_t bytes = 64 * 4096;

/// Where the children map. Reserved here and kept, so that nothing else is next to it in a child,
/// whatever a sanitizer does with addresses.
const std::uint64_t place = [] {
  void* const at = mmap(nullptr, bytes + 2 * 4096, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::runtime_error("reserving addresses");
  return reinterpret_cast<std::uint64_t>(at) + 4096;
}();
const std::string place_text = [] {
  std::ostringstream text;
  text << std::hex << place;
  return text.str();
}();

char* map_here() {
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  void* const at = mmap(reinterpret_cast<void*>(place), bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_POPULATE, -1, 0);
  return static_cast<char*>(at);
}

Child waiting() {
  return Child([] {
    map_here();
    (void)!getpid();
    Child::say_ready();
    for (;;) pause();
  });
}

char* reserved(std::size_t pages) {
  return static_cast<char*>(
      mmap(nullptr, pages * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}

/// What a program maps whose next run has other addresses, PIDs, inodes and names of temporary
/// files: `shift` bytes further, after a process that did the same.
void restarted(std::size_t shift) {
  if (shift != 0) mmap(nullptr, shift, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const std::string pid = std::to_string(getpid());
  const auto map = [](int fd, std::size_t offset = 0) {
    (void)!ftruncate(fd, 8 * 4096);
    void* const at = mmap(nullptr, 2UL * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                          static_cast<off_t>(offset));
    if (at == MAP_FAILED) _exit(1);
    std::memset(at, 1, 2UL * 4096);
  };
  map(memfd_create(("ring-" + pid).c_str(), MFD_CLOEXEC));
  const int twice = memfd_create("twice", MFD_CLOEXEC);
  for (const std::size_t offset : {0U, 4096U, 0U}) map(twice, offset);
  for (const int key : {int{IPC_PRIVATE}, getpid()}) {
    const int segment = shmget(key, 2UL * 4096, IPC_CREAT | 0600);
    void* const at = shmat(segment, nullptr, 0);
    std::memset(at, 1, 4096);
    shmctl(segment, IPC_RMID, nullptr);
  }
  // Objects of one name, in another number and order each time.
  for (std::size_t i = 0; i < (shift == 0 ? 3U : 2U); ++i) {
    const int fd = memfd_create("region", MFD_CLOEXEC);
    (void)!ftruncate(fd, 4096);
    const int rights = (i == 1) == (shift == 0) ? PROT_READ : PROT_READ | PROT_WRITE;
    if (mmap(nullptr, 4096, rights, MAP_SHARED, fd, 0) == MAP_FAILED) _exit(1);
  }
  char* const shared = static_cast<char*>(
      mmap(nullptr, 4UL * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::memset(shared, 1, 4UL * 4096);
  mprotect(shared + 4096, 4096, PROT_READ);
  const std::string named = "/dev/shm/vmem-pid." + pid;
  map(open(named.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  unlink(named.c_str());
  // As mkstemp(3) names files, but never all letters of one case.
  const std::string drawn = "/dev/shm/vmem-random." + std::string(shift == 0 ? "aB3dEf" : "x0Y1zZ");
  map(open(drawn.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  unlink(drawn.c_str());
  prctl(PR_SET_NAME, ("work" + pid).c_str());
  Child::say_ready();
  for (;;) pause();
}

RunResult check(const std::string& expectation, const std::string& pid,
                const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments{"-e", expectation};
  arguments.insert(arguments.end(), more.begin(), more.end());
  arguments.push_back(pid);
  return run_tool("mapcheck", arguments);
}

}  // namespace

TEST_CASE("mapcheck, live: memory is RAM, all there, and not where a device is") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const Child child = waiting();
  const std::string& at = place_text;
  for (const auto& [options, status] :
       {std::pair{"=ram", 0}, std::pair{"=any,perms=rw-p,flags=rd,wr,!sh", 0},
        std::pair{"=ram,perms=r--p", 1}, std::pair{"=0xfee00000+4K", 1},
        std::pair{"=iomem:System RAM,scatter", 0}, std::pair{"=iomem:no such thing", 2}}) {
    CAPTURE(options);
    const RunResult result = check(at + options, child.pid());
    INFO(result.out << result.err);
    CHECK(result.status == status);
  }
}

TEST_CASE("mapcheck, live: cache attributes and leaves come from page tables") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  if (!has_tables()) return skip_or_fail("bpf", "no page tables through BPF");
  const Child child = waiting();
  const std::string& at = place_text;
  CHECK(check(at + "=ram,cache=wb", child.pid()).status == 0);
  CHECK(check(at + "=ram,cache=uc", child.pid()).status == 1);
  CHECK(check(at + "=ram,cache=wb", child.pid(), {"--backend", "pagemap"}).status == 2);
  // [vvar] is one of the mappings that pagemap shows nothing of. The child has read the time.
  const Child clock([] {
    timespec now{};
    clock_gettime(CLOCK_MONOTONIC, &now);
    Child::say_ready();
    for (;;) pause();
  });
  const RunResult seen = check("[vvar]=any,sparse,cache=wb", clock.pid());
  INFO(seen.out << seen.err);
  CHECK(seen.status == 0);
  CHECK(check("[vvar]=any,sparse", clock.pid(), {"--backend", "pagemap"}).status == 2);
}

TEST_CASE("mapcheck, live: without privilege nothing passes") {
  if (geteuid() != 0) return skip_or_fail("pfn", "not root");
  RunOptions nobody;
  nobody.uid = 65534;
  // Where nobody can reach it.
  const std::string copy = "/dev/shm/vmem-mapcheck-" + std::to_string(getpid());
  std::filesystem::copy_file(tool_path("mapcheck"), copy);
  for (const std::string line :
       {"[stack]=ram,sparse", "[stack]=any,sparse", "*=any,sparse", "[heap]=1000+4K,sparse"}) {
    const RunResult result = run({copy, "-e", line, "self"}, nobody);
    INFO(line << result.out << result.err);
    CHECK(result.status == 2);
    CHECK(result.out.find("pass") == std::string::npos);
    CHECK(error_form(result.err, "mapcheck") == "");
  }
  CHECK(run({copy, "--auto", "--all"}, nobody).status == 2);
  CHECK(run({copy, "--print-policy", "self"}, nobody).status == 2);
  CHECK(run({copy, "-e", "[stack]=any", "1"}, nobody).status == 2);
  std::filesystem::remove(copy);
}

TEST_CASE("mapcheck, live: the printed policy passes, and finds what changed since") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const TempDir directory;
  const auto file = directory / "policy.toml";
  const Child child = waiting();
  const RunResult printed = run_tool("mapcheck", {"--print-policy", child.pid()});
  REQUIRE(printed.status == 0);
  write_file(file, printed.out);
  const RunResult now = run_tool("mapcheck", {"--policy", file.string(), child.pid()});
  INFO(printed.out << now.out << now.err);
  CHECK(now.status == 0);
}

TEST_CASE("mapcheck, live: the next run of a program passes its policy") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const TempDir directory;
  const auto file = directory / "policy.toml";
  const auto first = std::make_unique<Child>([] { restarted(0); });
  const RunResult printed = run_tool("mapcheck", {"--print-policy", first->pid()});
  INFO(printed.out << printed.err);
  CHECK(printed.status == 0);
  write_file(file, printed.out);
  CHECK(printed.out.find("select = \"0x") == std::string::npos);
  // Each is described, and not by this run's numbers.
  for (const char* const select :
       {"/SYSV???????? (deleted)", "/memfd:ring-* (deleted)", "/memfd:twice (deleted)",
        "/memfd:region (deleted)", "/dev/zero (deleted)", "/dev/shm/vmem-pid.*",
        "/dev/shm/vmem-random.??????"}) {
    CAPTURE(select);
    CHECK(printed.out.find(std::string("select = \"") + select) != std::string::npos);
  }
  // While it lives, and later.
  CHECK(run_tool("mapcheck", {"--policy", file.string(), first->pid()}).status == 0);
  const Child second([] { restarted(0x7000000); });
  const RunResult again = run_tool("mapcheck", {"--policy", file.string(), second.pid()});
  INFO(again.out << again.err);
  CHECK(again.status == 0);

  // Where they are missing it does not pass.
  const Child without([] {
    prctl(PR_SET_NAME, "work1");
    Child::say_ready();
    for (;;) pause();
  });
  CHECK(run_tool("mapcheck", {"--policy", file.string(), without.pid()}).status == 2);
}

TEST_CASE("mapcheck, live: a program that the loader made read-only in part, started twice") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const TempDir directory;
  const auto file = directory / "policy.toml";
  // With RELRO, gcc's default, r--p of one offset is there twice.
  const std::string hello = (directory / "hello").string();
  write_file(directory / "hello.c",
             "#include <stdio.h>\n"
             "int main(void) { puts(\"ready\"); fflush(stdout); return getchar() == EOF; }\n");
  if (run({"sh", "-c", "cc -o '" + hello + "' '" + hello + ".c'"}).status != 0)
    return skip_or_fail("cc", "no C compiler");
  {
    Program first({hello});
    REQUIRE(first.wait_for("ready"));
    const RunResult printed = run_tool("mapcheck", {"--print-policy", std::to_string(first.pid())});
    INFO(printed.out << printed.err);
    CHECK(printed.status == 0);
    CHECK(printed.out.find("select = \"0x") == std::string::npos);
    write_file(file, printed.out);
  }
  Program second({hello});
  REQUIRE(second.wait_for("ready"));
  const RunResult again =
      run_tool("mapcheck", {"-J", "--policy", file.string(), std::to_string(second.pid())});
  INFO(again.err);
  CHECK(again.status == 0);
  // No mapping with a name is forgotten but what is every process's.
  std::set<std::string> checked;
  const auto document = nlohmann::json::parse(again.out);
  for (const auto& check : document["checks"]) checked.insert(check["vma"]["start"]);
  std::ifstream maps("/proc/" + std::to_string(second.pid()) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.size() < 74 || line.find("[vvar") != std::string::npos ||
        line.find("[vsyscall]") != std::string::npos) {
      continue;
    }
    CAPTURE(line);
    CHECK(checked.contains("0x" + line.substr(0, line.find('-'))));
  }
}

TEST_CASE("mapcheck, live: of mappings that are alike in name and offset, the policy says which") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const TempDir directory;
  const auto file = directory / "policy.toml";
  const auto map_twice = [&](int second) {
    const int fd = open((directory / "data").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    (void)!ftruncate(fd, 4096);
    char* const at = reserved(4);
    mmap(at, 4096, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0);
    mmap(at + 2 * 4096, 4096, second, MAP_SHARED | MAP_FIXED, fd, 0);
    Child::say_ready();
    for (;;) pause();
  };
  {
    const Child child([&] { map_twice(PROT_READ | PROT_WRITE); });
    const RunResult printed = run_tool("mapcheck", {"--print-policy", child.pid()});
    INFO(printed.out << printed.err);
    REQUIRE(printed.status == 0);
    CHECK(printed.out.find("nth = 2\n") != std::string::npos);
    write_file(file, printed.out);
    const std::string path = (directory / "data").string();
    CHECK(check(path + "=any,sparse,perms=r--s,nth=1", child.pid()).status == 0);
    CHECK(check(path + "=any,sparse,perms=rw-s,nth=2", child.pid()).status == 0);
    CHECK(check(path + "=any,sparse,perms=rw-s,nth=1", child.pid()).status == 1);
    const RunResult third = check(path + "=any,sparse,perms=rw-s,nth=3", child.pid());
    CHECK(third.status == 2);
    CHECK(third.err.find("the 3rd of ") != std::string::npos);
  }
  const Child same([&] { map_twice(PROT_READ | PROT_WRITE); });
  CHECK(run_tool("mapcheck", {"--policy", file.string(), same.pid()}).status == 0);
  const Child other([&] { map_twice(PROT_READ); });
  CHECK(run_tool("mapcheck", {"--policy", file.string(), other.pid()}).status == 1);
}

TEST_CASE("mapcheck, live: a mapping that cannot be seen is missed in the policy, and said") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const Child child([] {
    perf_event_attr attributes{};
    attributes.type = PERF_TYPE_SOFTWARE;
    attributes.size = sizeof attributes;
    attributes.config = PERF_COUNT_SW_DUMMY;
    const long fd = syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
    char* const at = static_cast<char*>(
        mmap(nullptr, 9UL * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, static_cast<int>(fd), 0));
    if (at == MAP_FAILED) _exit(1);
    static_cast<volatile char*>(at)[0] = 0;
    Child::say_ready();
    for (;;) pause();
  });
  const RunResult blind =
      run_tool("mapcheck", {"--backend", "pagemap", "--print-policy", child.pid()});
  INFO(blind.out << blind.err);
  // Before 6.x the ring was no VM_PFNMAP, and pagemap shows it.
  if (blind.out.find("select = \"anon_inode:") != std::string::npos)
    return skip_or_fail("kernel", "pagemap shows the ring here");
  CHECK(blind.status == 2);
  CHECK(blind.err.starts_with(
      "mapcheck: 1 device mapping is not described: anon_inode:[perf_event] at 0x"));
  CHECK(error_form(blind.err, "mapcheck") == "");
  if (!has_tables()) return skip_or_fail("bpf", "no page tables through BPF");
  const RunResult seen = run_tool("mapcheck", {"--print-policy", child.pid()});
  INFO(seen.out << seen.err);
  CHECK(seen.status == 0);
  // Its frames are the kernel's to choose.
  CHECK(seen.out.find("select = \"anon_inode:\\\\[perf_event]\"\nwindow = \"ram\"") !=
        std::string::npos);
}

TEST_CASE("mapcheck, live: a process that remaps all the time never passes for what it is not") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  // Its mapping is there, then not, then elsewhere and readable alone.
  const Child child([] {
    char* at = map_here();
    Child::say_ready();
    for (;;) {
      munmap(at, bytes);
      at = map_here();
      mprotect(at, bytes / 2, PROT_READ);
      mprotect(at, bytes / 2, PROT_READ | PROT_WRITE);
    }
  });
  std::set<int> statuses;
  for (int i = 0; i < 60; ++i) {
    const RunResult result = check(place_text + "=1000+4K,scatter", child.pid());
    CHECK(result.signal == 0);
    CHECK(result.status != 0);
    statuses.insert(result.status);
  }
  CHECK_FALSE(statuses.contains(0));
}

TEST_CASE("mapcheck, live: a process that ends meanwhile") {
  if (!sees_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  for (int i = 0; i < 20; ++i) {
    const pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
      map_here();
      usleep(static_cast<useconds_t>(1000 * i));
      _exit(0);
    }
    // What the mapping never is: so a status of 0 could come from nothing that was seen.
    const RunResult result = check(place_text + "=1000+4K,scatter", std::to_string(pid));
    waitpid(pid, nullptr, 0);
    INFO(result.out << result.err);
    CHECK(result.signal == 0);
    CHECK((result.status == 1 || result.status == 2));
  }
  const RunResult gone = check("[heap]=any", "999999999");
  CHECK(gone.status == 2);
  CHECK(error_form(gone.err, "mapcheck") == "");
}
