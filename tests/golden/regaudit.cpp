// SPDX-License-Identifier: MIT
// regaudit on recorded systems: what users get wrong, what cannot be known, JSON and JUnit.
#include <unistd.h>

#include "support/catch.hpp"
#include "support/dpdk_files.hpp"
#include "support/recorded.hpp"
#include "support/require.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

RunResult ranges(const std::string& arguments, const std::string& input) {
  RunOptions options;
  options.input = input;
  return run_tool("regaudit", words("ranges " + arguments + " -"), options);
}

void check_refused(const RunResult& result, const std::string& why) {
  CAPTURE(result.out, result.err);
  CHECK(result.signal == 0);
  CHECK(result.status == 2);
  CHECK(result.out.empty());
  CHECK(error_form(result.err, "regaudit") == "");
  CHECK(result.err.find(why) != std::string::npos);
}

}  // namespace

TEST_CASE("regaudit: command lines that mean nothing") {
  const auto refused = [](const std::string& line, const std::string& why) {
    check_refused(run_tool("regaudit", words(line)), why);
  };
  refused("", "what to audit is missing");
  refused("junk", "nothing that can be audited");
  refused("--junk", "--junk");
  refused("dpdk 1", "takes no operand");
  refused("dpdk --prefix a --dir b", "exclude each other");
  refused("ranges --prefix a 1 -", "belong to dpdk");
  refused("ranges", "TARGET is missing");
  refused("ranges --sysroot x86-64 1042", "one FILE");
  refused("ranges --sysroot x86-64 1042 nonexistent", "No such file");
  refused("plan --sysroot x86-64 1042", "RANGE is missing");
  refused("plan --sysroot x86-64 1042 7f00", "not a range");
  refused("plan --sysroot x86-64 1042 [nothing]", "no mapping");
  refused("plan --sysroot x86-64 999999 [heap]", "no such process");
  refused("rdma --sysroot x86-64 1042", "no netlink");
  refused("dpdk --sysroot x86-64", "no DPDK primary");
  refused("dpdk --dir nonexistent", "No such file");
}

TEST_CASE("regaudit ranges: lines that are none, with the number of the line") {
  const auto refused = [](const std::string& input, const std::string& why) {
    check_refused(ranges("--sysroot x86-64 1042", input), why);
  };
  refused("", "no range");
  refused("# only a comment\n\n", "no range");
  refused("1000 4096\njunk\n", "stdin:2");
  refused("1000\n", "not VA LEN");
  refused("1000 4096 a b\n", "not VA LEN");
  refused("1000 -5\n", "stdin:1");
  refused("1000 0\n", "stdin:1");
  refused("ffffffffffffffff 4096\n", "stdin:1");
  refused("1000 " + std::string(5 << 20, '9') + "\n", "too long");
  refused(std::string("1000 4096\n\0\n", 12), "stdin:2");
}

TEST_CASE("regaudit: hidden PFNs are unknown, exit 2, and no number stands in their place") {
  const RunResult result = ranges("-J --sysroot hidden 300", "55d0c1f3a000 4096 heap\n");
  CAPTURE(result.out, result.err);
  CHECK(result.status == 2);
  CHECK(error_form(result.err, "regaudit") == "");
  const auto document = nlohmann::ordered_json::parse(result.out);
  const auto& r = document["registrations"][0];
  CHECK(document["host"]["pfn_access"] == "hidden");
  CHECK(r["extents"].is_null());
  CHECK(r["best_page_size"].is_null());
  CHECK(r["node"].is_null());
  CHECK(r["verdict"] == "unknown");
  REQUIRE_FALSE(r["unknown"].empty());
  CHECK(r["unknown"][0]["pages"][0]["pfn"].is_null());
}

TEST_CASE("regaudit: JUnit is written whole, and says what JSON says") {
  const TempDir directory;
  const std::string file = (directory / "result.xml").string();
  const RunResult result =
      run_tool("regaudit", {"plan", "--sysroot", "x86-64", "--junit", file, "1042", "[heap]"});
  CAPTURE(result.out, result.err);
  CHECK(result.status != -1);
  const std::string xml = read_file(file);
  CHECK(xml.starts_with("<?xml"));
  CHECK(xml.ends_with("</testsuites>\n"));
  CHECK(xml.find("name=\"[heap]\"") != std::string::npos);
  const RunResult full = run_tool(
      "regaudit", {"plan", "--sysroot", "x86-64", "--junit", "/dev/full", "1042", "[heap]"});
  CHECK(full.status == 2);
  CHECK(full.err.find("/dev/full") != std::string::npos);
}

