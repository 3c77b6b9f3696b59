// SPDX-License-Identifier: MIT
/// vmastat's words, columns and metrics: what is printed can be typed, what was asked for and
/// cannot be told raises the status, and no name breaks the metrics.
#include <algorithm>
#include <sstream>

#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

constexpr const char* full = "vmem-tree 1\npage_size 4096\npfn_access full\n";

/// A system in a directory of its own.
class Tree {
 public:
  explicit Tree(const SystemModel& system) { write_tree(system, directory_.path()); }
  RunResult vmastat(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"--sysroot", directory_.path().string()});
    return run_tool("vmastat", arguments);
  }
  nlohmann::ordered_json json(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"--sysroot", directory_.path().string(), "-J"});
    return tool_json("vmastat", arguments);
  }

 private:
  TempDir directory_;
};

std::vector<std::string> fields(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::string> all;
  for (std::string word; in >> word;) all.push_back(word);
  return all;
}

std::vector<std::string> lines(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> all;
  for (std::string line; std::getline(in, line);) all.push_back(line);
  return all;
}

std::string lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string joined(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) all += (all.empty() ? "" : ",") + word;
  return all;
}

/// A heap that a mapping with a policy, MADV_HUGEPAGE and MADV_FREE follows, a mapping that is
/// as it but for its name, and a file.
SystemModel asked_system() {
  const std::vector<std::string> vmas = {
      "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n",
      "7f0000400000-7f0000800000 rw-p 00000000 00:00 0 \n",
      "7f0000800000-7f0000a00000 rw-p 00000000 00:00 0                          [anon:x]\n",
      "7f0000a00000-7f0000b00000 r--p 00000000 08:01 7                          /lib/a\n",
      "7f0000b00000-7f0000c00000 r--p 00200000 08:01 7                          /lib/a\n"};
  SystemModel system;
  system.manifest = full;
  ProcessModel process;
  process.pid = 7;
  std::string smaps;
  const char* const flags[] = {"rd wr mr mw me ac nh", "rd wr mr mw me ac hg",
                               "rd wr mr mw me ac hg", "rd mr mw me", "rd mr mw me"};
  for (std::size_t i = 0; i < vmas.size(); ++i) {
    process.maps += vmas[i];
    const bool touched = i < 2;
    smaps += vmas[i] + "Rss: " + (touched ? "8" : "0") + " kB\nPss: " + (touched ? "8" : "0") +
             " kB\nPss_Dirty: 4 kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: " + (touched ? "8" : "0") +
             " kB\nReferenced: 4 kB\nLazyFree: " + (i == 1 ? "4" : "0") +
             " kB\nSwap: 0 kB\nSwapPss: 0 kB\nLocked: 8 kB\nTHPeligible: " + (i < 3 ? "1" : "0") +
             "\nVmFlags: " + flags[i] + "\n";
  }
  process.files["smaps"] = smaps;
  process.files["comm"] = "asked\n";
  process.files["status"] = "Name:\tasked\nTgid:\t7\nTHP_enabled:\t1\n";
  process.files["mountinfo"] = "1 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
  process.files["numa_maps"] =
      "7f0000000000 default anon=2 N0=2 kernelpagesize_kB=4\n"
      "7f0000400000 prefer (many):0-1 anon=2 N1=2 kernelpagesize_kB=4\n"
      "7f0000800000 prefer (many):0-1\n7f0000a00000 default file=/lib/a\n7f0000b00000 default\n";
  process.entries = {{0x7f0000000000, 2, entry::present | entry::exclusive | 100, 1},
                     {0x7f0000400000, 2, entry::present | entry::exclusive | 200, 1}};
  system.processes.push_back(process);
  system.frames = {{100, 2, 1 << 12, 1, {}}, {200, 2, 1 << 12, 1, {}}};
  const std::string thp = "sys/kernel/mm/transparent_hugepage/";
  system.files[thp + "enabled"] = "always [madvise] never\n";
  system.files[thp + "defrag"] = "always defer [madvise] never\n";
  system.files[thp + "khugepaged/max_ptes_none"] = "511\n";
  system.files[thp + "hugepages-2048kB/enabled"] = "always [inherit] madvise never\n";
  system.files[thp + "hugepages-2048kB/stats/anon_fault_fallback"] = "3\n";
  system.files["proc/vmstat"] = "nr_free_pages 1\nthp_fault_fallback 12\n";
  system.files["proc/sys/vm/max_map_count"] = "65530\n";
  return system;
}

