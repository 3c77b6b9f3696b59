// SPDX-License-Identifier: MIT
/// The real vtop, run on expanded fixtures.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/subprocess.hpp"

namespace vmem::test {

/// VTOP of the environment, else the program that was built with the tests.
std::string vtop_path();

/// A directory that holds every fixture, expanded under its own name. It is made once and
/// removed at the end of the program.
const std::filesystem::path& expanded_fixtures();

/// Runs vtop there, so that `--sysroot x86-64` works and no message holds a path of the
/// machine. Without colours, whatever the environment says.
RunResult run_vtop(const std::vector<std::string>& arguments, RunOptions options = {});

/// "--sysroot x86-64 1042 [heap]" as words; no word may hold a space.
std::vector<std::string> words(const std::string& line);

/// The same, with the one JSON document that it printed. Fails the test if it is not one.
nlohmann::ordered_json vtop_json(const std::string& line);

/// Why `err` is not as the contract wants a failure's: one line "vtop: ...", perhaps a
/// second "hint: ...". Empty if it is.
std::string error_form(const std::string& err);

}  // namespace vmem::test
