// SPDX-License-Identifier: MIT
// Real DPDK primaries (dpdk-testpmd): PA and VA mode, two at once, one that was killed, single-file
// segments, memory without huge pages. The oracle for one segment's IOVA is a plain pread of
// pagemap; for a wrong one, the byte that this test changed.
#include <sys/mount.h>

#include <algorithm>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "live/programs.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;
namespace fs = std::filesystem;

namespace {

/// A hugetlbfs of its own, and huge pages for it; both go at the end.
class HugeMount {
 public:
  HugeMount() {
    const std::string path = "/proc/sys/vm/nr_hugepages";
    const std::string before = first_line(path);
    if (before.empty()) return;
    setting_.emplace(path, std::to_string(std::stoul(before) + 160));
    if (std::stoul(first_line(path)) < std::stoul(before) + 128) return;
    mounted_ = mount("none", directory_.string().c_str(), "hugetlbfs", 0, "pagesize=2M") == 0;
  }
  ~HugeMount() {
    if (mounted_) (void)umount2(directory_.string().c_str(), MNT_DETACH);
  }
  HugeMount(const HugeMount&) = delete;
  HugeMount& operator=(const HugeMount&) = delete;
  bool ready() const { return mounted_; }
  std::string path() const { return directory_.string(); }

 private:
  MachineLock lock_;
  std::optional<Setting> setting_;
  TempDir directory_;
  bool mounted_ = false;
};

class Primary {
 public:
  /// `options` are EAL's, `more` testpmd's own.
  Primary(const HugeMount& huge, std::string prefix, const std::vector<std::string>& options,
          const std::vector<std::string>& more = {})
      : prefix_(std::move(prefix)), program_(command(huge, prefix_, options, more)) {
    if (!program_.wait_for("testpmd> ")) FAIL("dpdk-testpmd: " << program_.said());
  }
  ~Primary() {
    program_.kill_hard();
    std::error_code ignored;
    fs::remove_all(directory(), ignored);
  }
  Primary(const Primary&) = delete;
  Primary& operator=(const Primary&) = delete;

  const std::string& prefix() const { return prefix_; }
  std::string directory() const { return "/var/run/dpdk/" + prefix_; }
  pid_t pid() const { return program_.pid(); }
  void kill_hard() { program_.kill_hard(); }
  nlohmann::ordered_json audit() const {
    return tool_json("regaudit", {"dpdk", "-J", "--prefix", prefix_});
  }