std::vector<std::string> column(const RunResult& result) {
  auto all = lines(result.out);
  for (std::string& line : all)
    if (line.ends_with(' ')) line.erase(line.find_last_not_of(' ') + 1);
  return all;
}

}  // namespace

TEST_CASE("every heading is the name of its column, in any case, on every machine") {
  for (const std::string system : {"x86-64 1042", "arm64-64k 2001"}) {
    for (const std::string how : {"", "--pages", "--smaps", "--thp", "--by kind", "--by process",
                                  "--watch 0.001 --count 1"}) {
      const auto arguments = words("--sysroot " + system + (how.empty() ? "" : " " + how));
      INFO(system << " " << how);
      const auto table = lines(run_tool("vmastat", arguments).out);
      REQUIRE(!table.empty());
      const auto headings = fields(table[0]);
      for (const bool small : {true, false}) {
        std::vector<std::string> typed;
        for (const std::string& heading : headings)
          typed.push_back(small ? lower(heading) : heading);
        auto again = arguments;
        again.insert(again.end(), {"-o", joined(typed)});
        const RunResult answer = run_tool("vmastat", again);
        INFO(answer.err);
        REQUIRE(!answer.out.empty());
        CHECK(fields(lines(answer.out)[0]) == headings);
        for (const std::string& one : typed) {
          auto sorted = arguments;
          sorted.insert(sorted.end(), {"--sort", one});
          INFO(one);
          CHECK(run_tool("vmastat", sorted).out.starts_with(table[0]));
        }
      }
    }
  }
  // A heading of another machine is none here, and the hint says which there are.
  const RunResult other = run_tool("vmastat", words("--sysroot arm64-64k -o rss,2M 2001"));
  CHECK(other.status == 2);
  CHECK(other.err.find("2M: no such column") != std::string::npos);
  CHECK(other.err.find("64K=pte, 512M=pmd") != std::string::npos);
  for (const std::string by : {"KIND", "Class", "Node"})
    CHECK(run_tool("vmastat", words("--sysroot arm64-64k --by " + by + " 2001")).status == 0);
}

TEST_CASE("the columns of a group tell what the group is") {
  const auto rows = [](const std::string& line) {
    auto all =
        column(run_tool("vmastat", words("--sysroot x86-64 --noheadings " + line + " 1042")));
    return all;
  };
  CHECK(rows("--by kind -o kind") == rows("--by kind -o name"));
  CHECK(rows("--by class -o class") == rows("--by class -o name"));
  CHECK(rows("--by node -o node") == rows("--by node -o name"));
  CHECK(rows("--by file -o file") == rows("--by file -o name"));
  CHECK(rows("--by process -o process") == rows("--by process -o comm"));
  CHECK(rows("--by process -o pid,comm") == std::vector<std::string>{"   1042  sleep"});
  // What all of a group's mappings have in common is told, the rest is not.
  for (const std::string& line : rows("--by kind -o kind,class,pid,comm")) {
    const auto cells = fields(line);
    CHECK(std::ranges::find(cells, "-") == cells.end());
    CHECK(cells.at(2) == "1042");
  }
  const auto mixed = rows("--by process -o kind,class");
  CHECK(fields(mixed.at(0)) == std::vector<std::string>{"-", "-"});
  const auto document = tool_json("vmastat", words("--sysroot x86-64 -J --by kind 1042"));
  for (const auto& group : document["groups"]) {
    CHECK(group["kind"] == group["key"]);
    CHECK(group["class"].is_string());
  }
  const auto nodes = tool_json("vmastat", words("--sysroot arm64-64k -J --by node 2001"));
  for (const auto& group : nodes["groups"])
    CHECK(std::to_string(group["node"].get<int>()) == group["key"].get<std::string>());
  const auto files = tool_json("vmastat", words("--sysroot x86-64 -J --by file 1042"));
  for (const auto& group : files["groups"]) CHECK(group["file"] == group["key"]);
}

