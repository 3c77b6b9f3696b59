// SPDX-License-Identifier: MIT
/// Policy files: TOML to rules.
#define TOML_EXCEPTIONS 0
#define TOML_ENABLE_FORMATTERS 0
// toml++ 3.3 assumes that what stands behind "[[" can begin a key, which "[[[" does not; the code
// below the assumption has the right message.
#if __has_include(<toml++/impl/preprocessor.hpp>)
#include <toml++/impl/preprocessor.hpp>  // since 3.4
#else
#include <toml++/impl/preprocessor.h>
#endif
#undef TOML_ASSERT_ASSUME
#define TOML_ASSERT_ASSUME(expr) static_assert(true)
#include <toml++/toml.h>

#include <algorithm>
#include <array>
#include <functional>

#include "mapcheck_rules.hpp"
#include "render.hpp"

namespace vmem::tools {
namespace {

using Good = std::expected<void, std::string>;

std::string at(const std::string& file, const toml::source_region& source, std::string_view what) {
  return fmt::format("{}:{}:{}: {}", file, source.begin.line, source.begin.column, what);
}

/// A value as the text that -e would have: lists joined, true and false as words. Empty: not of
/// a type that any key takes.
std::optional<std::string> as_text(const toml::node& node, char separator) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* number = node.as_integer())
    return number->get() < 0 ? std::nullopt : std::optional(std::to_string(number->get()));
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  const auto* list = node.as_array();
  if (list == nullptr || list->empty()) return {};
  std::string joined;
  for (const toml::node& element : *list) {
    const auto* text = element.as_string();
    if (text == nullptr) return {};
    if (!joined.empty()) joined += separator;
    joined += text->get();
  }
  return joined;
}

/// The type that a key wants, in words.
struct Key {
  std::string_view name;
  std::string_view type;
  bool (*fits)(const toml::node&);
};
bool is_text(const toml::node& node) { return node.is_string(); }
bool is_flag(const toml::node& node) { return node.is_boolean(); }
bool is_number(const toml::node& node) { return node.is_integer(); }
bool is_size(const toml::node& node) { return node.is_integer() || node.is_string(); }
bool is_list(const toml::node& node) { return node.is_array() || node.is_string(); }
constexpr auto keys = std::to_array<Key>({
    {"name", "a string", is_text},
    {"process", "a string", is_text},
    {"select", "a string", is_text},
    {"window", "a string", is_text},
    {"offset", "a number of bytes, or a string such as \"64K\"", is_size},
    {"scatter", "true or false", is_flag},
    {"sparse", "true or false", is_flag},
    {"populated", "true or false", is_flag},
    {"optional", "true or false", is_flag},
    {"perms", "a string", is_text},
    {"cache", "a string or a list of strings", is_list},
    {"leaf", "a size such as \"2M\"", is_size},
    {"node", "a number", is_number},
    {"flags", "a string or a list of strings", is_list},
});

Good set_key(Rule& rule, std::string_view name, const toml::node& node) {
  const auto key = std::ranges::find(keys, name, &Key::name);
  if (key == keys.end()) return std::unexpected("no such key");
  const auto text = as_text(node, name == "cache" ? '|' : ',');
  if (!key->fits(node) || !text) return std::unexpected(fmt::format("must be {}", key->type));
  if (name == "name") {
    rule.check.name = *text;
    return {};
  }
  if (name == "process") {
    if (text->empty()) return std::unexpected("names no process");
    rule.process = *text;
    return {};
  }
  if (name == "select") return set_select(rule, *text);
  if (name == "window") {
    auto window = parse_window(*text);
    if (!window) return std::unexpected(std::move(window.error()));
    rule.window = std::move(*window);
    return {};
  }
  return set_option(rule.check, name, *text);
}

Good read_keys(Rule& rule, const toml::table& table, const std::string& file) {
  for (const auto& [key, node] : table) {
    if (auto good = set_key(rule, key.str(), node); !good)
      return std::unexpected(
          at(file, key.source(), fmt::format("{}: {}", key.str(), good.error())));
  }
  if (table.contains("sparse") && table.contains("populated"))
    return std::unexpected(at(file, table.source(), "sparse and populated exclude each other"));
  return {};
}

}  // namespace

std::expected<std::vector<Rule>, std::string> parse_policy(std::string_view toml,
                                                           const std::string& file) {
  const toml::parse_result parsed = toml::parse(toml, file);
  if (!parsed)
    return std::unexpected(at(file, parsed.error().source(), parsed.error().description()));
  const toml::table& top = parsed.table();
  Rule defaults;
  for (const auto& [key, node] : top) {
    if (key == "check") continue;
    if (key != "defaults")
      return std::unexpected(at(file, key.source(),
                                fmt::format("{}: no such key ([defaults], [[check]])", key.str())));
    const toml::table* const table = node.as_table();
    if (table == nullptr) return std::unexpected(at(file, key.source(), "defaults: not a table"));
    for (const std::string_view own : {"name", "select"}) {
      if (const auto found = table->find(own); found != table->end())
        return std::unexpected(
            at(file, found->first.source(), fmt::format("{}: is each check's own", own)));
    }
    if (auto good = read_keys(defaults, *table, file); !good)
      return std::unexpected(std::move(good.error()));
  }
  const bool default_window = top["defaults"]["window"].is_string();

  const toml::node* const checks = top.get("check");
  if (checks == nullptr) return std::unexpected(file + ": no [[check]]");
  const toml::array* const list = checks->as_array();
  if (list == nullptr || list->empty())
    return std::unexpected(at(file, checks->source(), "check: not a list; write [[check]]"));
  std::vector<Rule> rules;
  rules.reserve(list->size());
  for (const toml::node& node : *list) {
    const toml::table* const table = node.as_table();
    if (table == nullptr) return std::unexpected(at(file, node.source(), "check: not a table"));
    Rule rule = defaults;
    if (auto good = read_keys(rule, *table, file); !good)
      return std::unexpected(std::move(good.error()));
    if (rule.select.empty())
      return std::unexpected(at(file, table->source(), "select: is missing"));
    if (!table->contains("window") && !default_window)
      return std::unexpected(at(file, table->source(), "window: is missing"));
    if (rule.check.name.empty()) rule.check.name = rule.select;
    rules.push_back(std::move(rule));
  }
  return rules;
}

}  // namespace vmem::tools
