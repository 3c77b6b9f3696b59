// SPDX-License-Identifier: MIT
/// tool.hpp for the tests of vtop.
#pragma once

#include "support/tool.hpp"

namespace vmem::test {

inline RunResult run_vtop(const std::vector<std::string>& arguments, RunOptions options = {}) {
  return run_tool("vtop", arguments, std::move(options));
}

inline nlohmann::ordered_json vtop_json(const std::string& line) {
  return tool_json("vtop", words(line));
}

}  // namespace vmem::test
