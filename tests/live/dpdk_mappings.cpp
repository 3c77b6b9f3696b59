// SPDX-License-Identifier: MIT
// regaudit dpdk where a primary shares no files (--in-memory, --no-shconf): its huge pages give it
// away by their names. The primaries are the test's: processes that map what DPDK 22.11 maps, seen
// by running it.
#include <linux/memfd.h>
#include <sys/mount.h>

#include <filesystem>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

constexpr std::size_t huge = std::size_t{2} << 20;

/// Maps `count` segments, one after the other, each of a memfd called as `name` says.
bool map_segments(const std::function<std::string(std::size_t)>& name, std::size_t count,
                  unsigned flags = MFD_HUGETLB) {
  const std::size_t page = flags == 0 ? 4096 : huge;
  auto* const reserved = static_cast<char*>(mmap(
      nullptr, (count + 1) * huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (reserved == MAP_FAILED) return false;
  char* at = reserved + (huge - reinterpret_cast<std::uintptr_t>(reserved) % huge) % huge;
  for (std::size_t i = 0; i < count; ++i, at += page) {
    const int fd = memfd_create(name(i).c_str(), flags);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(page)) != 0 ||
        mmap(at, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
      return false;
    close(fd);
    *at = 1;
  }
  return true;
}

Child in_memory_primary(std::size_t count) {
  return fork_child([&](const std::function<void()>& ready) {
    if (!map_segments([](std::size_t i) { return "seg_2-" + std::to_string(i); }, count)) return;
    ready();
    wait_for_ever();
  });
}

RunResult audit(const std::vector<std::string>& more) {
  std::vector<std::string> all{"dpdk"};
  all.insert(all.end(), more.begin(), more.end());
  return run_tool("regaudit", all);
}

std::string pid_of(const Child& child) { return std::to_string(child.pid()); }

/// The instance of that process in "dpdk".
nlohmann::ordered_json instance_of(const nlohmann::ordered_json& document, pid_t pid) {
  for (const auto& one : document["dpdk"]) {
    if (one["pid"] == pid) return one;
  }
  FAIL("process " << pid << " is not in " << document["dpdk"].dump());
  return {};
}

#define NEEDS_HUGE_PAGES                                             \
  if (!shown_pfns()) return skip_or_fail("pfn", "PFNs are hidden");  \
  const HugePages pages;                                             \
  if (std::stoul("0" + first_line("/proc/sys/vm/nr_hugepages")) < 8) \
  return skip_or_fail("pfn", "no huge pages")

}  // namespace

TEST_CASE("dpdk: a primary that shares no files is named, and audited by its mappings") {
  NEEDS_HUGE_PAGES;
  const Child primary = in_memory_primary(4);
  for (const bool named : {false, true}) {
    CAPTURE(named);
    const RunResult result = audit(named ? std::vector<std::string>{"--pid", pid_of(primary)}
                                         : std::vector<std::string>{});
    CAPTURE(result.out, result.err);
    // Its IOVAs are not known: never good. (Other tests have primaries, too, with errors perhaps.)
    CHECK(result.status != 0);
    if (named) {
      CHECK(result.status == 2);
      CHECK(error_form(result.err, "regaudit") == "");
    }
    CHECK(result.err.find("process " + pid_of(primary)) != std::string::npos);
    CHECK(result.err.find("looks like DPDK (8.0M of huge pages, /memfd:seg_2-*)") !=
          std::string::npos);
    CHECK(result.err.find("--in-memory or --no-shconf") != std::string::npos);
    CHECK(result.err.find("no DPDK primary is running") == std::string::npos);
    CHECK(result.out.find("seg_2/0-3") != std::string::npos);
  }
  const auto document = tool_json("regaudit", {"dpdk", "-J", "--pid", pid_of(primary)});
  const auto instance = instance_of(document, primary.pid());
  CHECK(instance["source"] == "mappings");
  for (const char* const unknown : {"prefix", "directory", "version", "iova_mode", "dma_mask_bits",
                                    "legacy_mem", "single_file_segments", "memzones"}) {
    CAPTURE(unknown);
    CHECK(instance[unknown].is_null());
  }
  CHECK(instance["lists"][0]["socket"].is_null());
  CHECK(instance["lists"][0]["page_size"] == huge);
  REQUIRE(document["registrations"].size() == 1);
  const auto& r = document["registrations"][0];
  CHECK(r["iova"].is_null());
  CHECK(r["bytes"] == 4 * huge);
  CHECK(r["resident"] == 4 * huge);
  CHECK(r["extents"].is_number());
  CHECK(r["nodes"].size() == 1);
  CHECK(r["verdict"] == "unknown");
  REQUIRE(r["unknown"].size() == 1);
  CHECK(r["unknown"][0]["kind"] == "iova-unknown");
  CHECK(document["search"]["processes"] > 1);
  CHECK(document["summary"]["clean"] == 0);
}

TEST_CASE("dpdk: neighbours of another list, and what is only called so, are told apart") {
  NEEDS_HUGE_PAGES;
  const Child two = fork_child([&](const std::function<void()>& ready) {
    // seg_1-7 and seg_3-0 follow each other; the second is not the first's next.
    if (!map_segments([](std::size_t i) { return i == 0 ? "seg_1-7" : "seg_3-0"; }, 2)) return;
    ready();
    wait_for_ever();
  });
  const auto document = tool_json("regaudit", {"dpdk", "-J", "--pid", pid_of(two)});
  REQUIRE(document["registrations"].size() == 2);
  CHECK(document["registrations"][0]["key"] == "seg_1/7");
  CHECK(document["registrations"][1]["key"] == "seg_3/0");

  const Child small = fork_child([&](const std::function<void()>& ready) {
    if (!map_segments([](std::size_t) { return "seg_2-0"; }, 1, 0)) return;
    ready();
    wait_for_ever();
  });
  const RunResult none = audit({"--pid", pid_of(small)});
  CHECK(none.status == 2);
  CHECK(none.out == "");
  CHECK(error_form(none.err, "regaudit") == "");
  CHECK(none.err.find("no huge pages") != std::string::npos);
  const RunResult all = audit({});
  CHECK(all.err.find("process " + pid_of(small)) == std::string::npos);
}

TEST_CASE("dpdk: anonymous huge pages are anybody's until somebody says that they are DPDK's") {
  NEEDS_HUGE_PAGES;
  const Child child = fork_child([&](const std::function<void()>& ready) {
    void* const at = mmap(nullptr, 2 * huge, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) return;
    ready();
    wait_for_ever();
  });
  const RunResult all = audit({});
  CHECK(all.err.find("process " + pid_of(child)) == std::string::npos);
  const RunResult named = audit({"--pid", pid_of(child), "-J"});
  CAPTURE(named.out, named.err);
  CHECK(named.status == 2);
  CHECK(named.err.find("nothing says that it is DPDK") != std::string::npos);
  CHECK(named.err.find("looks like") == std::string::npos);
  const auto document = nlohmann::ordered_json::parse(named.out);
  REQUIRE(document["registrations"].size() == 1);
  // No file of it was ever removed.
  for (const auto& f : document["registrations"][0]["findings"]) CHECK(f["kind"] != "unlinked");
}

TEST_CASE("dpdk: files of a prefix, removed while they are mapped") {
  NEEDS_HUGE_PAGES;
  const TempDir mount_point;
  if (mount("none", mount_point.string().c_str(), "hugetlbfs", 0, "pagesize=2M") != 0)
    return skip_or_fail("pfn", "no hugetlbfs");
  const std::string file = (mount_point / "vmemtestmap_0").string();
  const Child primary = fork_child([&](const std::function<void()>& ready) {
    const int fd = open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(2 * huge)) != 0) return;
    // --single-file-segments: two VMAs of one file.
    auto* const at = static_cast<char*>(
        mmap(nullptr, 2 * huge, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0));
    if (at == MAP_FAILED || mmap(at + huge, huge, PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, huge) == MAP_FAILED)
      return;
    unlink(file.c_str());
    ready();
    wait_for_ever();
  });
  (void)umount2(mount_point.string().c_str(), MNT_DETACH);
  const RunResult result = audit({"--prefix", "vmemtest", "-J"});
  CAPTURE(result.out, result.err);
  CHECK(result.status == 2);
  const auto document = nlohmann::ordered_json::parse(result.out);
  CHECK(instance_of(document, primary.pid())["prefix"] == "vmemtest");
  REQUIRE(document["registrations"].size() == 1);
  const auto& r = document["registrations"][0];
  CHECK(r["bytes"] == 2 * huge);
  REQUIRE(r["findings"].size() == 1);
  CHECK(r["findings"][0]["kind"] == "unlinked");
  const RunResult other = audit({"--prefix", "vmemother"});
  CHECK(other.status == 2);
  CHECK(other.out == "");
  CHECK(error_form(other.err, "regaudit") == "");
  CHECK(other.err.find("its prefix cannot be told") != std::string::npos);
}