TEST_CASE("regaudit dpdk: files of nobody's, and hostile ones, are refused in a line") {
  const TempDir directory;
  for (const auto& [name, content] : dpdk_files(2, 0x40000000, 0x200000).files())
    write_file(directory / name, content);
  check_refused(run_tool("regaudit", {"dpdk", "--dir", directory.string()}), "uses these files");
  write_file(directory / "config", std::string(25344, '\xff'));
  check_refused(run_tool("regaudit", {"dpdk", "--dir", directory.string()}), "no magic number");
  check_refused(run_tool("regaudit", {"dpdk", "--dir", directory.string()}),
                directory.string() + "/config: ");
  DpdkFiles other = dpdk_files(1, 0, 0);
  other.version = 0x18000063;
  write_file(directory / "config", other.files()["config"]);
  check_refused(run_tool("regaudit", {"dpdk", "--dir", directory.string()}),
                "layout of this version");
  check_refused(run_tool("regaudit", {"dpdk", "--dir", directory.string()}), ": DPDK 24.00.0");
}

namespace {

/// A recorded process with 16 MiB from 7f0000000000 on, of which `holes` (in MiB, each of one) are
/// not mapped; pages as pagemap `runs` say.
struct Tree {
  TempDir directory;
  explicit Tree(const std::vector<int>& holes, std::vector<EntryRun> runs = {},
                const std::string& flags = "rd wr mr mw me ac dc",
                const std::map<std::string, std::string>& files = {}) {
    constexpr std::uint64_t base = 0x7f0000000000, mega = 1 << 20;
    SystemModel system;
    system.manifest = "vmem-tree 1\npage_size 4096\npfn_access full\n";
    ProcessModel process{.pid = 1};
    std::string smaps;
    std::uint64_t from = base;
    const auto map_to = [&](std::uint64_t to) {
      if (to > from) {
        char line[80];
        (void)std::snprintf(line, sizeof line, "%llx-%llx rw-p 00000000 00:00 0 \n",
                            static_cast<unsigned long long>(from),
                            static_cast<unsigned long long>(to));
        process.maps += line;
        smaps += line + std::string("VmFlags: ") + flags + " \n";
      }
    };
    for (const int hole : holes) {
      map_to(base + static_cast<std::uint64_t>(hole) * mega);
      from = base + static_cast<std::uint64_t>(hole + 1) * mega;
    }
    map_to(base + 16 * mega);
    process.entries = std::move(runs);
    process.files = {{"comm", "app\n"},
                     {"smaps", smaps},
                     {"limits", "Max locked memory  unlimited  unlimited  bytes\n"},
                     {"status", "VmPin:\t0 kB\nVmLck:\t0 kB\nCapEff:\t0\n"}};
    system.processes.push_back(std::move(process));
    system.frames = {{.first = 0, .frames = 1 << 16, .flags = 0x1000}};
    system.files = files;
    write_tree(system, directory.path());
  }
  RunResult plan(const std::string& range, std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"plan", "--sysroot", directory.string(), "1", range};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_tool("regaudit", arguments);
  }
};

constexpr std::uint64_t there = entry::present | entry::exclusive | 0x1000;

bool says(const RunResult& result, const std::string& text) {
  return result.out.find(text) != std::string::npos;
}

}  // namespace

