// SPDX-License-Identifier: MIT
/// mapcheck on live processes: what page tables show of mappings that pagemap does not, users
/// without privilege, processes that end or remap meanwhile.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <set>
#include <sstream>

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
