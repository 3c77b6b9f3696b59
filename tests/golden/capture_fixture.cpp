// SPDX-License-Identifier: MIT
/// scripts/capture-fixture on a live process: what it recorded is what the live system
/// shows of the same, stopped process.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <regex>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "support/require.hpp"
#include "support/subprocess.hpp"
#include "support/vtop.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

/// A child with memory of a few sorts, stopped; ended with the object.
class StoppedChild {
 public:
  StoppedChild() : pid_(fork()) {
    if (pid_ == 0) {
      constexpr std::size_t size = 4 << 20;
      auto* const memory = static_cast<char*>(
          mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      auto* const shared = static_cast<char*>(
          mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
      for (std::size_t i = 0; i < size; i += 3 * 4096) memory[i] = shared[i] = 'x';
      // Large enough to be scanned before it is read.
      constexpr std::size_t sparse_size = std::size_t{3} << 30;
      auto* const sparse =
          static_cast<char*>(mmap(nullptr, sparse_size, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      for (std::size_t i = 0; i < sparse_size; i += 100 << 20) sparse[i] = 'x';
      std::strcpy(memory + 64, "a secret of the process's memory");
      raise(SIGSTOP);
      _exit(0);
    }
    int status = 0;
    waitpid(pid_, &status, WUNTRACED);
  }
  ~StoppedChild() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  StoppedChild(const StoppedChild&) = delete;
  StoppedChild& operator=(const StoppedChild&) = delete;
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_;
};

std::string script() {
  return (fixtures_folder() / "../../scripts/capture-fixture").lexically_normal().string();
}

char state_of(pid_t pid) {
  const std::string stat = read_file("/proc/" + std::to_string(pid) + "/stat");
  return stat.at(stat.rfind(')') + 2);
}

}  // namespace

TEST_CASE("a captured process reads as the live one") {
  const auto live = SysRoot::live();
  REQUIRE(live);
  if (live->pfn_access() != PfnAccess::full)
    return skip_or_fail("pfn", "capturing PFNs needs CAP_SYS_ADMIN");
  if (access("/usr/bin/python3", X_OK) != 0) return skip_or_fail("real", "needs python3");
  const StoppedChild child;
  const TempDir directory;
  const RunResult captured =
      run({script(), std::to_string(child.pid()), directory.string() + "/it"});
  CAPTURE(captured.err);
  REQUIRE(captured.status == 0);
  CHECK(state_of(child.pid()) == 'T');  // it was stopped before, so it still is

  const Recorded recorded(load_fixture(directory / "it"));
  CHECK(recorded.root().kernel_release() == live->kernel_release());
  CHECK(recorded.root().page_size() == live->page_size());
  CHECK(recorded.root().pfn_access() == PfnAccess::full);
  const Process was = recorded.process(child.pid());
  const auto is = live->process(child.pid());
  REQUIRE(is);
  CHECK(was.comm() == is->comm());
  CHECK(was.start_time() == is->start_time());
  const auto recorded_vmas = read_vmas(was), live_vmas = read_vmas(*is);
  REQUIRE(recorded_vmas);
  REQUIRE(live_vmas);
  CHECK(*recorded_vmas == *live_vmas);
  // Leaf sizes apart, which the live system tells better, and bit 56, which other processes
  // that share the pages change.
  const auto pages = [](const std::vector<VmaExtent>& extents, std::uint64_t page) {
    std::vector<std::string> all;
    for (const VmaExtent& e : extents) {
      for (std::uint64_t at = 0; at < e.extent.bytes && e.extent.state != PageState::absent;
           at += page) {
        Extent one = e.extent;
        one.va = one.va + at;
        one.bytes = page;
        one.leaf_shift = 0;
        one.bits = static_cast<std::uint8_t>(one.bits & ~page_bit::exclusive);
        if (one.state == PageState::resident) one.pfn = one.pfn + at / page;
        all.push_back(describe(one, PageSize{page}));
      }
    }
    return all;
  };
  const std::uint64_t page = live->page_size().bytes();
  const auto recorded_pages = pages(translate_whole(was, {1, true}), page);
  const auto live_pages = pages(translate_whole(*is, {1, true}), page);
  CHECK(recorded_pages.size() == live_pages.size());
  CHECK(recorded_pages.size() > std::size_t{2} * 1024 / 3);
  const auto [one, other] = std::ranges::mismatch(recorded_pages, live_pages);
  if (one != recorded_pages.end() && other != live_pages.end()) {
    FAIL_CHECK("recorded " << *one << ", live " << *other);
  }

  for (const auto& file : std::filesystem::recursive_directory_iterator(directory.path())) {
    if (file.is_regular_file()) CHECK(read_file(file.path()).find("a secret") == std::string::npos);
  }
  // vtop answers from it.
  write_tree(load_fixture(directory / "it"), directory / "tree");
  const RunResult shown = run_vtop(
      {"--sysroot", (directory / "tree").string(), std::to_string(child.pid()), "[stack]"});
  CHECK(shown.status == 0);
}

TEST_CASE("page tables that were captured read as the live ones") {
  const auto live = SysRoot::live();
  REQUIRE(live);
  const StoppedChild child;
  const auto is = live->process(child.pid());
  REQUIRE(is);
  const auto tables = open_translator(*is, Backend::bpf);
  if (!tables) return skip_or_fail("bpf", to_string(tables.error()));
  if (access("/usr/bin/python3", X_OK) != 0) return skip_or_fail("real", "needs python3");
  const std::string pid = std::to_string(child.pid());
  // The processor's own bits apart, which the kernel's aging clears.
  const auto results = [](const RunResult& shown) {
    CAPTURE(shown.err);
    CHECK(shown.status == 0);
    const std::size_t at = shown.out.find("\"results\"");
    REQUIRE(at != std::string::npos);
    static const std::regex usage("\"accessed\":[a-z]+,\"dirty\":[a-z]+");
    return std::regex_replace(shown.out.substr(at), usage, "");
  };
  const auto seen = [&] { return results(run_vtop({"--backend", "bpf", "-J", pid})); };
  // Pages may move meanwhile: compaction.
  std::string was, before = seen(), after;
  for (int left = 5; left > 0; --left) {
    const TempDir directory;
    const std::string fixture = directory.string() + "/it";
    const RunResult captured =
        run({script(), "--backend", "bpf", "--vtop", tool_path("vtop"), pid, fixture});
    CAPTURE(captured.err);
    REQUIRE(captured.status == 0);
    write_tree(load_fixture(fixture), directory / "tree");
    was = results(run_vtop({"--sysroot", (directory / "tree").string(), "-J", pid}));
    after = seen();
    if (before == after) break;
    before = after;
  }
  REQUIRE((before == after));
  const auto differs = std::ranges::mismatch(was, after).in1 - was.begin();
  INFO(was.substr(static_cast<std::size_t>(differs), 300));
  CHECK((was == after));
  CHECK(was.find("\"cache\":\"wb\"") != std::string::npos);
}

TEST_CASE("of page tables that vtop does not show whole nothing is recorded") {
  if (access("/usr/bin/python3", X_OK) != 0) return skip_or_fail("real", "needs python3");
  const StoppedChild child;
  const TempDir directory;
  const std::string vtop = directory.string() + "/vtop", it = directory.string() + "/it";
  const auto capture = [&](const std::string& output, int status) {
    std::ofstream(vtop) << "#!/bin/sh\necho '" << output << "'\nexit " << status << '\n';
    std::filesystem::permissions(vtop, std::filesystem::perms::owner_all);
    return run({script(), "--backend", "bpf", "--vtop", vtop, std::to_string(child.pid()), it});
  };
  const std::string whole = R"({"results":[],"error":null})";
  const std::pair<std::string, int> ended[] = {
      {whole, 2}, {R"({"results":[],"error":"it ended"})", 0}, {R"({"results":[)", 0}, {"", 0}};
  for (const auto& [output, status] : ended) {
    CAPTURE(output);
    const RunResult captured = capture(output, status);
    CHECK(captured.status == 1);
    CHECK(captured.err.find("does not show all") != std::string::npos);
    CHECK(captured.err.find("Traceback") == std::string::npos);
    CHECK_FALSE(std::filesystem::exists(it));
  }
  // Markers are recorded as the entries that they are.
  const RunResult captured = capture(
      R"({"results":[{"vma":null,"extents":[{"va":"0x7f0000000000","bytes":4096,"state":"special",)"
      R"("reason":"poison marker","bits":[],"leaf_size":null,"pte":null}]}],"error":null})",
      0);
  CAPTURE(captured.err);
  REQUIRE(captured.status == 0);
  const std::string extents = read_file(it + "/" + std::to_string(child.pid()) + "/extents");
  CHECK(extents == "vmem-extents 1 bpf\n7f0000000000 1 entry=0x400000000000005f\nend\n");
}

TEST_CASE("a running process is stopped for the capture only") {
  if (geteuid() != 0 || access("/usr/bin/python3", X_OK) != 0)
    return skip_or_fail("real", "needs root and python3");
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    for (;;) pause();
  }
  const TempDir directory;
  const RunResult captured = run({script(), std::to_string(child), directory.string() + "/it"});
  CAPTURE(captured.err);
  CHECK(captured.status == 0);
  CHECK(state_of(child) == 'S');
  const RunResult again = run({script(), std::to_string(child), directory.string() + "/it"});
  CHECK(again.status != 0);
  CHECK(again.err.find("exists") != std::string::npos);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST_CASE("what cannot be captured leaves nothing behind") {
  if (access("/usr/bin/python3", X_OK) != 0) return skip_or_fail("real", "needs python3");
  const TempDir directory;
  for (const char* const pid : {"4194303", "2", "zz"}) {
    const RunResult captured = run({script(), pid, directory.string() + "/none"});
    CHECK(captured.status != 0);
    CHECK_FALSE(captured.err.empty());
    CHECK(captured.err.find("Traceback") == std::string::npos);
    CHECK_FALSE(std::filesystem::exists(directory / "none"));
  }
}