TEST_CASE("JSON rows that were held have their VmFlags, too") {
  const Tree tree(asked_system());
  std::map<std::string, nlohmann::ordered_json> flags;
  const auto plain = tree.json({"7"});
  for (const auto& vma : plain["processes"][0]["vmas"]) {
    CHECK(vma["flags"].is_array());
    flags[vma["start"]] = vma["flags"];
  }
  CHECK(flags.size() == 5);
  for (const std::vector<std::string>& how : {std::vector<std::string>{"--sort", "name"},
                                              {"--sort", "rss"},
                                              {"--top", "3"},
                                              {"--watch", "0.001", "--count", "1"},
                                              {"--sort", "size", "--top", "2"}}) {
    auto arguments = how;
    arguments.emplace_back("7");
    unsigned rows = 0;
    const auto held = tree.json(arguments);
    for (const auto& vma : held["processes"][0]["vmas"]) {
      CHECK(vma["flags"] == flags.at(vma["start"]));
      ++rows;
    }
    CHECK(rows != 0);
  }
}

TEST_CASE("columns of smaps and numa_maps are read where they are asked for") {
  const SystemModel system = asked_system();
  const Tree tree(system);
  const RunResult told = tree.vmastat(
      {"--noheadings", "--bytes", "-o", "lazyfree,locked,accessed,pss_dirty,swap_pss,policy", "7"});
  CHECK(told.status == 0);
  CHECK(fields(lines(told.out).at(0)) ==
        std::vector<std::string>{"0", "8192", "4096", "4096", "0", "default"});
  CHECK(fields(lines(told.out).at(1)) ==
        std::vector<std::string>{"4096", "8192", "4096", "4096", "0", "prefer", "(many):0-1"});
  // JSON has them where an option or a column asks, else null or not at all.
  CHECK(tree.json({"7"})["totals"]["lazyfree"].is_null());
  CHECK(tree.json({"--smaps", "7"})["totals"]["lazyfree"] == 4096);
  const auto document = tree.json({"-o", "lazyfree,policy,split,thp", "7"});
  CHECK(document["totals"]["lazyfree"] == 4096);
  CHECK(document["processes"][0]["vmas"][1]["policy"] == "prefer (many):0-1");
  CHECK(document["processes"][0]["vmas"][1]["thp"]["why"] == "eligible");
  CHECK(document["processes"][0]["vmas"][1]["thp"]["aligned"] == 4 << 20);
  CHECK(document["processes"][0]["vmas"][1]["split"] ==
        nlohmann::ordered_json{"flags+hg-nh", "policy"});
  CHECK(document["max_map_count"] == 65530);
  const RunResult metrics = tree.vmastat({"--openmetrics", "--smaps", "7"});
  CHECK(metrics.out.find("vmem_lazyfree_bytes{class=\"anonymous\",kind=\"anon\"} 4096\n") !=
        std::string::npos);
  SystemModel old = system;
  old.processes[0].files.erase("smaps");
  for (const std::vector<std::string>& how : {std::vector<std::string>{"-J", "-o", "lazyfree"},
                                              {"-J", "--smaps"},
                                              {"--smaps"},
                                              {"--openmetrics", "--smaps"}}) {
    auto arguments = how;
    arguments.emplace_back("7");
    const RunResult less = Tree(old).vmastat(arguments);
    CHECK(less.status == 2);
    CHECK(less.err.find("lazyfree") != std::string::npos);
  }
  const RunResult without = tree.vmastat({"--openmetrics", "7"});
  CHECK(without.out.find("vmem_lazyfree_bytes{") == std::string::npos);
  CHECK(without.out.find("# TYPE vmem_lazyfree_bytes gauge\n") != std::string::npos);
}

