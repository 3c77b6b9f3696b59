// SPDX-License-Identifier: MIT
// The scripts of docs/rdma-dpdk.md: each makes its trouble, and fails unless regaudit says what the
// page says.
#include <algorithm>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/require.hpp"
#include "support/tool.hpp"

using namespace vmem::test;
namespace fs = std::filesystem;

TEST_CASE("docs/rdma-dpdk: each of the ten troubles is found") {
  if (geteuid() != 0 || !shown_pfns()) return skip_or_fail("pfn", "they need root");
  const fs::path folder =
      fs::path(VMEM_FIXTURES_PATH).parent_path().parent_path() / "docs/rdma-dpdk";
  std::vector<fs::path> scripts;
  for (const auto& file : fs::directory_iterator(folder)) {
    if (std::isdigit(static_cast<unsigned char>(file.path().filename().string()[0])) != 0)
      scripts.push_back(file.path());
  }
  std::ranges::sort(scripts);
  REQUIRE(scripts.size() == 10);
  const MachineLock lock;  // some change its settings
  RunOptions options;
  options.environment = {"REGAUDIT=" + fs::absolute(tool_path("regaudit")).string(),
                         "PYTHONDONTWRITEBYTECODE=1"};
  options.timeout = std::chrono::seconds(120);
  std::string cannot;
  for (const fs::path& script : scripts) {
    const RunResult result = run({"python3", script.string()}, options);
    CAPTURE(script, result.out, result.err);
    CHECK((result.status == 0 || result.status == 77));
    if (result.status == 77) cannot += " " + script.filename().string();
  }
  if (!cannot.empty()) skip_or_fail("real", "this machine cannot show" + cannot);
}
