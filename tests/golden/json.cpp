// SPDX-License-Identifier: MIT
/// vtop's JSON against its contract: names, types, units, and that unknown is null.
#include <cstdio>
#include <optional>
#include <regex>
#include <set>
#include <sstream>

#include "support/catch.hpp"
#include "support/naive_twin.hpp"
#include "support/vtop.hpp"

using namespace vmem;
using namespace vmem::test;
using Json = nlohmann::ordered_json;

namespace {

/// The number behind "0x…"; empty if it has not that form.
std::optional<std::uint64_t> hex(const Json& value) {
  static const std::regex form("0x[0-9a-f]{1,16}");
  if (!value.is_string() || !std::regex_match(value.get<std::string>(), form)) return {};
  return std::stoull(value.get<std::string>(), nullptr, 16);
}

bool count_or_null(const Json& value) { return value.is_null() || value.is_number_unsigned(); }

bool strings(const Json& value) {
  if (!value.is_array()) return false;
  for (const Json& item : value) {
    if (!item.is_string()) return false;
  }
  return true;
}

struct Asked {
  std::string sysroot;
  int pid;
  std::uint64_t page_size;
  const char* access;
  bool pages = false;
  bool frames = false;
};

class Checker {
 public:
  explicit Checker(const Asked& asked) : asked_(asked) {}

  void document(const Json& d) {
    REQUIRE(d.is_object());
    CHECK(d.at("schema") == "vmem.vtop/1");
    CHECK(std::regex_match(d.at("version").get<std::string>(),
                           std::regex("[0-9]+\\.[0-9]+\\.[0-9]+.*")));
    const Json& host = d.at("host");
    CHECK(host.at("kernel").is_string());
    CHECK(host.at("page_size") == asked_.page_size);
    CHECK(host.at("pfn_access") == asked_.access);
    CHECK(host.at("backend") == "pagemap");
    const Json& process = d.at("process");
    CHECK(process.at("pid") == asked_.pid);
    CHECK(process.at("comm").is_string());
    CHECK(count_or_null(process.at("start_time")));
    REQUIRE(d.at("results").is_array());
    const Json* previous = nullptr;
    for (const Json& result : d.at("results")) {
      if (previous != nullptr) CHECK(previous->at("vma") != result.at("vma"));
      previous = &result;
      group(result);
    }
  }

  /// Every extent, in order.
  std::vector<std::pair<Json, Json>> extents;

 private:
  void group(const Json& result) {
    const Json& vma = result.at("vma");
    if (!vma.is_null()) check_vma(vma);
    REQUIRE(result.at("extents").is_array());
    CHECK_FALSE(result.at("extents").empty());
    for (const Json& e : result.at("extents")) {
      CAPTURE(e.dump());
      extent(vma, e);
      extents.emplace_back(vma, e);
    }
  }

  void check_vma(const Json& vma) {
    CAPTURE(vma.dump());
    REQUIRE(hex(vma.at("start")));
    REQUIRE(hex(vma.at("end")));
    CHECK(*hex(vma.at("start")) < *hex(vma.at("end")));
    CHECK(std::regex_match(vma.at("perms").get<std::string>(), std::regex("[r-][w-][x-][sp]")));
    CHECK((vma.at("offset").is_number_unsigned() || hex(vma.at("offset"))));
    CHECK(std::regex_match(vma.at("dev").get<std::string>(),
                           std::regex("[0-9a-f]{2,}:[0-9a-f]{2,}")));
    CHECK(vma.at("inode").is_number_unsigned());
    CHECK((vma.at("path").is_string() || vma.at("path").is_null()));
    CHECK(std::set<std::string>{"file", "anonymous", "device", "hugepage", "special"}.contains(
        vma.at("class")));
    CHECK(vma.at("kind").is_string());
    CHECK((vma.at("flags").is_null() || strings(vma.at("flags"))));
  }

