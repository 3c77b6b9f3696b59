// SPDX-License-Identifier: MIT
// The table in docs/how-it-sees.md: every kind of memory that can be made here, asked of every
// backend that works here.
#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "live/children.hpp"
#include "live/oracle.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr Backend backends[] = {Backend::pagemap, Backend::bpf, Backend::kmod};

struct Row {
  std::string vma_class, kind;
  std::map<Backend, std::string> seen;
};
using Table = std::map<std::string, Row>;

std::vector<std::string> cells(const std::string& line) {
  std::vector<std::string> all;
  std::istringstream in(line.substr(1));
  for (std::string cell; std::getline(in, cell, '|');) {
    const std::size_t first = cell.find_first_not_of(" `"), last = cell.find_last_not_of(" `");
    all.push_back(first == std::string::npos ? "" : cell.substr(first, last - first + 1));
  }
  return all;
}

/// The rows between the heading and the end of the table.
Table documented() {
  std::ifstream in(std::string(VMEM_FIXTURES_PATH) + "/../../docs/how-it-sees.md");
  Table table;
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    const bool row = line.starts_with("| ");
    if (row && line.starts_with("| made as")) {
      inside = true;
    } else if (inside && row) {
      const auto c = cells(line);
      if (c.size() < 6) throw std::runtime_error("how-it-sees.md: " + line);
      table[c[0]] = {
          c[1], c[2], {{Backend::pagemap, c[3]}, {Backend::bpf, c[4]}, {Backend::kmod, c[5]}}};
    } else if (inside && !line.starts_with("|-")) {
      break;
    }
  }
  return table;
}

/// The states of a mapping's pages. Pages that were never touched are absent, whoever is asked, and
/// say nothing about who sees what.
std::string states(const Process& process, Translator& translator, const Mapping& m) {
  std::set<std::string> found;
  VmaInspector inspector(process);
  const auto result = translate(process, translator, inspector, {{m.start}, {m.end}}, {},
                                [&](const Vma*, const Extent& e) {
                                  found.insert(std::string(to_string(e.state)));
                                  return true;
                                });
  if (!result) throw std::runtime_error(to_string(result.error()));
  if (found.size() > 1) found.erase("absent");
  std::string text;
  for (const std::string& state : found) text += (text.empty() ? "" : ", ") + state;
  return text;
}

}  // namespace

TEST_CASE("the table of docs/how-it-sees.md is what the backends say") {
  if (!shown_pfns()) return skip_or_fail("pfn", "PFNs are hidden");
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const Process process = process_of(child.pid());
  const Table table = documented();
  REQUIRE(table.size() > 20);
  std::set<std::string> made;
  for (const Backend backend : backends) {
    const auto translator = open_translator(process, backend);
    if (!translator) {
      if (backend == Backend::bpf) skip_or_fail("bpf", to_string(translator.error()));
      continue;
    }
    for (const Mapping& m : child.mappings()) {
      made.insert(m.name);
      const auto row = table.find(m.name);
      INFO(m.name << " by " << to_string(backend) << ": " << states(process, **translator, m));
      REQUIRE(row != table.end());
      const std::string& told = row->second.seen.at(backend);
      CHECK((" or " + told + " or ").find(" or " + states(process, **translator, m) + " or ") !=
            std::string::npos);
      if (m.vma_class != "-") CHECK(m.vma_class == row->second.vma_class);
      if (m.kind != "-") CHECK(m.kind == row->second.kind);
    }
  }
  // A row that nobody makes is nobody's.
  for (const auto& [name, row] : table) {
    INFO(name);
    const bool skipped = std::ranges::any_of(child.skips(), [&](const std::string& skip) {
      return name.starts_with(skip.substr(0, skip.find_first_of(" :\t")));
    });
    CHECK((made.contains(name) || skipped));
  }
}
