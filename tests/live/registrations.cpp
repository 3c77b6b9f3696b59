// SPDX-License-Identifier: MIT
// Ranges of live processes: fork, limits, and what cannot be registered. What must be found is what
// the test did to the pages.
#include <sys/resource.h>
#include <sys/syscall.h>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

constexpr std::size_t page = 4096;

std::string bare_hex(std::uint64_t value) {
  char text[32];
  (void)std::snprintf(text, sizeof text, "%llx", static_cast<unsigned long long>(value));
  return text;
}

struct Shared {
  std::uint64_t address;
  int answer;
};

nlohmann::ordered_json ranges(pid_t pid, std::uint64_t va, std::uint64_t bytes, int& status) {
  RunOptions options;
  options.input = bare_hex(va) + " " + std::to_string(bytes) + " buffer\n";
  const RunResult result =
      run_tool("regaudit", {"ranges", "-J", std::to_string(pid), "-"}, options);
  CAPTURE(result.err);
  status = result.status;
  return nlohmann::ordered_json::parse(result.out);
}

const nlohmann::ordered_json* finding(const nlohmann::ordered_json& document, const char* kind) {
  for (const auto& f : document["registrations"][0]["findings"]) {
    if (f["kind"] == kind) return &f;
  }
  return nullptr;
}

Shared* shared() {
  return static_cast<Shared*>(
      mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

/// A process that fills 16 pages, forks, and writes to the first four again.
Child forker(Shared* told, bool dont_fork) {
  return fork_child([&](const std::function<void()>& ready) {
    char* const at = static_cast<char*>(
        mmap(nullptr, 16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(at, 16 * page, MADV_NOHUGEPAGE);
    std::memset(at, 1, 16 * page);
    if (dont_fork) madvise(at, 16 * page, MADV_DONTFORK);
    told->address = reinterpret_cast<std::uint64_t>(at);
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // ends with its parent
      wait_for_ever();
    }
    std::memset(at, 2, 4 * page);
    ready();
    wait_for_ever();
  });
}

}  // namespace

TEST_CASE(
    "ranges: after a fork, the pages that will move are named; with MADV_DONTFORK there are none") {
  if (!shown_pfns()) return skip_or_fail("pfn", "needs CAP_SYS_ADMIN");
  Shared* const told = shared();
  int status = 0;
  {
    const Child child = forker(told, false);
    const auto document = ranges(child.pid(), told->address, 16 * page, status);
    CHECK(status == 1);
    const auto* const cow = finding(document, "shared-cow");
    REQUIRE(cow);
    CHECK((*cow)["va"] == "0x" + bare_hex(told->address + 4 * page));
    CHECK((*cow)["bytes"] == 12 * page);
    REQUIRE(finding(document, "fork-hazard"));
  }
  const Child child = forker(told, true);
  const auto document = ranges(child.pid(), told->address, 16 * page, status);
  CHECK(status == 0);
  CHECK_FALSE(finding(document, "shared-cow"));
  CHECK_FALSE(finding(document, "fork-hazard"));
}

TEST_CASE("ranges: of a huge page that a child maps in part, the pages that will move are named") {
  if (!shown_pfns()) return skip_or_fail("pfn", "needs CAP_SYS_ADMIN");
  Shared* const told = shared();
  const Child child = partly_shared_huge_pages(&told->address);
  constexpr std::uint64_t huge = 2 << 20;
  int status = 0;
  const auto moved = [&](std::uint64_t va, std::uint64_t bytes = 2 << 20) {
    const auto document = ranges(child.pid(), va, bytes, status);
    const auto* const cow = finding(document, "shared-cow");
    return cow == nullptr
               ? std::pair{std::string{}, std::uint64_t{0}}
               : std::pair{cow->at("va").get<std::string>(), cow->at("bytes").get<std::uint64_t>()};
  };
  CHECK(moved(told->address) ==
        std::pair{"0x" + bare_hex(told->address + 2 * page), huge - 2 * page});
  CHECK(status == 1);
  CHECK(moved(told->address + 2 * page, huge - 2 * page) ==
        std::pair{"0x" + bare_hex(told->address + 2 * page), huge - 2 * page});
  CHECK(moved(told->address, 2 * page).second == 0);
  CHECK(moved(told->address + huge) ==
        std::pair{"0x" + bare_hex(told->address + huge), std::uint64_t{page}});
  CHECK(status == 1);
}

TEST_CASE("plan: a limit on locked memory stops what mlock() is stopped from, too") {
  if (!shown_pfns() || geteuid() != 0) return skip_or_fail("pfn", "needs root");
  Shared* const told = shared();
  const Child child = fork_child([&](const std::function<void()>& ready) {
    const rlimit limit{16 * page, 16 * page};
    setrlimit(RLIMIT_MEMLOCK, &limit);
    char* const at = static_cast<char*>(
        mmap(nullptr, 32 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(at, 1, 32 * page);
    told->address = reinterpret_cast<std::uint64_t>(at);
    if (setresuid(65534, 65534, 65534) != 0) _exit(1);
    // The kernel's own answer to the same question; AddressSanitizer's mlock() asks nobody.
    const auto locks = [&](std::size_t pages) { return syscall(SYS_mlock, at, pages * page) == 0; };
    told->answer = (locks(16) ? 1 : 0) + (locks(17) ? 2 : 0);
    munlock(at, 32 * page);
    ready();
    wait_for_ever();
  });
  CHECK(told->answer == 1);
  const std::string start = bare_hex(told->address);
  const auto plan = [&](std::size_t pages) {
    return run_tool("regaudit", {"plan", std::to_string(child.pid()),
                                 start + "+" + std::to_string(pages * page)});
  };
  const RunResult fits = plan(16), exceeds = plan(17);
  CHECK(fits.status == 0);
  CHECK(fits.out.find("would work") != std::string::npos);
  CHECK(exceeds.status == 1);
  CHECK(exceeds.out.find("would fail: over-memlock") != std::string::npos);
}

TEST_CASE("plan: [vvar] cannot be registered, and the zero page is replaced") {
  if (!shown_pfns()) return skip_or_fail("pfn", "needs CAP_SYS_ADMIN");
  Shared* const told = shared();
  const Child child = fork_child([&](const std::function<void()>& ready) {
    char* const at = static_cast<char*>(
        mmap(nullptr, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(at, 4 * page, MADV_NOHUGEPAGE);
    told->answer = *static_cast<volatile char*>(at);  // read: the zero page
    told->address = reinterpret_cast<std::uint64_t>(at);
    ready();
    wait_for_ever();
  });
  const std::string pid = std::to_string(child.pid());
  const RunResult vvar = run_tool("regaudit", {"plan", "--access", "ro", pid, "[vvar]"});
  if (first_line("/proc/self/maps").empty() || vvar.err.find("no mapping") == std::string::npos) {
    CHECK(vvar.status == 1);
    CHECK(vvar.out.find("not-registrable") != std::string::npos);
  }
  int status = 0;
  const auto document = ranges(child.pid(), told->address, page, status);
  CHECK(status == 1);
  CHECK(finding(document, "zero-page"));
  CHECK(run_tool("regaudit", {"plan", pid, bare_hex(told->address) + "+1000"}).status == 0);
}
