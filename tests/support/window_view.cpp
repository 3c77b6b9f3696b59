// SPDX-License-Identifier: MIT
#include "support/window_view.hpp"

#include <unistd.h>

#include <bit>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <utility>

#include "support/catch.hpp"
#include "support/require.hpp"
#include "support/tool.hpp"

namespace vmem::test {
namespace {

constexpr std::uint64_t page = 4096;

std::string hex(std::uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

Process process_of(pid_t pid) {
  auto root = SysRoot::live();
  REQUIRE(root);
  auto process = root->process(pid);
  REQUIRE(process);
  return std::move(*process);
}

/// Extents may be cut where runs are not: where leaf size or permissions change.
void add(std::vector<Run>& runs, Run run) {
  if (!runs.empty()) {
    Run& last = runs.back();
    const bool follows = run.physical && last.physical
                             ? *run.physical == *last.physical + last.bytes
                             : !run.physical && !last.physical;
    if (follows && last.cache == run.cache) {
      last.bytes += run.bytes;
      return;
    }
  }
  runs.push_back(std::move(run));
}

std::uint64_t number(const nlohmann::json& text) {
  return std::stoull(text.get<std::string>(), nullptr, 16);
}

}  // namespace

bool works(Backend backend) {
  const auto translator = open_translator(process_of(getpid()), backend);
  if (translator) return true;
  const std::string name(to_string(backend));
  INFO(to_string(translator.error()));
  CHECK_FALSE(required(name.c_str()));
  CHECK(translator.error().hint != nullptr);
  return false;
}

std::vector<Run> seen_by(Backend backend, pid_t pid, std::uint64_t start, std::uint64_t bytes) {
  const Process process = process_of(pid);
  const auto translator = open_translator(process, backend);
  if (!translator) FAIL(to_string(translator.error()));
  VmaInspector inspector(process);
  std::vector<Run> runs;
  std::uint64_t at = start;
  const auto result =
      translate(process, **translator, inspector, {{start}, {start + bytes}}, {},
                [&](const Vma* vma, const Extent& e) {
                  INFO(to_string(backend) << ": " << to_string(e.state) << " "
                                          << to_string(e.reason) << " at " << hex(e.va.value));
                  REQUIRE(vma != nullptr);
                  REQUIRE(e.va.value == at);
                  REQUIRE(e.backend == backend);
                  Run run{at - start, e.bytes, {}, "-"};
                  if (e.state == PageState::resident) {
                    REQUIRE((e.pte & pte_bit::known) != 0);
                    run.physical = e.pfn.value * page;
                    run.cache = to_string(pte_bit::cache(e.pte));
                  } else {
                    REQUIRE(e.state == PageState::absent);
                  }
                  add(runs, std::move(run));
                  at = e.end().value;
                  return true;
                });
  if (!result) FAIL(to_string(result.error()));
  REQUIRE(at == start + bytes);
  return runs;
}

std::vector<Run> seen_by_vtop(const std::string& name, const std::string& backend, pid_t pid,
                              std::uint64_t start, std::uint64_t bytes) {
  const std::string question = hex(start) + "+" + std::to_string(bytes);
  const RunResult result = guest_vtop({"-J", "--backend", name, std::to_string(pid), question});
  INFO("vtop -J --backend " << name << " " << question << "\n" << result.err);
  CHECK(result.err.empty());
  // Of a range the states are the answer, unless nothing in it is mapped.
  REQUIRE(result.status == 0);
  const auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  std::vector<Run> runs;
  std::uint64_t at = start;
  for (const auto& group : document["results"]) {
    for (const auto& extent : group["extents"]) {
      INFO(extent);
      REQUIRE(number(extent["va"]) == at);
      REQUIRE(extent["backend"] == backend);
      Run run{at - start, extent["bytes"], {}, "-"};
      if (extent["state"] == "resident") {
        run.physical = number(extent["pa"]);
        REQUIRE(number(extent["pfn"]) * page == *run.physical);
        run.cache = extent["pte"]["cache"];
      } else {
        REQUIRE(extent["state"] == "absent");
        REQUIRE(extent["pa"].is_null());
      }
      at += run.bytes;
      add(runs, std::move(run));
    }
  }
  CHECK(at == start + bytes);
  return runs;
}

std::vector<unsigned> leaves_seen_by(Backend backend, pid_t pid, std::uint64_t start,
                                     std::uint64_t bytes) {
  const Process process = process_of(pid);
  const auto translator = open_translator(process, backend);
  if (!translator) FAIL(to_string(translator.error()));
  std::set<unsigned> sizes, shown;
  REQUIRE((*translator)->walk({{start}, {start + bytes}}, {}, [&](const Extent& e) {
    if (e.state == PageState::resident) sizes.insert(e.leaf_shift);
    return true;
  }));
  const RunResult result =
      guest_vtop({"-J", "--backend", std::string(to_string(backend)), std::to_string(pid),
                  hex(start) + "+" + std::to_string(bytes)});
  const auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  for (const auto& group : document["results"]) {
    for (const auto& extent : group["extents"]) {
      if (extent["state"] != "resident") continue;
      shown.insert(
          static_cast<unsigned>(std::countr_zero(extent["leaf_size"].get<std::uint64_t>())));
    }
  }
  CHECK(shown == sizes);
  return {sizes.begin(), sizes.end()};
}

RunResult guest_vtop(const std::vector<std::string>& arguments, std::optional<uid_t> uid) {
  RunOptions options;
  options.directory = "/";
  options.uid = uid;
  return run_tool("vtop", arguments, options);
}

}  // namespace vmem::test