TEST_CASE("regaudit plan: of a hole, a guard and a lost page it says what to register instead") {
  const Tree hole({2});
  const RunResult first = hole.plan("7f0000200000+8M");
  CAPTURE(first.out, first.err);
  CHECK(first.status == 1);
  CHECK(says(first,
             "no memory is mapped at 0x7f0000200000+1M: map it, or register 0x7f0000300000+7M\n"));
  CHECK_FALSE(says(first, "deregister"));
  CHECK(says(first, "at most; as it is, it cannot be registered"));
  CHECK_FALSE(says(first, "not in memory yet"));
  // What it names can be registered; JSON says the same.
  CHECK(hole.plan("0x7f0000300000+7M").status == 0);
  const auto document = nlohmann::ordered_json::parse(hole.plan("7f0000200000+8M", {"-J"}).out);
  CHECK(document["registrations"][0]["findings"][0]["advice"] ==
        "no memory is mapped at 0x7f0000200000+1M: map it, or register 0x7f0000300000+7M");
  const Tree two({2, 9});
  CHECK(says(two.plan("7f0000000000+16M"),
             "at 0x7f0000200000+1M and 1 more place: map it, or "
             "register 0x7f0000300000+6M"));
  CHECK(says(two.plan("7f0000200000+1M"), "no memory is mapped at 0x7f0000200000+1M: map it\n"));

  const Tree guard({}, {{0x7f0000000000, 1, entry::guard_page, 0}, {0x7f0000001000, 15, there, 1}});
  const RunResult front = guard.plan("7f0000000000+64K");
  CAPTURE(front.out);
  CHECK(says(front, "leave the guard out: register from 0x7f0000001000, as 0x7f0000001000+60K\n"));
  CHECK_FALSE(says(front, "dma-buf"));
  CHECK(guard.plan("0x7f0000001000+60K").status == 0);
  const Tree behind({},
                    {{0x7f0000000000, 15, there, 1}, {0x7f000000f000, 1, entry::guard_page, 0}});
  CHECK(
      says(behind.plan("7f0000000000+64K"), "leave the guard out: register 0x7f0000000000+60K\n"));

  // A guard and a hole at once: what is named has neither.
  const Tree both({2}, {{0x7f0000100000, 1, entry::guard_page, 0}});
  const RunResult neither = both.plan("7f0000000000+16M");
  CAPTURE(neither.out);
  CHECK(says(neither, "map it, or register 0x7f0000300000+13M"));
  CHECK(says(neither, "leave the guard out: register 0x7f0000300000+13M"));
  // Pages that are to come are spoken of where they are.
  CHECK(says(behind.plan("7f0000100000+64K"), "at most; not all pages are in memory yet"));
}

TEST_CASE("regaudit: advice is for the command that found it") {
  const Tree tree({2});
  RunOptions options;
  options.input = "7f0000200000 1M x\n";
  const std::vector<std::string> arguments{"ranges", "--sysroot", tree.directory.string(), "1",
                                           "-"};
  CHECK(says(run_tool("regaudit", arguments, options), "deregister before unmapping"));
  options.input = "7f0000000000 1M x\n";
  CHECK(says(run_tool("regaudit", arguments, options), "touch the pages before use"));
  CHECK(says(tree.plan("7f0000000000+1M"), "registering brings these pages in"));
  const Tree device({}, {}, "rd wr mr mw me pf io");
  CHECK(says(device.plan("7f0000000000+1M"), "dma-buf"));
}

TEST_CASE("regaudit: what a recording does not hold is said, in text and JSON") {
  const Tree tree({}, {{0x7f0000000000, 16, there, 1}});
  const RunResult text = tree.plan("7f0000000000+64K");
  CAPTURE(text.out, text.err);
  CHECK(text.status == 0);
  CHECK(says(text, "not told by this system: cma, movable, nodes\n"));
  const auto document = nlohmann::ordered_json::parse(tree.plan("7f0000000000+64K", {"-J"}).out);
  CHECK(document["not_told"] == nlohmann::ordered_json::array({"cma", "movable", "nodes"}));
  CHECK(document["registrations"][0]["nodes"].is_null());
  CHECK(document["registrations"][0]["node"].is_null());
  CHECK(document["stopped"].is_null());
  // All of it told: one node, its memory by the list of RAM.
  const Tree all({}, {{0x7f0000000000, 16, there, 1}}, "rd wr mr mw me ac dc",
                 {{"proc/zoneinfo", "Node 0, zone   Normal\n"},
                  {"proc/meminfo", "CmaTotal:       0 kB\n"},
                  {"proc/iomem", "00000000-0fffffff : System RAM\n"},
                  {"sys/devices/system/node/node0/cpulist", "0\n"}});
  const auto whole = nlohmann::ordered_json::parse(all.plan("7f0000000000+64K", {"-J"}).out);
  CHECK(whole["not_told"].empty());
  CHECK(whole["registrations"][0]["node"] == 0);
  CHECK(whole["registrations"][0]["nodes"]["0"] == 64 << 10);
  CHECK_FALSE(says(all.plan("7f0000000000+64K"), "not told"));
}