  void extent(const Json& vma, const Json& e) {
    static const std::set<std::string> states{"resident", "absent", "swapped",  "guard",  "special",
                                              "hidden",   "unseen", "unmapped", "changed"};
    const std::string state = e.at("state");
    CHECK(states.contains(state));
    REQUIRE(hex(e.at("va")));
    const std::uint64_t bytes = e.at("bytes").get<std::uint64_t>();
    CHECK(bytes > 0);
    CHECK(bytes % asked_.page_size == 0);
    if (asked_.pages) CHECK(bytes == asked_.page_size);
    CHECK((state == "unmapped") == vma.is_null());
    if (!vma.is_null()) {
      CHECK(*hex(vma.at("start")) <= *hex(e.at("va")));
      CHECK(*hex(e.at("va")) / asked_.page_size * asked_.page_size + bytes <= *hex(vma.at("end")));
    }
    if (state == "resident") {
      REQUIRE(hex(e.at("pfn")));
      REQUIRE(hex(e.at("pa")));
      CHECK(*hex(e.at("pa")) / asked_.page_size == *hex(e.at("pfn")));
      CHECK(*hex(e.at("pa")) % asked_.page_size == *hex(e.at("va")) % asked_.page_size);
    } else {
      CHECK(e.at("pfn").is_null());
      CHECK(e.at("pa").is_null());
    }
    CHECK((e.at("reason").is_null() || e.at("reason").is_string()));
    if (state == "unseen")
      CHECK(e.at("reason").get<std::string>().find("VM_PFNMAP") != std::string::npos);
    CHECK(count_or_null(e.at("leaf_size")));
    CHECK(e.at("leaf_size") != 0);
    CHECK(strings(e.at("bits")));
    CHECK(e.at("backend") == "pagemap");
    CHECK(e.at("pte").is_null());
    const Json& swap = e.at("swap");
    CHECK(swap.is_null() == (state != "swapped"));
    if (!swap.is_null()) {
      // Hidden fields are unknown, and both are.
      CHECK((count_or_null(swap.at("type")) && count_or_null(swap.at("offset"))));
      CHECK(swap.at("type").is_null() == swap.at("offset").is_null());
      CHECK(swap.at("type").is_null() == e.at("reason").is_string());
    }
    const bool named = entry(state, e.at("entry"));
    frame(state == "resident" || named, e.at("frame"));
  }

  /// Whether the entry names a frame.
  bool entry(const std::string& state, const Json& entry) {
    CHECK(entry.is_null() == (state != "special" && state != "guard"));
    if (entry.is_null()) return false;
    CHECK((entry.at("kind").is_null() || entry.at("kind").is_string()));
    CHECK(entry.at("type").is_null() == entry.at("pfn").is_null());
    CHECK(entry.at("device").is_null());
    if (entry.at("pfn").is_null()) return false;
    CHECK(hex(entry.at("pfn")));
    return true;
  }

  void frame(bool has_frame, const Json& frame) {
    if (!asked_.frames || !has_frame) CHECK(frame.is_null());
    if (frame.is_null()) return;
    CHECK((frame.at("flags").is_null() || strings(frame.at("flags"))));
    for (const char* const count : {"mapcount", "memcg", "node"})
      CHECK(count_or_null(frame.at(count)));
    CHECK((frame.at("region").is_null() || frame.at("region").is_string()));
  }

  const Asked& asked_;
};

const Asked machines[] = {
    {"x86-64", 1042, 4096, "full"},       {"arm64-64k", 2001, 65536, "full"},
    {"hidden", 300, 4096, "hidden"},      {"swapped", 77, 4096, "full"},
    {"device-window", 500, 4096, "full"}, {"device-window", 501, 4096, "full"},
    {"hostile-names", 666, 4096, "full"}, {"sparse-16t", 16, 4096, "full"},
};

std::string line(const Asked& asked, const std::string& rest) {
  return "--sysroot " + asked.sysroot + " " + std::to_string(asked.pid) + " -J" +
         (asked.pages ? " -p" : "") + (asked.frames ? " -f" : "") + " " + rest;
}

/// The entry of one page, from the tree itself.
std::uint64_t entry_of(const Asked& asked, std::uint64_t va) {
  const std::string path =
      expanded_fixtures() / asked.sysroot / "proc" / std::to_string(asked.pid) / "pagemap";
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  REQUIRE(file != nullptr);
  std::uint64_t entry = 0;
  REQUIRE(fseeko(file, static_cast<off_t>(va / asked.page_size * 8), SEEK_SET) == 0);
  REQUIRE(std::fread(&entry, 8, 1, file) == 1);
  std::fclose(file);
  return entry;
}

}  // namespace

TEST_CASE("whole processes, extents and frames") {
  for (Asked asked : machines) {
    for (const bool frames : {false, true}) {
      asked.frames = frames;
      CAPTURE(asked.sysroot, asked.pid, frames);
      Checker checker(asked);
      checker.document(vtop_json(line(asked, "")));
      CHECK_FALSE(checker.extents.empty());
      // In ascending order, without overlap.
      std::uint64_t at = 0;
      for (const auto& [vma, e] : checker.extents) {
        CHECK(*hex(e.at("va")) >= at);
        at = *hex(e.at("va")) + e.at("bytes").get<std::uint64_t>();
      }
    }
  }
}