TEST_CASE("nodes come from numa_maps where frames are not recorded") {
  SystemModel system = asked_system();
  system.manifest = "vmem-tree 1\npage_size 4096\npfn_access hidden\n";
  for (EntryRun& run : system.processes[0].entries) run.first &= ~0xffffULL, run.step = 0;
  const Tree tree(system);
  const RunResult nodes = tree.vmastat({"--noheadings", "-o", "nodes", "7"});
  CHECK(column(nodes) == std::vector<std::string>{"0=8.0K", "1=8.0K", "-", "-", "-"});
  CHECK(nodes.status == 0);
  CHECK(column(tree.vmastat({"--noheadings", "--by", "node", "-o", "node,rss", "7"})) ==
        std::vector<std::string>{"0     8.0K", "1     8.0K"});
}

TEST_CASE("why neighbours are not one mapping") {
  SystemModel system = asked_system();
  CHECK(column(Tree(system).vmastat({"--noheadings", "-o", "split", "7"})) ==
        std::vector<std::string>{"gap", "flags+hg-nh,policy", "name",
                                 "perms,file,flags-ac-hg,policy", "offset"});
  // Where VmFlags are not to be had, what else differs is told, and what they would tell is not.
  auto& smaps = system.processes[0].files["smaps"];
  system.processes[0].maps =
      "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n"
      "7f0000400000-7f0000800000 rw-p 00000000 00:00 0 \n"
      "7f0000800000-7f0000900000 r--p 00000000 00:00 0 \n";
  smaps.clear();
  const RunResult unknown = Tree(system).vmastat({"--noheadings", "-o", "split", "7"});
  CHECK(column(unknown) == std::vector<std::string>{"gap", "policy", "perms"});
  system.processes[0].files.erase("numa_maps");
  const RunResult nothing = Tree(system).vmastat({"--noheadings", "-o", "split", "7"});
  CHECK(column(nothing) == std::vector<std::string>{"gap", "-", "perms"});
  CHECK(nothing.status == 2);
  CHECK(nothing.err.find("split") != std::string::npos);
}

