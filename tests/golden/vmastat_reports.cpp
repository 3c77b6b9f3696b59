// SPDX-License-Identifier: MIT
/// vmastat's reports in the programs that they are made for: Prometheus' parser and a browser.
#include <filesystem>
#include <fstream>

#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

const std::filesystem::path& scripts() {
  static const auto folder = fixtures_folder().parent_path() / "golden";
  return folder;
}

}  // namespace

TEST_CASE("OpenMetrics are understood by Prometheus' parsers") {
  const std::string parse = R"(
import sys
try:
    from prometheus_client import openmetrics, parser
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict
except ImportError as e:
    print(e); sys.exit(77)
text = sys.stdin.read()
new = [s for m in strict(text) for s in m.samples]
old = [s for m in parser.text_string_to_metric_families(text) for s in m.samples]
assert [(s.name, s.labels, s.value) for s in new] == [(s.name, s.labels, s.value) for s in old]
allowed = {"class", "kind", "leaf", "size", "node", "comm"}
assert all(set(s.labels) <= allowed for s in new), new
assert len({(s.name, tuple(s.labels.items())) for s in new}) == len(new)
print("rss", sum(int(s.value) for s in new if s.name == "vmem_rss_bytes"))
print("commands", sum(int(s.value) for s in new if s.name == "vmem_command_rss_bytes"))
)";
  for (const std::string line :
       {"--sysroot x86-64 --openmetrics 1042", "--sysroot arm64-64k --openmetrics 2001",
        "--sysroot hidden --openmetrics 300", "--sysroot device-window -a --openmetrics",
        "--sysroot hostile-names --openmetrics 666"}) {
    INFO(line);
    const RunResult metrics = run_tool("vmastat", words(line));
    RunOptions options;
    options.input = metrics.out;
    const RunResult parsed = run({"/usr/bin/python3", "-c", parse}, options);
    if (parsed.status == 77) return skip_or_fail("real", "prometheus_client: " + parsed.out);
    INFO(parsed.err);
    CHECK(parsed.status == 0);
    if (metrics.status != 0) continue;
    auto json_line = line;
    json_line.replace(json_line.find("--openmetrics"), 13, "-J --by class");
    const auto document = tool_json("vmastat", words(json_line));
    const std::string rss = document["totals"]["rss"].dump();
    CHECK(parsed.out == "rss " + rss + "\ncommands " + rss + "\n");
  }
}

TEST_CASE("the report works in a browser, from a file, for recorded systems") {
  const TempDir directory;
  for (const std::string line : {"--sysroot x86-64 1042", "--sysroot hostile-names 666",
                                 "--sysroot hidden 300", "--sysroot device-window 500"}) {
    INFO(line);
    const auto report = directory.path() / "report.html";
    auto arguments = words(line);
    arguments.insert(arguments.end(), {"--html", report.string()});
    const RunResult made = run_tool("vmastat", arguments);
    CHECK(made.out.empty());
    REQUIRE(std::filesystem::exists(report));
    const RunResult browsed =
        run({"/usr/bin/python3", (scripts() / "browse_report.py").string(), report.string()});
    if (browsed.status == 77) return skip_or_fail("real", "browser: " + browsed.out);
    INFO(browsed.out << browsed.err);
    CHECK(browsed.status == 0);
  }
}

TEST_CASE("a report is written whole or not at all, and names are no markup") {
  const TempDir directory;
  const auto report = directory.path() / "report.html";
  const RunResult made =
      run_tool("vmastat", {"--sysroot", "hostile-names", "666", "--html", report.string()});
  CHECK(made.status == 0);
  const std::string text = read_file(report);
  // The page's own script alone.
  CHECK(text.find("</script>") == text.rfind("</script>"));
  CHECK(text.find("/*DATA*/") == std::string::npos);
  for (const char* remote : {"http://", "https://", "src=", "@import", "url("})
    CHECK(text.find(remote) == std::string::npos);
  CHECK(!std::filesystem::exists(report.string() + ".part"));
  const RunResult nowhere =
      run_tool("vmastat", {"--sysroot", "x86-64", "1042", "--html", "/nonexistent/report.html"});
  CHECK(nowhere.status == 2);
  CHECK(error_form(nowhere.err, "vmastat").empty());
  const RunResult missing =
      run_tool("vmastat", {"--sysroot", "x86-64", "99", "--html", report.string()});
  CHECK(missing.status == 2);
  CHECK(read_file(report) == text);
}

TEST_CASE("the dashboard asks for metrics that there are") {
  const auto dashboard = nlohmann::json::parse(
      read_file(fixtures_folder().parent_path().parent_path() / "docs" / "vmastat-dashboard.json"));
  const RunResult metrics = run_tool("vmastat", words("--sysroot x86-64 --openmetrics 1042"));
  REQUIRE(metrics.status == 0);
  unsigned asked = 0;
  for (const auto& panel : dashboard["panels"]) {
    for (const auto& target : panel["targets"]) {
      const std::string query = target["expr"];
      for (std::size_t at = query.find("vmem_"); at != std::string::npos;
           at = query.find("vmem_", at + 1)) {
        const std::string name = query.substr(at, query.find('{', at) - at);
        INFO(name);
        CHECK(metrics.out.find("# TYPE " + name + " gauge\n") != std::string::npos);
        ++asked;
      }
    }
  }
  CHECK(asked > 9);
}

TEST_CASE("a report goes through links, into pipes, and is never half an old one") {
  const TempDir directory;
  const auto file = directory / "real", link = directory / "link",
             dangling = directory / "dangling";
  write_file(file, "old");
  std::filesystem::permissions(file, std::filesystem::perms{0640});
  std::filesystem::create_symlink("real", link);
  std::filesystem::create_symlink("nowhere", dangling);
  const auto report = [&](const std::string& to) {
    return run_tool("vmastat",
                    {"--sysroot", (expanded_fixtures() / "x86-64").string(), "--html", to, "1042"});
  };
  CHECK(report(link.string()).status == 0);
  CHECK(std::filesystem::is_symlink(link));
  CHECK(read_file(file).ends_with("</html>\n"));
  CHECK(std::filesystem::status(file).permissions() == std::filesystem::perms{0640});
  CHECK(report(dangling.string()).status == 0);
  CHECK(read_file(directory / "nowhere").ends_with("</html>\n"));
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 4);
  const RunResult both = report("/dev/stdout");
  CHECK(both.status == 0);
  CHECK(both.out.find("<!doctype html>") != std::string::npos);
  const RunResult full = report("/dev/full");
  CHECK(full.status == 2);
  CHECK(full.err == "vmastat: writing output: /dev/full: No space left on device\n");
}