TEST_CASE("regaudit: what could not be told is said on stderr, too") {
  // Nothing tells of the frames; and of the second range that it is not there.
  const Tree tree({2}, {{0x7f0000000000, 16, there, 1}}, "rd wr mr mw me ac dc",
                  {{"proc/zoneinfo", "nothing of zones\n"}});
  const RunResult unknown = tree.plan("7f0000000000+64K");
  CAPTURE(unknown.out, unknown.err);
  CHECK(unknown.status == 2);
  CHECK(unknown.err ==
        "regaudit: 1 of 1 registrations could not be audited in full: zone-unknown\n");
  CHECK(tree.plan("7f0000000000+64K", {"-J"}).err == unknown.err);
  const RunResult failed = tree.plan("7f0000000000+3M");
  CHECK(failed.status == 1);
  CHECK(failed.err == unknown.err);
}

TEST_CASE("regaudit: addresses that no process can have are questioned, not answered") {
  const auto refused = [](const std::string& line, const std::string& why) {
    check_refused(ranges("--sysroot x86-64 1042", line), why);
  };
  refused("1000 4096\n140462249738240 2097152 mr0\n",
          "stdin:2: 140462249738240: not a user address; addresses are hexadecimal: 0x7fbfea800000 "
          "is 140462249738240");
  refused("ffff888000000000 2M direct-map\n", "it is the kernel's");
  refused("0xffffffff81000000 2M text\n", "it is the kernel's");
  const auto plan = [](const std::string& range, const std::string& why) {
    check_refused(run_tool("regaudit", {"plan", "--sysroot", "x86-64", "1042", range}), why);
  };
  plan("140462249738240+2M", "0x7fbfea800000 is 140462249738240");
  plan("140462249738240-140462249742336", "0x7fbfea800000 is 140462249738240");
  plan("ffff888000000000+2M", "it is the kernel's");
}

TEST_CASE("regaudit ranges: a long list is audited in parts, of one limit and one document") {
  // Two parts; the limit is passed in the second.
  const Tree tree({}, {{0x7f0000000000, 16, there, 1}});
  write_file(tree.directory / "proc/1/limits", "Max locked memory  83967999  83967999  bytes\n");
  std::string lines;
  for (int i = 0; i < 21000; ++i) lines += "7f0000000000 4K\n";
  const std::string file = (tree.directory / "lines").string();
  write_file(file, lines);
  const auto run_with = [&](const std::string& how) {
    return run_tool("regaudit", {"ranges", how, "--sysroot", tree.directory.string(), "1", file});
  };
  const RunResult json = run_with("--json");
  CHECK(json.status == 1);
  const auto document = nlohmann::ordered_json::parse(json.out);
  REQUIRE(document["registrations"].size() == 21000);
  CHECK(document["summary"]["registrations"] == 21000);
  CHECK(document["summary"]["error"] == 501);  // 83,968,000 bytes are 20,500 of them
  CHECK(document["registrations"][20498]["verdict"] == "clean");
  CHECK(document["registrations"][20499]["verdict"] == "error");
  CHECK(document["processes"].size() == 1);
  const RunResult text = run_with("--output=va");
  CHECK(text.status == 1);
  CHECK(text.out.starts_with("VA\n"));
  CHECK(text.out.find("\nVA\n") == std::string::npos);  // one heading
  CHECK(says(text, "21000 registrations, 82.0M: 20499 clean, 0 with warnings, 501 with errors"));
  // A line that is none, in the second part: what was answered stands, and is not all.
  write_file(file, lines + "junk\n");
  const RunResult broken = run_with("--json");
  CHECK(broken.status == 2);
  CHECK(error_form(broken.err, "regaudit") == "");
  CHECK(broken.err.find(":21001: not VA LEN [KEY]") != std::string::npos);
  const auto part = nlohmann::ordered_json::parse(broken.out);
  CHECK(part["summary"]["registrations"] == 20000);
  CHECK(part["stopped"].get<std::string>().find(":21001: ") != std::string::npos);
}