TEST_CASE("why a range is not on huge pages") {
  const std::string thp = "sys/kernel/mm/transparent_hugepage/";
  const auto words_of = [](const SystemModel& system, int status = 0) {
    const RunResult result = Tree(system).vmastat({"--noheadings", "-o", "thp", "7"});
    CHECK(result.status == status);
    return column(result);
  };
  using Words = std::vector<std::string>;
  SystemModel system = asked_system();
  CHECK(words_of(system) == Words{"nohugepage", "eligible", "untouched", "size", "size"});
  system.files[thp + "enabled"] = "[always] madvise never\n";
  CHECK(words_of(system) == Words{"nohugepage", "eligible", "untouched", "size", "size"});
  system.files[thp + "enabled"] = "always madvise [never]\n";
  CHECK(words_of(system) == Words{"nohugepage", "never", "never", "size", "size"});
  system.files[thp + "hugepages-2048kB/enabled"] = "[always] inherit madvise never\n";
  CHECK(words_of(system) == Words{"nohugepage", "eligible", "untouched", "size", "size"});
  system.files[thp + "hugepages-2048kB/enabled"] = "always inherit madvise [never]\n";
  CHECK(words_of(system) == Words{"nohugepage", "never", "never", "size", "size"});
  system = asked_system();
  system.processes[0].files["status"] = "Name:\tasked\nTgid:\t7\nTHP_enabled:\t0\n";
  CHECK(words_of(system) == Words{"nohugepage", "prctl", "prctl", "size", "size"});
  system = asked_system();
  auto& smaps = system.processes[0].files["smaps"];
  for (std::size_t at = 0; (at = smaps.find(" hg", at)) != std::string::npos;) smaps.erase(at, 3);
  CHECK(words_of(system) == Words{"nohugepage", "madvise", "madvise", "size", "size"});
  // Places that hold no aligned huge page, files, drivers, and what only the kernel knows.
  const auto one = [&](const std::string& line, const std::string& rest) {
    SystemModel single = asked_system();
    single.processes[0].maps = line;
    single.processes[0].entries.clear();
    single.processes[0].files["smaps"] = line + "Rss: 0 kB\n" + rest;
    return words_of(single).at(0);
  };
  CHECK(one("7f0000100000-7f0000380000 rw-p 00000000 00:00 0 \n",
            "THPeligible: 0\nVmFlags: rd wr hg\n") == "alignment");
  CHECK(one("7f0000000000-7f0000400000 r--p 00001000 08:01 7    /lib/a\n",
            "THPeligible: 0\nVmFlags: rd\n") == "offset");
  CHECK(one("7f0000000000-7f0000400000 r--p 00000000 08:01 7    /lib/a\n",
            "THPeligible: 0\nVmFlags: rd\n") == "file");
  CHECK(one("7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n",
            "THPeligible: 0\nVmFlags: rd wr hg\n") == "ineligible");
  CHECK(one("7f0000000000-7f0000400000 rw-s 00000000 00:05 3    /dev/mine\n",
            "VmFlags: rd wr sh io pf de dd\n") == "special");
  // Huge leaves are what is wanted.
  system = asked_system();
  system.processes[0].has_pagemap = false;
  system.processes[0].files["extents"] =
      "vmem-extents 1 pagemap\n7f0000400000 1024 pfn=0x200 bits=exclusive leaf=2097152\n"
      "7f0000800000 1 pfn=0x5000 bits=exclusive leaf=4096\nend\n";
  CHECK(words_of(system) == Words{"nohugepage", "huge", "eligible", "size", "size"});
  system.processes[0].files["extents"] =
      "vmem-extents 1 pagemap\n7f0000400000 512 pfn=0x200 bits=exclusive leaf=2097152\nend\n";
  CHECK(words_of(system).at(1) == "partly");
  // The whole report: words explained, settings, counters.
  const RunResult report = Tree(asked_system()).vmastat({"--thp", "7"});
  CHECK(report.status == 0);
  for (const char* text :
       {"nohugepage: madvise(MADV_NOHUGEPAGE)\n", "enabled=madvise defrag=madvise",
        "size 2.0M: enabled=inherit anon_fault_fallback=3\n", "max_ptes_none=511",
        "thp_fault_fallback=12"})
    CHECK(report.out.find(text) != std::string::npos);
  const auto document = Tree(asked_system()).json({"--thp", "7"});
  CHECK(document["thp"]["enabled"] == "madvise");
  CHECK(document["thp"]["sizes"][0]["stats"]["anon_fault_fallback"] == 3);
  CHECK(document["thp"]["counters"]["thp_fault_fallback"] == 12);
  CHECK(document["processes"][0]["thp_enabled"] == true);
}

TEST_CASE("a column that was named and cannot be told raises the status, whatever is missing") {
  const std::string names =
      "size mapped rss pss uss shared swap swap_pss pss_dirty accessed lazyfree locked hugetlb "
      "device "
      "uncounted extents largest nodes zero dirty flags folios policy split thp";
  const auto cell = [](const Tree& tree, const std::string& name) {
    const RunResult result = tree.vmastat({"--noheadings", "--bytes", "-o", name, "7"});
    return std::pair(lines(result.out), result.status);
  };
  const SystemModel whole = asked_system();
  const Tree whole_tree(whole);
  for (unsigned missing = 0; missing < 16; ++missing) {
    SystemModel system = whole;
    if ((missing & 1) != 0)
      for (FrameRun& run : system.frames) run.mapcount.reset();
    if ((missing & 2) != 0)
      for (FrameRun& run : system.frames) run.flags.reset();
    if ((missing & 4) != 0) system.processes[0].files.erase("smaps");
    if ((missing & 8) != 0) system.processes[0].files.erase("numa_maps");
    const Tree tree(system);
    for (const std::string& name : fields(names)) {
      INFO(name << ", missing: " << missing);
      const auto [rows, status] = cell(tree, name);
      const auto [whole_rows, whole_status] = cell(whole_tree, name);
      CHECK(whole_status == 0);
      REQUIRE(rows.size() == whole_rows.size());
      bool less = false;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        if (fields(rows[i]) == fields(whole_rows[i])) continue;
        less = true;
        // A word of `split` and `thp` may be another where fewer reasons are known, a number not.
        if (name != "split" && name != "thp")
          CHECK(fields(rows[i]) == std::vector<std::string>{"-"});
      }
      if (name != "split") CHECK(status == (less ? 2 : 0));
    }
  }
}

