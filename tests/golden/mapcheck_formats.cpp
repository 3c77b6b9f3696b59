// SPDX-License-Identifier: MIT
/// JUnit against a schema, and OpenMetrics and the text that node-exporter reads against the
/// parsers of Prometheus' own client.
#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

/// Passing, failing, unverified and skipped checks, under names that want quoting.
const char* const looks[] = {
    "--sysroot device-window -e /dev/mixed0=0x90000000+16K -e /dev/mixed0=0x90000000+16K -e "
    "nix=any "
    "-e <&\">'\\n*=any,optional -e \\\"*\\\"=any -e 7f1040000000=any,sparse 500",
    "--sysroot hostile-names -e *=any,sparse 666", "--sysroot hostile-names --auto 666",
    "--sysroot device-window --auto --all", "--sysroot x86-64 --auto 1042"};

RunResult python(const std::string& code, const std::string& input) {
  RunOptions options;
  options.input = input;
  return run({"/usr/bin/python3", "-c", code}, options);
}

}  // namespace

TEST_CASE("mapcheck: JUnit is as its readers want it") {
  const auto schema = (fixtures_folder().parent_path() / "golden" / "junit.xsd").string();
  if (run({"/bin/sh", "-c", "command -v xmllint"}).status != 0)
    return skip_or_fail("formats", "no xmllint (libxml2-utils)");
  const TempDir directory;
  for (const char* const look : looks) {
    CAPTURE(look);
    const auto file = (directory / "result.xml").string();
    auto arguments = words(look);
    arguments.insert(arguments.end(), {"--junit", file});
    const RunResult beside = run_tool("mapcheck", arguments);
    CHECK(beside.signal == 0);
    const RunResult valid = run({"xmllint", "--noout", "--nonet", "--schema", schema, file});
    INFO(valid.err);
    CHECK(valid.status == 0);
    // The same on stdout, and nothing else there.
    arguments.back() = "-";
    CHECK(run_tool("mapcheck", arguments).out == read_file(file));
  }
  // The schema does refuse.
  write_file(directory / "bad.xml", "<testsuites><testsuite name='x'/></testsuites>");
  CHECK(run({"xmllint", "--noout", "--schema", schema, (directory / "bad.xml").string()}).status !=
        0);
}

TEST_CASE("mapcheck: OpenMetrics is as Prometheus reads it") {
  if (python("import prometheus_client.openmetrics.parser", "").status != 0)
    return skip_or_fail("formats", "no python3-prometheus-client");
  for (const char* const look : looks) {
    CAPTURE(look);
    auto arguments = words(look);
    arguments.emplace_back("--openmetrics");
    const RunResult result = run_tool("mapcheck", arguments);
    for (const char* const parser :
         {"prometheus_client.openmetrics.parser", "prometheus_client.parser"}) {
      CAPTURE(parser);
      const RunResult parsed =
          python("import sys, " + std::string(parser) +
                     " as p\n"
                     "text = sys.stdin.buffer.read().decode('utf-8')\n"
                     "seen = set()\n"
                     "for family in p.text_string_to_metric_families(text):\n"
                     "  assert family.type == 'gauge', family\n"
                     "  for s in family.samples:\n"
                     "    key = (s.name, tuple(sorted(s.labels.items())))\n"
                     "    assert key not in seen, key\n"
                     "    seen.add(key)\n"
                     "assert any(name == 'vmem_mapcheck_checks' for name, _ in seen)\n",
                 result.out);
      INFO(result.out << parsed.err);
      CHECK(parsed.status == 0);
    }
  }
}