TEST_CASE("dpdk: what could not be looked at is said, by PID, and raises the status") {
  if (geteuid() != 0) return skip_or_fail("pfn", "needs root to become another user");
  const Child hidden = fork_child([](const std::function<void()>& ready) {
    ready();
    wait_for_ever();
  });
  RunOptions nobody;
  nobody.uid = 65534;
  const RunResult result = run_tool("regaudit", {"dpdk"}, nobody);
  CAPTURE(result.out, result.err);
  CHECK(result.status == 2);
  CHECK(error_form(result.err, "regaudit") == "");
  CHECK(result.err.find("could not be looked at: ") != std::string::npos);
  CHECK(result.err.find("is running") == std::string::npos);
}

TEST_CASE("dpdk: under hidepid the list of processes is not the list of primaries") {
  if (geteuid() != 0) return skip_or_fail("pfn", "needs root to mount and to become another user");
  const RunResult result =
      run({"unshare", "--mount", "sh", "-c",
           "mount -t proc -o hidepid=invisible proc /proc && exec setpriv --reuid 65534 --regid "
           "65534 --clear-groups --bounding-set -all " +
               tool_path("regaudit") + " dpdk"});
  CAPTURE(result.out, result.err);
  if (result.err.find("regaudit: ") == std::string::npos)
    return skip_or_fail("pfn", "no proc of its own can be mounted");
  CHECK(result.status == 2);
  CHECK(error_form(result.err, "regaudit") == "");
  CHECK(result.err.find("hidepid") != std::string::npos);
}