/// A perf ring, of which only page tables tell what it maps, and memory beside it.
SystemModel unseen_system() {
  const std::string memory = "7f0000000000-7f0000002000 rw-p 00000000 00:00 0 \n";
  const std::string ring =
      "7f0000800000-7f0000803000 rw-s 00000000 00:10 9                          "
      "anon_inode:[perf_event]\n";
  SystemModel system;
  system.manifest = full;
  ProcessModel process;
  process.pid = 7;
  process.maps = memory + ring;
  process.files["smaps"] = memory + "Rss: 8 kB\nPss: 8 kB\nVmFlags: rd wr mr mw me ac \n" + ring +
                           "Rss: 0 kB\nPss: 0 kB\nVmFlags: rd wr sh mr mw me ms pf dd \n";
  process.entries = {{.va = 0x7f0000000000,
                      .pages = 2,
                      .first = entry::present | entry::exclusive | 0x500,
                      .step = 1}};
  system.processes.push_back(process);
  system.frames = {{.first = 0x500, .frames = 2, .flags = 0x1828, .mapcount = 1, .memcg = {}}};
  return system;
}

TEST_CASE("what lies in a mapping that nobody could see is unknown, not nothing") {
  const Tree tree(unseen_system());
  for (const char* name : {"uncounted", "mapped", "leaf", "extents", "largest"}) {
    INFO(name);
    const RunResult result = tree.vmastat({"--noheadings", "-o", name, "7"});
    CHECK(result.status == 2);
    const auto rows = lines(result.out);
    REQUIRE(rows.size() == 2);
    CHECK(fields(rows[0]) != std::vector<std::string>{"-"});
    CHECK(fields(rows[1]) == std::vector<std::string>{"-"});
    CHECK(result.err.find("VM_PFNMAP") != std::string::npos);
  }
  for (const char* name : {"folios", "zero"}) {
    INFO(name);
    const RunResult result = tree.vmastat({"--noheadings", "-o", name, "7"});
    CHECK(result.status == 2);
    CHECK(fields(lines(result.out).at(1)) == std::vector<std::string>{"-"});
    CHECK(result.err.find("VM_PFNMAP") != std::string::npos);
  }
  // The kernel counts none of it.
  for (const char* name : {"rss", "pss", "uss", "device", "unseen", "size"})
    CHECK(tree.vmastat({"-o", name, "7"}).status == 0);
  const auto document = tree.json({"7"});
  const auto& ring = document["processes"][0]["vmas"][1];
  CHECK(ring["kind"] == "perf");
  CHECK(ring["uncounted"].is_null());
  CHECK(ring["mapped"].is_null());
  CHECK(ring["extents"].is_null());
  CHECK(ring["leaf"].is_null());
  CHECK(ring["rss"] == 0);
}

