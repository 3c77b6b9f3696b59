// SPDX-License-Identifier: MIT
// Every kind of memory that this machine makes: vmastat's sums are the kernel's.
#include <nlohmann/json.hpp>

#include "live/children.hpp"
#include "live/stats_oracle.hpp"

using namespace vmem;
using namespace vmem::test;

TEST_CASE("sums of every kind of memory are those of smaps") {
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  CHECK(check_stats(child.pid()) > 50);
  CHECK(check_stats(child.pid(), {.threads = 2}) > 50);
  CHECK(check_stats(child.pid(), {.sharing = false}) > 50);
  CHECK(check_stats(child.pid(), {.frames = true, .threads = 2}) > 50);
  CHECK(check_stats(child.pid(), {}, Backend::pagemap) > 50);
}

TEST_CASE("of a huge page that another process maps in part, each page counts as in smaps") {
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  auto* const at = static_cast<std::uint64_t*>(mmap(
      nullptr, sizeof(std::uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  const Child child = partly_shared_huge_pages(at);
  stop(child.pid());
  std::uint64_t leaves = 0;
  for (const StatsAnswer& a : read_stats(process_of(child.pid())))
    if (a.vma.range.contains(vmem::VirtAddr{*at})) leaves = a.sums.leaf.at(21);
  if (leaves != 4 << 20) return skip_or_fail("thp", "no transparent huge pages");
  CHECK(check_stats(child.pid()) > 10);
  CHECK(check_stats(child.pid(), {.threads = 2}) > 10);
}

TEST_CASE("sums through page tables alone are the kernel's, too") {
  const KindsChild child({"anon", "shm", "fork", "zero-page", "file"});
  stop(child.pid());
  const Process process = process_of(child.pid());
  if (!open_translator(process, Backend::bpf)) return skip_or_fail("bpf", "no BPF");
  CHECK(check_stats(child.pid(), {}, Backend::bpf) > 10);
}

TEST_CASE("frame flags: every resident byte has its flags and its folio") {
  if (!shown_pfns()) return skip_or_fail("pfn", "frames are not shown");
  const KindsChild child;
  stop(child.pid());
  const auto answers = read_stats(process_of(child.pid()), {.frames = true});
  std::uint64_t zero = 0, thp = 0;
  for (const StatsAnswer& a : answers) {
    INFO(a.vma.path << " " << hex(a.vma.range.start.value));
    const MemorySums& s = a.sums;
    if (!s.known(unknown_sum::rss | unknown_sum::frames)) continue;
    CHECK(s.framed == s.mapped());
    std::uint64_t folios = 0;
    for (const auto& [shift, bytes] : s.folios.entries()) folios += bytes;
    CHECK(folios == s.framed);
    zero += s.flags.at(24);
    thp += s.folios.at(21);
    // A leaf of 2 MiB is at least a folio of 2 MiB.
    CHECK(s.folios.at(21) + s.flags.at(24) >= s.leaf.at(21));
  }
  CHECK(zero >= 4 * base_page);
  if (first_line("/sys/kernel/mm/transparent_hugepage/enabled").find("[never]") ==
      std::string::npos)
    CHECK(thp >= 3 << 20);
}

TEST_CASE("without the right to see PFNs the sums come from smaps, and the status is 2") {
  const KindsChild child({"anon", "shm", "zero-page", "file"});
  stop(child.pid());
  const RunResult r = run({"/usr/bin/setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all",
                           VMEM_TOOLS_PATH "/vmastat", "-J", std::to_string(child.pid())});
  if (r.status != 2 || r.out.empty()) {
    return skip_or_fail("pfn", "setpriv cannot drop capabilities: " + r.err);
  }
  CHECK(r.err.find("PFNs are hidden") != std::string::npos);
  const auto document = nlohmann::json::parse(r.out);
  const auto smaps = plain_smaps(child.pid());
  const auto& vmas = document["processes"][0]["vmas"];
  REQUIRE(vmas.size() == smaps.size());
  unsigned compared = 0;
  for (std::size_t i = 0; i < smaps.size(); ++i) {
    INFO(vmas[i].dump());
    if (smaps[i].kilobytes.empty()) continue;
    ++compared;
    CHECK(vmas[i]["rss"] == smaps[i].kilobytes.at("Rss") * 1024);
    if (!mapped_by_others({.path = vmas[i]["path"]})) {
      CHECK(vmas[i]["uss"] ==
            (smaps[i].kilobytes.at("Private_Clean") + smaps[i].kilobytes.at("Private_Dirty")) *
                1024);
    }
    if (vmas[i]["hidden"] != 0) CHECK(vmas[i]["extents"].is_null());
  }
  CHECK(compared > 10);
}