TEST_CASE(
    "regaudit: capabilities that it does not read with are dropped; trace's command keeps its "
    "own") {
  const auto permitted = [](const std::string& text) {
    const std::size_t at = text.find("CapPrm:");
    return at == std::string::npos ? ~0ULL : std::stoull(text.substr(at + 7), nullptr, 16);
  };
  const RunResult own = run({"grep", "CapPrm", "/proc/self/status"});
  if (permitted(own.out) >> 21 == 0) return;  // CAP_SYS_ADMIN, or nothing to drop
  const TempDir directory;
  RunOptions options;
  options.directory = directory.string();
  // Opening the FIFO waits until regaudit reads it: by then it has dropped what it drops.
  const RunResult kept = run({"sh", "-c",
                              "mkfifo lines && { " + tool_path("regaudit") +
                                  " ranges self lines 2>/dev/null & exec 3>lines; "
                                  "grep CapPrm /proc/$!/status; exec 3>&-; wait; }"},
                             options);
  CAPTURE(kept.out, kept.err);
  // CAP_CHOWN, CAP_KILL, CAP_SETUID, CAP_NET_ADMIN, CAP_SYS_MODULE
  constexpr std::uint64_t never = 1 << 0 | 1 << 5 | 1 << 7 | 1 << 12 | 1 << 16;
  CHECK((permitted(kept.out) & never) == 0);
  CHECK((permitted(kept.out) >> 21 & 1) == (permitted(own.out) >> 21 & 1));
  const RunResult traced =
      run_tool("regaudit", {"trace", "--", "grep", "CapPrm", "/proc/self/status"});
  CHECK(permitted(traced.out) == permitted(own.out));
}

TEST_CASE("a container's root, who may not trace, reads processes with capabilities like its own") {
  if (run({"setpriv", "--version"}).status != 0 || geteuid() != 0)
    return skip_or_fail("pfn", "needs root, and setpriv");
  const std::string dropped = "-sys_ptrace,-sys_admin,-perfmon";
  for (const char* const tool : {"vtop", "vmastat", "mapcheck", "regaudit"}) {
    const std::string how = std::string_view(tool) == "regaudit"   ? "plan $! 1000+4K"
                            : std::string_view(tool) == "mapcheck" ? "--auto $!"
                                                                   : "$!";
    const RunResult result = run({"setpriv", "--bounding-set", dropped, "--inh-caps", dropped, "sh",
                                  "-c", "sleep 60 & " + tool_path(tool) + " " + how + "; kill $!"});
    CAPTURE(tool, result.out, result.err);
    CHECK(result.err.find("Permission denied") == std::string::npos);
  }
}

TEST_CASE("regaudit plan: all of the address space is counted, to the last page") {
  const RunResult result =
      run_tool("regaudit", {"plan", "-J", "--sysroot", "x86-64", "1042", "0-ffffffffffffffff"});
  CAPTURE(result.err);
  CHECK(result.status == 1);
  const auto plan = nlohmann::ordered_json::parse(result.out)["plan"];
  CHECK(plan["pages"] == std::uint64_t{1} << 52);
  CHECK(plan["pinned_bytes"] == UINT64_MAX);
  CHECK(plan["verdict"] == "would fail");
}

TEST_CASE("regaudit trace: a program that cannot be recorded is said to be one, and run") {
  const TempDir directory;
  // An ELF file without an interpreter. It does not run, but it is asked about first.
  std::string elf("\177ELF\2\1\1", 7);
  elf.resize(64);
  write_file(directory / "static", elf);
  std::filesystem::permissions(directory / "static", std::filesystem::perms::owner_all);
  const std::string program = (directory / "static").string();
  const RunResult bad = run_tool("regaudit", {"trace", "--", program});
  CAPTURE(bad.err);
  CHECK(bad.err.starts_with("regaudit: " + program + ": it is statically linked"));
  const RunResult good = run_tool("regaudit", {"trace", "--", "sh", "-c", "exit 7"});
  CAPTURE(good.err);
  CHECK(good.status == 7);
  CHECK(good.err.empty());
}