TEST_CASE("huge pages of the pool that no mapping shows are said, where hugetlb is shown") {
  SystemModel system = unseen_system();
  const std::string folder = "sys/kernel/mm/hugepages/hugepages-2048kB/";
  system.files[folder + "nr_hugepages"] = "16\n";
  system.files[folder + "free_hugepages"] = "14\n";
  system.files[folder + "resv_hugepages"] = "3\n";
  const Tree tree(system);
  const RunResult all = tree.vmastat({"-a", "--by", "kind", "-o", "hugetlb,name"});
  CHECK(all.status == 0);
  CHECK(all.err.find("huge pages: 4.0M of the pool is in use, and no process") !=
        std::string::npos);
  CHECK(all.err.find("6.0M of the pool is reserved") != std::string::npos);
  CHECK(tree.vmastat({"-a", "-o", "rss"}).err.empty());
  CHECK(tree.vmastat({"-o", "hugetlb", "7"}).err.empty());
  system.files[folder + "free_hugepages"] = "17\n";  // more than there are
  CHECK(Tree(system).vmastat({"-a", "-o", "hugetlb"}).err.empty());
  system.files[folder + "free_hugepages"] = "16\n";
  system.files[folder + "resv_hugepages"] = "0\n";
  CHECK(Tree(system).vmastat({"-a", "-o", "hugetlb"}).err.empty());
}

TEST_CASE("a process near vm.max_map_count is told, from nine tenths on") {
  SystemModel system = asked_system();
  for (const auto& [limit, near] : {std::pair{"6\n", false}, {"5\n", true}, {"4\n", true}}) {
    system.files["proc/sys/vm/max_map_count"] = limit;
    const Tree tree(system);
    const RunResult result = tree.vmastat({"7"});
    CHECK(result.status == 0);
    CHECK((result.err.find("has 5 of the") != std::string::npos) == near);
    CHECK(tree.json({"7"})["near_map_count"].size() == (near ? 1 : 0));
    const RunResult metrics = tree.vmastat({"--openmetrics", "7"});
    CHECK(metrics.out.find(std::string("\nvmem_max_map_count ") + limit) != std::string::npos);
    CHECK(metrics.out.find("\nvmem_mappings_max 5\n") != std::string::npos);
    CHECK(metrics.out.find("vmem_command_mappings_max{comm=\"asked\"} 5\n") != std::string::npos);
  }
  system.files.erase("proc/sys/vm/max_map_count");
  CHECK(Tree(system).json({"7"})["max_map_count"].is_null());
}

TEST_CASE("no name of a command breaks the metrics") {
  // Sixty commands; the most and the least of them called as the rest is, and hostile ones.
  const auto system = [](const std::vector<std::pair<int, std::string>>& called) {
    SystemModel all;
    all.manifest = full;
    for (int i = 1; i <= 60; ++i) {
      ProcessModel process;
      process.pid = 1000 + i;
      std::string comm = "cmd" + std::to_string(i);
      for (const auto& [which, name] : called)
        if (which == i) comm = name;
      process.files["comm"] = comm + "\n";
      process.maps = "7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \n";
      process.entries = {{0x7f0000000000, static_cast<std::uint64_t>(100 - i),
                          entry::present | entry::exclusive | static_cast<std::uint64_t>(i << 12),
                          1}};
      all.processes.push_back(process);
    }
    return all;
  };
  const std::string parse = R"(
import sys
try:
    from prometheus_client import parser
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
except ImportError as e:
    print(e); sys.exit(77)
raw = sys.stdin.buffer.read()
text = raw.decode("utf-8")
assert not [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160], "control characters"
samples = [s for m in strict(text) for s in m.samples]
assert [s.value for s in samples] == [s.value for m in parser.text_string_to_metric_families(text) for s in m.samples]
keys = [(s.name, tuple(sorted(s.labels.items()))) for s in samples]
assert len(set(keys)) == len(keys), [k for k in keys if keys.count(k) > 1]
assert not [s for s in samples if {"pid", "va", "address"} & set(s.labels)]
rss = [s for s in samples if s.name == "vmem_command_rss_bytes"]
print(len(rss), int(sum(s.value for s in rss)))
for s in rss[:4]: print(s.labels["comm"])
)";
  struct Case {
    std::vector<std::pair<int, std::string>> called;
    unsigned commands;
    std::vector<std::string> first;
  };
  const std::vector<Case> cases = {
      {{}, 51, {"cmd1", "cmd2"}},
      {{{1, "(other)"}}, 51, {"cmd2", "cmd3"}},
      {{{50, "(other)"}}, 51, {"cmd1", "cmd2"}},
      {{{60, "(other)"}}, 51, {"cmd1", "cmd2"}},
      {{{1, "\x1b[7m</scr"},
        {2,
         "a\xc2\x9b"
         "b\x7f"},
        {3, "\xff\"\\"},
        {4,
         "\xe2\x80\xae"
         "r"}},
       51,
       {"\\x1b[7m</scr", "a\\xc2\\x9bb\\x7f", "\\xff\"\\\\", "\\xe2\\x80\\xaer"}},
  };
  for (const Case& c : cases) {
    INFO((c.called.empty() ? "" : c.called[0].second));
    const RunResult metrics = Tree(system(c.called)).vmastat({"-a", "--openmetrics"});
    CHECK(metrics.err == "");
    RunOptions options;
    options.input = metrics.out;
    const RunResult parsed = run({"/usr/bin/python3", "-c", parse}, options);
    if (parsed.status == 77) return skip_or_fail("real", "prometheus_client: " + parsed.out);
    INFO(parsed.err);
    REQUIRE(parsed.status == 0);
    const auto said = lines(parsed.out);
    std::uint64_t bytes = 0;
    for (unsigned i = 1; i <= 60; ++i) bytes += 4096 * (100 - i);
    CHECK(said.at(0) == std::to_string(c.commands) + " " + std::to_string(bytes));
    for (std::size_t i = 0; i < c.first.size(); ++i) CHECK(said.at(i + 1) == c.first[i]);
  }
}