TEST_CASE("dpdk: files in use by a process that cannot be looked at are not left over") {
  if (geteuid() != 0) return skip_or_fail("pfn", "needs root to become another user");
  const TempDir directory;
  const auto folder = directory.path() / "dpdk" / "rte";
  std::filesystem::create_directories(folder);
  write_file(folder / "config", std::string(25344, '\0'));
  const Child primary = fork_child([&](const std::function<void()>& ready) {
    const int fd = open((folder / "config").c_str(), O_RDWR | O_CLOEXEC);
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_len = 4096;
    if (fd < 0 || fcntl(fd, F_SETLK, &lock) != 0) return;
    ready();
    wait_for_ever();
  });
  std::filesystem::permissions(
      directory.path(), std::filesystem::perms::others_exec | std::filesystem::perms::owner_all);
  RunOptions nobody;
  nobody.uid = 65534;
  nobody.environment = {"RUNTIME_DIRECTORY=" + directory.string()};
  const RunResult result = run_tool("regaudit", {"dpdk", "--prefix", "rte"}, nobody);
  CAPTURE(result.out, result.err);
  CHECK(result.status == 2);
  CHECK(error_form(result.err, "regaudit") == "");
  CHECK(result.err.find("process " + pid_of(primary) + " holds the lock") != std::string::npos);
  CHECK(result.err.find("has ended") == std::string::npos);
}
