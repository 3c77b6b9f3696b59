// SPDX-License-Identifier: MIT
#include "options.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <iostream>
#include <memory>

#include "vmem/version.hpp"

namespace vmem::tools {
namespace {

/// CLI11's usage line knows nothing of operands.
class HelpFormatter : public CLI::Formatter {
 public:
  explicit HelpFormatter(std::string usage) : usage_(std::move(usage)) {}
  std::string make_usage(const CLI::App*, std::string) const override {
    return "Usage: " + usage_ + "\n";
  }
  // Types and choices are named in the descriptions.
  std::string make_option_opts(const CLI::Option* option) const override {
    const std::string type = option->get_type_name();
    const std::size_t end = std::min(type.find(':'), type.size());
    return option->get_type_size() == 0 ? "" : " " + type.substr(0, end);
  }

 private:
  std::string usage_;
};

}  // namespace

CLI::Validator not_empty() {
  return {[](const std::string& word) { return std::string(word.empty() ? "is empty" : ""); }, ""};
}

CLI::Validator whole_number(std::uint64_t first, std::uint64_t last) {
  return {[=](const std::string& word) -> std::string {
            std::uint64_t number = 0;
            const char* const end = word.data() + word.size();
            const auto read = std::from_chars(word.data(), end, number);
            const bool octal = word.size() > 1 && word[0] == '0';  // for CLI11, not for people
            if (read.ec == std::errc{} && read.ptr == end && !octal && first <= number &&
                number <= last)
              return {};
            return last == std::numeric_limits<std::uint64_t>::max()
                       ? fmt::format("{}: not a whole number of {} or more", word, first)
                       : fmt::format("{}: not a whole number from {} to {}", word, first, last);
          },
          ""};
}

CLI::Validator seconds() {
  return {[](const std::string& word) -> std::string {
            double number = 0;
            const char* const end = word.data() + word.size();
            const auto read = std::from_chars(word.data(), end, number);
            // Of "nan" no comparison holds.
            if (read.ec == std::errc{} && read.ptr == end && 0.001 <= number && number <= 1e6)
              return {};
            return fmt::format("{}: not a number of seconds from 0.001 to 1000000", word);
          },
          ""};
}

void add_common_options(CLI::App& app, std::string_view tool, CommonOptions& options) {
  app.add_option("-n,--name", options.comm, "The process whose command name (comm) is exactly NAME")
      ->type_name("NAME")
      ->check(not_empty());
  app.add_option("--sysroot", options.sysroot,
                 "Read the system recorded in DIR instead of this one")
      ->type_name("DIR")
      ->check(not_empty());
  app.add_option("--backend", options.backend,
                 "Where page facts come from: auto, pagemap, bpf or kmod")
      ->type_name("WHICH")
      ->check(CLI::IsMember({"auto", "pagemap", "bpf", "kmod"}, CLI::ignore_case));
  app.add_flag("-J,--json", options.json, "One JSON document on stdout");
  app.add_flag("--bytes", options.bytes, "Sizes as plain numbers of bytes");
  app.add_flag("--noheadings", options.no_headings, "No heading line");
  app.add_option("--color", options.color, "Colour the output: auto, always or never")
      ->type_name("WHEN")
      ->check(CLI::IsMember({"auto", "always", "never"}, CLI::ignore_case));
  app.add_option("-o,--output", options.columns, "Columns to print, comma separated")
      ->type_name("COL,...")
      ->check(not_empty());
  app.set_version_flag("-V,--version", std::string(tool) + " " VMEM_VERSION,
                       "Print the version and exit");
  app.set_help_flag("-h,--help", "Print this help and exit");
}

std::expected<std::vector<std::string>, int> parse_command_line(CLI::App& app,
                                                                std::string_view tool,
                                                                std::string_view operands, int argc,
                                                                char** argv) {
  const Messages messages{tool};
  app.formatter(std::make_shared<HelpFormatter>(fmt::format("{} [OPTIONS] {}", tool, operands)));
  // Operands are taken as what is left: an option of CLI11's would read "[heap]" as a list.
  app.allow_extras();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {  // --help, --version
      app.exit(error);
      std::cout.flush();
      if (std::cout || errno == EPIPE) return std::unexpected(0);
      messages.error(fmt::format("writing output: stdout: {}", std::strerror(errno)));
      return std::unexpected(2);
    }
    messages.error(error.what(), "see --help");
    return std::unexpected(2);
  }
  std::vector<std::string> words = app.remaining();
  // What follows the first "--" are operands, whatever they look like.
  const auto end = std::ranges::find(words, "--");
  for (auto word = words.begin(); word != end; ++word) {
    if (word->size() < 2 || word->front() != '-') continue;
    messages.error(fmt::format("{}: no such option", *word), "see --help");
    return std::unexpected(2);
  }
  if (end != words.end()) words.erase(end);
  return words;
}

}  // namespace vmem::tools