 private:
  static std::vector<std::string> command(const HugeMount& huge, const std::string& prefix,
                                          const std::vector<std::string>& options,
                                          const std::vector<std::string>& more) {
    std::vector<std::string> all{
        "dpdk-testpmd",           "-l", "0", "-m", "64", "--no-pci", "--vdev=net_null0",
        "--file-prefix=" + prefix};
    if (std::ranges::find(options, "--no-huge") == options.end())
      all.push_back("--huge-dir=" + huge.path());
    // One core drives, none forwards: two are wanted, so the same may do both.
    all[2] = "0,1";
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2) all[1] = "--lcores", all[2] = "(0-1)@0";
    all.insert(all.end(), options.begin(), options.end());
    all.insert(all.end(), {"--", "--nb-cores=1", "--total-num-mbufs=2048", "-i"});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string prefix_;
  Program program_;
};

std::string unique(const char* name) { return std::string(name) + std::to_string(getpid()); }

bool have_testpmd() { return run({"sh", "-c", "command -v dpdk-testpmd"}).status == 0; }

/// The segments of a list file, as DPDK 22.11 lays them out (48 bytes each, 22.11's headers).
struct Segment {
  std::uint64_t iova, address, bytes, page_size;
};
std::vector<Segment> segments_of(const std::string& file) {
  const std::string text = read_file(file);
  std::vector<Segment> all;
  for (std::size_t at = 0; at + 48 <= text.size(); at += 48) {
    Segment s{};
    std::memcpy(&s, text.data() + at, sizeof s);
    if (s.address == 0 || s.bytes != s.page_size || s.bytes != 2 << 20) break;
    all.push_back(s);
  }
  return all;
}

std::uint64_t pa_of(pid_t pid, std::uint64_t va) {
  const int fd = open(("/proc/" + std::to_string(pid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC);
  std::uint64_t entry = 0;
  const bool read_it = pread(fd, &entry, 8, static_cast<off_t>(va / 4096 * 8)) == 8;
  close(fd);
  REQUIRE(read_it);
  return (entry & ((1ULL << 55) - 1)) * 4096;
}

/// A copy of the files that other processes read, with one IOVA changed.
void damage(const std::string& directory, const fs::path& copy, std::size_t segment) {
  for (const auto& file : fs::directory_iterator(directory)) {
    if (file.is_regular_file()) fs::copy_file(file.path(), copy / file.path().filename());
  }
  const fs::path list = copy / "fbarray_memseg-2048k-0-0";
  std::string text = read_file(list);
  text[segment * 48 + 3] = static_cast<char>(text[segment * 48 + 3] ^ 1);  // 16 MiB further
  write_file(list, text);
}

#define NEEDS_DPDK                                                                        \
  if (geteuid() != 0 || !shown_pfns())                                                    \
    return skip_or_fail("pfn", "DPDK's files and PFNs need root");                        \
  if (!have_testpmd()) return skip_or_fail("real", "no dpdk-testpmd (package dpdk-dev)"); \
  const HugeMount huge;                                                                   \
  if (!huge.ready()) return skip_or_fail("real", "no 128 huge pages, or no hugetlbfs")

}  // namespace

TEST_CASE(
    "dpdk: a PA-mode and a VA-mode primary at once, each clean and whole; one wrong IOVA each") {
  NEEDS_DPDK;
  Primary pa(huge, unique("vmem-pa-"), {"--iova-mode=pa"});
  Primary va(huge, unique("vmem-va-"), {"--iova-mode=va"});
  for (const Primary* const primary : {&pa, &va}) {
    const bool physical = primary == &pa;
    INFO(primary->prefix());
    const auto document = primary->audit();
    CHECK(document["summary"]["error"] == 0);
    CHECK(document["summary"]["unknown"] == 0);
    CHECK(document["summary"]["warning"] == 0);
    CHECK(document["dpdk"][0]["iova_mode"] == (physical ? "pa" : "va"));
    CHECK(document["dpdk"][0]["pid"] == primary->pid());
    CHECK(document["dpdk"][0]["memzones"].size() > 2);
    for (const auto& zone : document["dpdk"][0]["memzones"]) CHECK(zone["verdict"] == "clean");
    const auto segments = segments_of(primary->directory() + "/fbarray_memseg-2048k-0-0");
    REQUIRE(segments.size() >= 32);
    REQUIRE(document["registrations"].size() == segments.size());
    for (std::size_t i = 0; i < segments.size(); ++i) {
      const auto& r = document["registrations"][i];
      char address[32];
      (void)std::snprintf(address, sizeof address, "0x%llx",
                          static_cast<unsigned long long>(segments[i].address));
      CHECK(r["va"] == address);
      CHECK(r["bytes"] == 2 << 20);
      CHECK(r["verdict"] == "clean");
      CHECK(r["best_page_size"] == 2 << 20);
      CHECK(r["entries"] == 1);
      CHECK(segments[i].iova ==
            (physical ? pa_of(primary->pid(), segments[i].address) : segments[i].address));
    }
    CHECK(run_tool("regaudit", {"dpdk", "--prefix", primary->prefix()}).status == 0);
    CHECK(run_tool("regaudit", {"dpdk", "--dir", primary->directory()}).status == 0);
    CHECK(run_tool("regaudit", {"dpdk", "--pid", std::to_string(primary->pid())}).status == 0);

    const TempDir copy;
    damage(primary->directory(), copy.path(), 7);
    for (const bool by_pid : {false, true}) {
      std::vector<std::string> arguments{"dpdk", "-J", "--dir", copy.string()};
      if (by_pid) arguments.insert(arguments.end(), {"--pid", std::to_string(primary->pid())});
      const RunResult wrong = run_tool("regaudit", arguments);
      CAPTURE(wrong.err);
      CHECK(wrong.status == 1);
      const auto damaged = nlohmann::ordered_json::parse(wrong.out);
      CHECK(damaged["summary"]["error"] == 1);
      CHECK(damaged["registrations"][7]["verdict"] == "error");
      REQUIRE(damaged["registrations"][7]["findings"].size() == 1);
      CHECK(damaged["registrations"][7]["findings"][0]["kind"] == "iova-mismatch");
      CHECK(damaged["summary"]["clean"] == segments.size() - 1);
    }
  }
  const auto both = tool_json("regaudit", {"dpdk", "-J"});
  CHECK(both["dpdk"].size() >= 2);
  CHECK(run_tool("regaudit", {"dpdk", "--prefix", pa.prefix(), "--pid", "1"}).status != 0);

  pa.kill_hard();
  REQUIRE(fs::exists(pa.directory() + "/config"));
  for (const auto& arguments : {std::vector<std::string>{"dpdk", "--prefix", pa.prefix()},
                                std::vector<std::string>{"dpdk", "--dir", pa.directory()}}) {
    const RunResult dead = run_tool("regaudit", arguments);
    CHECK(dead.status == 2);
    CHECK(error_form(dead.err, "regaudit") == "");
    CHECK(dead.err.find("primary has ended") != std::string::npos);
  }
  CHECK(run_tool("regaudit", {"dpdk", "--prefix", va.prefix()}).status == 0);
}

TEST_CASE("dpdk: single-file segments, and a secondary process") {
  NEEDS_DPDK;
  Primary primary(huge, unique("vmem-single-"), {"--iova-mode=pa", "--single-file-segments"});
  const auto document = primary.audit();
  CHECK(document["summary"]["error"] == 0);
  CHECK(document["summary"]["clean"] == document["registrations"].size());
  CHECK(document["dpdk"][0]["single_file_segments"] == true);
  Program secondary({"dpdk-testpmd", "-l", "0,1", "--no-pci", "--proc-type=secondary",
                     "--file-prefix=" + primary.prefix(), "--", "--nb-cores=1", "-i",
                     "--num-procs=2", "--proc-id=1"});
  const bool up = secondary.wait_for("testpmd> ", std::chrono::seconds(20));
  INFO(secondary.said());
  if (!up) return skip_or_fail("", "testpmd did not start as a secondary");
  const auto two = primary.audit();
  REQUIRE(two["dpdk"][0]["processes"].size() == 2);
  CHECK(two["dpdk"][0]["pid"] == primary.pid());
  for (const auto& process : two["dpdk"][0]["processes"])
    CHECK(process["primary"] == (process["pid"] == primary.pid()));
  const RunResult other = run_tool("regaudit", {"dpdk", "--pid", std::to_string(secondary.pid())});
  CAPTURE(other.out, other.err);
  CHECK(other.status == 0);
}

TEST_CASE("dpdk: memory without huge pages") {
  NEEDS_DPDK;
  Primary primary(huge, unique("vmem-nohuge-"), {"--no-huge"});
  const auto document = primary.audit();
  CHECK(document["dpdk"][0]["iova_mode"] == "va");
  CHECK(document["summary"]["error"] == 0);
  CHECK(document["registrations"].size() == (64 << 20) / 4096);
}

TEST_CASE("dpdk: memory of the application's own, which it gave to DPDK") {
  NEEDS_DPDK;
  Primary primary(huge, unique("vmem-extmem-"), {"--no-huge"}, {"--mp-alloc=xmem"});
  const auto document = primary.audit();
  CHECK(document["summary"]["error"] == 0);
  CHECK(document["summary"]["unknown"] == 0);
  std::uint64_t bytes = 0;
  for (const auto& list : document["dpdk"][0]["lists"]) {
    if (list["external"] == true) bytes += list["bytes"].get<std::uint64_t>();
  }
  REQUIRE(bytes != 0);
  std::uint64_t audited = 0, pages = 0;
  for (const auto& r : document["registrations"]) {
    if (!r["key"].get<std::string>().starts_with("extmem")) continue;
    audited += r["bytes"].get<std::uint64_t>();
    // DPDK was told no IOVA but the address; each page is in memory.
    CHECK(r["iova"] == r["va"]);
    CHECK(r["resident"] == r["bytes"]);
    if (++pages % 997 == 0)
      CHECK(pa_of(primary.pid(), std::stoull(r["va"].get<std::string>(), nullptr, 16)) != 0);
  }
  CHECK(audited == bytes);
  // Nothing keeps a child's copy away from it, as huge pages of DPDK's own would.
  CHECK(document["summary"]["warning"] == pages);
}