TEST_CASE("a range is tiled, with -p page by page") {
  struct Range {
    const char* sysroot;
    int pid;
    std::uint64_t start, end;
  };
  for (const auto& [sysroot, pid, start, end] :
       {Range{"x86-64", 1042, 0x7f0387f24000, 0x7f0387f2d000},
        Range{"swapped", 77, 0x55ffffff0000, 0x560000422000},
        Range{"device-window", 500, 0x7f100fff0000, 0x7f1010002000}}) {
    for (const bool pages : {false, true}) {
      Asked asked{sysroot, pid, 4096, "full"};
      asked.pages = pages;
      CAPTURE(sysroot, pages);
      char range[64];
      std::snprintf(range, sizeof range, "%llx-%llx", static_cast<unsigned long long>(start),
                    static_cast<unsigned long long>(end));
      Checker checker(asked);
      checker.document(vtop_json(line(asked, range)));
      std::uint64_t at = start;
      for (const auto& [vma, e] : checker.extents) {
        CHECK(*hex(e.at("va")) == at);
        at += e.at("bytes").get<std::uint64_t>();
      }
      CHECK(at == end);
    }
  }
}

TEST_CASE("each page is what its pagemap entry says") {
  for (Asked asked : {machines[0], machines[2], machines[3], machines[6]}) {
    asked.pages = true;
    CAPTURE(asked.sysroot);
    Checker checker(asked);
    checker.document(vtop_json(line(asked, "")));
    for (const auto& [vma, e] : checker.extents) {
      if (e.at("state") == "unseen") continue;
      const std::uint64_t va = *hex(e.at("va"));
      const TwinPage twin = twin_decode(entry_of(asked, va), std::string(asked.access) == "full");
      CAPTURE(e.dump());
      CHECK(e.at("state") == to_string(twin.state));
      if (twin.state == PageState::resident) CHECK(*hex(e.at("pfn")) == twin.number);
      if (twin.state == PageState::swapped && twin.reason == Reason::none) {
        CHECK(e.at("swap").at("type") == twin.swap_type);
        CHECK(e.at("swap").at("offset") == twin.number);
      }
      if (twin.reason == Reason::swap_fields_hidden) CHECK(e.at("swap").at("type").is_null());
    }
  }
}

TEST_CASE("one address is one extent of one page") {
  const std::pair<const char*, const char*> addresses[] = {
      {"564499f34000", "resident"}, {"7f0387f26123", "absent"}, {"1000", "unmapped"}};
  for (const auto& [address, state] : addresses) {
    const Asked asked{"x86-64", 1042, 4096, "full"};
    Checker checker(asked);
    checker.document(vtop_json(line(asked, address)));
    REQUIRE(checker.extents.size() == 1);
    CHECK(checker.extents[0].second.at("bytes") == 4096);
    CHECK(checker.extents[0].second.at("state") == state);
  }
}

TEST_CASE("addresses from stdin: one document a line, in order") {
  RunOptions options;
  options.input = "564499f34000\n1000\n7f0387f24000+8K\n[heap]\n";
  const RunResult result = run_vtop(words("--sysroot x86-64 1042 -J -"), options);
  std::istringstream lines(result.out);
  std::vector<std::size_t> counts;
  for (std::string text; std::getline(lines, text);) {
    CAPTURE(text);
    const Json document = Json::parse(text);
    const Asked asked{"x86-64", 1042, 4096, "full"};
    Checker checker(asked);
    checker.document(document);
    counts.push_back(checker.extents.size());
  }
  CHECK(counts == std::vector<std::size_t>{1, 1, 2, 2});
}

TEST_CASE("frame facts in JSON are those of the tree") {
  Asked asked = machines[1];
  asked.frames = true;
  const Json document = vtop_json(line(asked, "fffd80050000"));
  const Json& frame = document.at("results").at(0).at("extents").at(0).at("frame");
  CHECK(frame.at("flags") ==
        Json{"uptodate", "dirty", "lru", "mmap", "anon", "swapbacked", "bit43"});
  CHECK(frame.at("mapcount") == 1);
  CHECK(frame.at("memcg") == 4211);
  CHECK(frame.at("node") == 0);
  CHECK(frame.at("region") == "System RAM");
}

TEST_CASE("a document is complete even where reading failed, and the status says so") {
  const RunResult result = run_vtop(words("--sysroot truncated 9 -J"));
  CHECK(result.status == 2);
  CHECK(error_form(result.err) == "");
  const Json document = Json::parse(result.out);
  CHECK(document.at("schema") == "vmem.vtop/1");
}
