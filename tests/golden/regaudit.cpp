// SPDX-License-Identifier: MIT
// regaudit on recorded systems: what users get wrong, what cannot be known, JSON and JUnit.
#include "support/catch.hpp"
#include "support/dpdk_files.hpp"
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
  check_refused(run_tool("regaudit", {"dpdk", "--dir", directory.string()}), "primary has ended");
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
