// SPDX-License-Identifier: MIT
/// The real tools, run on expanded fixtures.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "support/subprocess.hpp"

namespace vmem::test {

/// The environment's variable of that name in upper case (VTOP), else the program that was
/// built with the tests.
std::string tool_path(std::string_view tool);

/// A directory that holds every fixture, expanded under its own name. It is made once and
/// removed at the end of the program.
const std::filesystem::path& expanded_fixtures();

/// Runs the tool there, so that `--sysroot x86-64` works and no message holds a path of the
/// machine. Without colours, whatever the environment says.
RunResult run_tool(std::string_view tool, const std::vector<std::string>& arguments,
                   RunOptions options = {});

/// "--sysroot x86-64 1042 [heap]" as words; no word may hold a space.
std::vector<std::string> words(const std::string& line);

/// The one JSON document that `tool` printed. Fails the test if it is not one.
nlohmann::ordered_json tool_json(std::string_view tool, const std::vector<std::string>& arguments);

/// Why `err` is not as the contract wants a failure's: one line "TOOL: ...", perhaps a
/// second "hint: ...". Empty if it is.
std::string error_form(const std::string& err, std::string_view tool = "vtop");

}  // namespace vmem::test
