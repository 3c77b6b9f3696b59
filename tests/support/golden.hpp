// SPDX-License-Identifier: MIT
/// What a tool prints, byte by byte, against files. VMEM_UPDATE_GOLDEN=1 writes the files anew:
/// read the difference before committing it.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <regex>
#include <set>
#include <span>
#include <string>

#include "support/catch.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"

namespace vmem::test {

struct GoldenCase {
  const char* name;
  const char* arguments;
  const char* input = "";
};

inline std::string golden_transcript(const std::string& tool, const GoldenCase& c) {
  RunOptions options;
  options.input = c.input;
  const RunResult result = run_tool(tool, words(c.arguments), options);
  std::string text = "$ " + tool + " " + c.arguments + "\n";
  if (*c.input != '\0') text += std::string("--- stdin\n") + c.input;
  text += "--- stdout\n" + result.out;
  if (!result.out.empty() && !result.out.ends_with('\n')) text += "(no newline)\n";
  if (!result.err.empty()) text += "--- stderr\n" + result.err;
  text += result.signal != 0 ? "--- signal " + std::to_string(result.signal) + "\n"
                             : "--- status " + std::to_string(result.status) + "\n";
  // The one thing that changes from release to release.
  return std::regex_replace(text, std::regex("\"version\":\"[^\"]*\""), "\"version\":\"VERSION\"");
}

/// Each case against tests/golden/FOLDER/NAME.txt, and no file there without a case.
inline void check_golden(const std::string& tool, const std::string& folder,
                         std::span<const GoldenCase> cases) {
  const bool update = std::getenv("VMEM_UPDATE_GOLDEN") != nullptr;
  const auto expected = fixtures_folder().parent_path() / "golden" / folder;
  if (update) std::filesystem::create_directories(expected);
  std::set<std::string> names;
  for (const GoldenCase& c : cases) {
    CAPTURE(c.name);
    CHECK(names.insert(std::string(c.name) + ".txt").second);
    const auto path = expected / (std::string(c.name) + ".txt");
    const std::string got = golden_transcript(tool, c);
    if (update) {
      write_file(path, got);
    } else if (!std::filesystem::exists(path)) {
      FAIL_CHECK("no golden file; VMEM_UPDATE_GOLDEN=1 writes it:\n" << got);
    } else {
      CHECK(got == read_file(path));
    }
  }
  for (const auto& file : std::filesystem::directory_iterator(expected)) {
    CAPTURE(file.path());
    if (update && !names.contains(file.path().filename().string()))
      std::filesystem::remove(file.path());
    else
      CHECK(names.contains(file.path().filename().string()));
  }
}

}  // namespace vmem::test
