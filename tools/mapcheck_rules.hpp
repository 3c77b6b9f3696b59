// SPDX-License-Identifier: MIT
/// What mapcheck is asked: rules from -e and from policy files. See mapcheck(1) and vmem-policy(5).
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "vmem/window.hpp"

namespace vmem::tools {

/// A window as written, before it is looked up.
struct WindowText {
  enum class Form : std::uint8_t { literal, pci, uio, published, iomem, ram, any };
  Form form = Form::any;
  PaRange range;  ///< literal
  std::string name;  ///< pci and published: the device; iomem: the region
  unsigned device = 0;  ///< uio
  unsigned index = 0;  ///< pci: the BAR; uio: the map
  std::string text;

  friend bool operator==(const WindowText&, const WindowText&) = default;
};

/// Words may have any case; names of devices and regions are looked up as written first.
/// The errors of all these are reasons in words, without the text itself.
std::expected<WindowText, std::string> parse_window(std::string_view text);
Result<Window> look_up(const WindowText& window, WindowSources& sources, PageSize page_size);

struct Rule {
  std::string process;  ///< a glob over comm; empty: every process asked about
  std::string select;  ///< as written
  std::uint64_t nth = 0;  ///< only this one of the mappings selected, by address, from 1; 0: all
  WindowText window;
  Check check;  ///< its window is looked up when the rule is used
};

/// Fills `rule.select` and `rule.check.select`.
std::expected<void, std::string> set_select(Rule& rule, std::string_view text);

/// One option, a key or KEY=VALUE in -e; the same words serve policy files.
std::expected<void, std::string> set_option(Check& check, std::string_view key,
                                            std::string_view value);
/// "nth", which is the rule's.
std::expected<void, std::string> set_nth(Rule& rule, std::string_view value);
/// What a rule selects, in words: "[heap]", "the 2nd of /bin/x+0x2000".
std::string selected_text(const Rule& rule);

/// An error if an option of the whole rule would be ignored.
std::expected<void, std::string> sensible(const Rule& rule);

/// The words of set_option() for a set of attributes, with `|` between them, and for a size.
std::string cache_words(CacheSet set);
std::string size_word(std::uint64_t bytes);

/// SELECT=WINDOW[,OPT…]
std::expected<Rule, std::string> parse_expectation(std::string_view text);

/// A policy that a person or --print-policy writes has less, by far; what reads more would take
/// gigabytes for it.
inline constexpr std::size_t most_policy_bytes = 16 << 20;
inline constexpr std::size_t most_policy_checks = 100'000;
inline constexpr std::size_t most_policy_values = 1'000'000;  ///< keys and elements of lists
inline constexpr unsigned most_policy_key_parts = 16;  ///< "a.b.c" has three

/// A policy file's rules. The error is a message: "FILE:LINE:COLUMN: why".
std::expected<std::vector<Rule>, std::string> parse_policy(std::string_view toml,
                                                           const std::string& file);

}  // namespace vmem::tools