TEST_CASE("vmastat: one odd line of maps does not take the other mappings with it") {
  const SystemModel system{.manifest = full,
                           .processes = {{.pid = 1,
                                          .maps = "10000-12000 rw-p 00000000 00:00 0 \n"
                                                  "20000-20000 rw-p 00000000 00:00 0 \n"
                                                  "30000-31000 rw-p 00000000 00:00 0 [stack]\n",
                                          .entries = {{0x10000, 2, entry::present | 7, 1}}}}};
  const RunResult result = Tree(system).vmastat({"-o", "start,size,name", "--bytes", "1"});
  CHECK(result.status == 2);
  CHECK(result.err.find("line 2: an empty mapping: left out") != std::string::npos);
  const auto rows = lines(result.out);
  REQUIRE(rows.size() == 4);
  CHECK(fields(rows[1]) == std::vector<std::string>{"0x10000", "8192", "-"});
  CHECK(fields(rows[2]) == std::vector<std::string>{"0x30000", "4096", "[stack]"});
}

TEST_CASE("JSON: names that are no UTF-8 have their bytes beside them") {
  SystemModel system{.manifest = full,
                     .processes = {{.pid = 1,
                                    .maps = "10000-11000 r--p 00000000 07:00 9        /c\xff\n",
                                    .entries = {{0x10000, 1, entry::present | 7, 1}}}}};
  system.processes[0].files["comm"] = "p\xfe\n";
  const Tree tree(system);
  const auto comm = nlohmann::json::parse(tree.vmastat({"-J", "1"}).out)["processes"][0];
  CHECK(comm["comm_bytes"] == "70fe");
  const auto group =
      nlohmann::json::parse(tree.vmastat({"-J", "--by", "file", "1"}).out)["groups"][0];
  CHECK(group["key_bytes"] == "2f63ff");
  CHECK(group["file_bytes"] == "2f63ff");
  const auto process =
      nlohmann::json::parse(tree.vmastat({"-J", "--by", "process", "1"}).out)["groups"][0];
  CHECK(process["comm_bytes"] == "70fe");
  const TempDir directory;
  write_tree(system, directory / "tree");
  const auto check =
      nlohmann::json::parse(run_tool("mapcheck", {"--sysroot", (directory / "tree").string(), "-J",
                                                  "-e", "10000=any", "1"})
                                .out)["checks"][0];
  CHECK(check["comm_bytes"] == "70fe");
}