TEST_CASE("regaudit: one odd line of maps is said, and hides nothing else") {
  SystemModel system = one_process(
      "10000-12000 rw-p 00000000 00:00 0 \n"
      "20000-20800 rw-p 00000000 00:00 0 \n"
      "30000-31000 rw-p 00000000 00:00 0 [stack]\n",
      {{.va = 0x10000, .pages = 2, .first = entry::present | entry::exclusive | 7, .step = 1}});
  system.processes[0].files["smaps"] =
      "10000-12000 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac dc\n";
  system.processes[0].files["limits"] =
      "Limit                     Soft Limit           Hard Limit           Units\n"
      "Max locked memory         unlimited            unlimited            bytes\n";
  system.frames = {{.first = 7, .frames = 2, .flags = 1 << 12, .mapcount = 1}};
  const Recorded tree{system};
  const auto with = [&](const std::string& input) {
    return ranges("-J --sysroot " + tree.directory().string() + " 1", input);
  };
  const RunResult result = with("10000 8K good\n1f000 12K beside\n50000 4K none\n");
  INFO(result.out << result.err);
  CHECK(result.status == 1);
  CHECK(result.err.find("line 2: a mapping that is not aligned to pages: left out") !=
        std::string::npos);
  const auto document = nlohmann::json::parse(result.out);
  CHECK(document["error"].get<std::string>().ends_with(": left out"));
  const auto& all = document["registrations"];
  CHECK(all[0]["verdict"] == "clean");
  // Of the page that the line names nothing is known; of its neighbours it is.
  CHECK(all[1]["verdict"] == "error");
  CHECK(all[1]["findings"][0]["kind"] == "unmapped");
  CHECK(all[1]["findings"][0]["runs"] == 2);
  CHECK(all[1]["unknown"][0]["kind"] == "unseen");
  CHECK(all[1]["unknown"][0]["va"] == "0x20000");
  CHECK(all[1]["unknown"][0]["bytes"] == 4096);
  CHECK(all[2]["findings"][0]["kind"] == "unmapped");

  const RunResult good = with("10000 8K good\n");
  INFO(good.out << good.err);
  CHECK(good.status == 2);
  CHECK(nlohmann::json::parse(good.out)["registrations"][0]["verdict"] == "clean");
  CHECK(with("20000 4K\n").status == 2);
  const RunResult named =
      run_tool("regaudit", {"plan", "--sysroot", tree.directory().string(), "1", "[stack]"});
  INFO(named.out << named.err);
  CHECK(named.status == 2);
  CHECK(named.err.find("left out") != std::string::npos);

  // Another file that cannot be read: its line beside that of what could not be audited, and 2.
  SystemModel model = system;
  model.processes[0].maps = "10000-12000 rw-p 00000000 00:00 0 \n";
  model.processes[0].files["smaps"] = "hello\n";
  const Recorded unread{model};
  const RunResult flagless =
      ranges("-J --sysroot " + unread.directory().string() + " 1", "10000 8K good\n");
  INFO(flagless.out << flagless.err);
  CHECK(flagless.status == 2);
  const std::size_t second = flagless.err.find('\n') + 1;
  CHECK(error_form(flagless.err.substr(0, second), "regaudit") == "");
  CHECK(error_form(flagless.err.substr(second), "regaudit") == "");
  CHECK(flagless.err.find("/proc/1/smaps: ", second) != std::string::npos);
  CHECK(nlohmann::json::parse(flagless.out)["error"].get<std::string>().find("smaps") !=
        std::string::npos);

  // Where it is no line of maps at all, any gap may be what it stands for.
  system.processes[0].maps = "10000-12000 rw-p 00000000 00:00 0 \nhello\n";
  const Recorded wild{system};
  const RunResult gap = ranges("-J --sysroot " + wild.directory().string() + " 1", "50000 4K\n");
  INFO(gap.out << gap.err);
  CHECK(gap.status == 2);
  CHECK(nlohmann::json::parse(gap.out)["registrations"][0]["verdict"] == "unknown");
}

TEST_CASE("regaudit: JSON says where VmFlags come from, of a running system") {
  const auto host = [](const std::vector<std::string>& arguments) {
    const RunResult result = run_tool("regaudit", arguments);
    CAPTURE(result.out, result.err);
    return nlohmann::json::parse(result.out)["host"];
  };
  const auto live = host({"plan", "-J", "self", "[stack]"});
  REQUIRE(live.contains("vm_flags"));
  CHECK((live["vm_flags"] == "smaps" || live["vm_flags"] == "bpf"));
  CHECK_FALSE(host({"plan", "-J", "--sysroot", "x86-64", "1042", "[heap]"}).contains("vm_flags"));
}
