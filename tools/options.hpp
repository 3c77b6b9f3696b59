// SPDX-License-Identifier: MIT
/// The options that every tool has. Apart from cli.hpp, since each file that includes CLI11
/// costs every run 10 to 20 microseconds of static initialisation.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <expected>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "cli.hpp"

namespace vmem::tools {

/// An empty word, as of a variable that a script has not set, is no value.
CLI::Validator not_empty();

/// Written in digits, from `first` to `last`. (CLI11's own ranges let "nan" pass, and each version
/// of it words its refusal in another way.)
CLI::Validator whole_number(std::uint64_t first,
                            std::uint64_t last = std::numeric_limits<std::uint64_t>::max());

/// From a millisecond to a million seconds.
CLI::Validator seconds();

void add_common_options(CLI::App& app, std::string_view tool, CommonOptions& options);

/// Returns the operands; or, having answered --help, --version or a usage error, the exit
/// status. `operands` is what the usage line says of them: "TARGET [ADDRESS...]".
std::expected<std::vector<std::string>, int> parse_command_line(CLI::App& app,
                                                                std::string_view tool,
                                                                std::string_view operands, int argc,
                                                                char** argv);

}  // namespace vmem::tools
