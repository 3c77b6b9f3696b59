// SPDX-License-Identifier: MIT
#include "support/tool.hpp"

#include <cctype>
#include <cstdlib>
#include <sstream>
#include <stdexcept>

#include "support/catch.hpp"
#include "support/system_model.hpp"
#include "support/temp_dir.hpp"

namespace vmem::test {

std::string tool_path(std::string_view tool) {
  std::string variable;
  for (const char c : tool)
    variable += static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  if (const char* named = std::getenv(variable.c_str()); named != nullptr && *named != '\0')
    return named;
#ifdef VMEM_TOOLS_PATH
  return VMEM_TOOLS_PATH "/" + std::string(tool);
#else
  throw std::runtime_error(variable + " names no program, and none was built");
#endif
}

const std::filesystem::path& expanded_fixtures() {
  static const TempDir directory;
  static const bool made = [] {
    for (const auto& fixture : std::filesystem::directory_iterator(fixtures_folder())) {
      if (!fixture.is_directory()) continue;
      write_tree(load_fixture(fixture.path()), directory / fixture.path().filename().string());
    }
    return true;
  }();
  (void)made;
  return directory.path();
}

RunResult run_tool(std::string_view tool, const std::vector<std::string>& arguments,
                   RunOptions options) {
  std::vector<std::string> all{std::filesystem::absolute(tool_path(tool)).string()};
  all.insert(all.end(), arguments.begin(), arguments.end());
  if (options.directory.empty()) options.directory = expanded_fixtures().string();
  for (const char* const setting : {"NO_COLOR=1", "LC_ALL=C.UTF-8", "COLUMNS=80"})
    options.environment.emplace_back(setting);
  return run(all, options);
}

std::vector<std::string> words(const std::string& line) {
  std::vector<std::string> all;
  std::istringstream text(line);
  for (std::string word; text >> word;) all.push_back(word);
  return all;
}

nlohmann::ordered_json tool_json(std::string_view tool, const std::vector<std::string>& arguments) {
  const RunResult result = run_tool(tool, arguments);
  std::string line(tool);
  for (const std::string& argument : arguments) line += " " + argument;
  INFO(line << "\n" << result.err);
  try {
    return nlohmann::ordered_json::parse(result.out);
  } catch (const nlohmann::json::exception& error) {
    FAIL("not one JSON document: " << error.what() << "\n" << result.out.substr(0, 2000));
  }
  return {};
}

std::string error_form(const std::string& err, std::string_view tool) {
  std::istringstream text(err);
  std::vector<std::string> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(line);
  if (lines.empty()) return "nothing on stderr";
  if (!err.ends_with('\n')) return "no newline at the end";
  const std::string start = std::string(tool) + ": ";
  if (!lines[0].starts_with(start)) return "does not begin with '" + start + "'";
  if (lines.size() > 2 || (lines.size() == 2 && !lines[1].starts_with("hint: ")))
    return "more than a line and a hint:\n" + err;
  for (const char c : err) {
    if (c != '\n' && (static_cast<unsigned char>(c) < 0x20 || c == 0x7f))
      return "a control character";
  }
  return {};
}

}  // namespace vmem::test
