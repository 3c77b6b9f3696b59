// SPDX-License-Identifier: MIT
#include "mapcheck_rules.hpp"

#include <algorithm>
#include <charconv>
#include <vector>

#include "addresses.hpp"
#include "render.hpp"

namespace vmem::tools {
namespace {

std::optional<unsigned> whole_number(std::string_view text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

/// Words may have any case.
std::string lower(std::string_view text) {
  std::string word(text);
  for (char& c : word)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 32);
  return word;
}

bool is_vm_flag(std::string_view word) {
  if (word.starts_with('!')) word.remove_prefix(1);
  return word.size() == 2 && std::ranges::all_of(lower(word), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '?';
         });
}

/// Whether it is of fs/proc/task_mmu.c, show_smap_vma_flags(), of kernels up to 6.18.
bool known_vm_flag(std::string_view code) {
  constexpr std::string_view known =
      "rd wr ex sh mr mw me ms gd pf dw lo io sr rr dc de ac nr ht sf nl ar wf dd sd mm hg nh mg "
      "um "
      "uw ui bt mt mp ss sl lf dp gu";
  for (std::size_t at = 0; at < known.size(); at += 3)
    if (known.substr(at, 2) == code) return true;
  return false;
}

/// Calls `each` for the words between commas; what it returns, if not empty, is the error.
std::string for_each_word(std::string_view list, char separator, auto each) {
  while (true) {
    const std::size_t end = list.find(separator);
    if (std::string error = each(list.substr(0, end)); !error.empty()) return error;
    if (end == std::string_view::npos) return {};
    list.remove_prefix(end + 1);
  }
}

std::expected<void, std::string> good_or(std::string error) {
  if (error.empty()) return {};
  return std::unexpected(std::move(error));
}

}  // namespace

std::expected<WindowText, std::string> parse_window(std::string_view text) {
  using Form = WindowText::Form;
  WindowText window;
  window.text = text;
  const std::string word = lower(text);
  const std::string_view words = word;
  if (word == "any" || word == "ram") {
    window.form = word == "any" ? Form::any : Form::ram;
    return window;
  }
  if (word.starts_with("iomem:")) {
    window.form = Form::iomem;
    window.name = text.substr(6);
    if (window.name.empty()) return std::unexpected("no name behind iomem:");
    return window;
  }
  const std::size_t slash = words.find('/');
  const std::string_view left = words.substr(0, slash);
  const std::string_view right = slash == std::string_view::npos ? "" : words.substr(slash + 1);
  if (word.starts_with("pci:")) {
    window.form = Form::pci;
    window.name = left.substr(4);
    if (right == "rom") {
      window.index = 6;
      return window;
    }
    const auto index = right.starts_with("bar") ? whole_number(right.substr(3)) : std::nullopt;
    if (window.name.empty() || !index) return std::unexpected("not pci:DEVICE/barN");
    window.index = *index;
    return window;
  }
  // Devices that publish their memory: "udmabuf0", "dax0.0", "u-dma-buf:NAME".
  for (const std::string_view kind : {"u-dma-buf:", "udmabuf:", "uiomem:", "dax:"}) {
    if (!words.starts_with(kind)) continue;
    window.form = Form::published;
    window.name = text.substr(kind.size());
    if (window.name.empty()) return std::unexpected(fmt::format("no name behind {}", kind));
    return window;
  }
  for (const std::string_view name : {"udmabuf", "uiomem", "dax"}) {
    if (!words.starts_with(name) || words.find_first_of("+/") != std::string_view::npos) continue;
    window.form = Form::published;
    window.name = text;
    return window;
  }
  if (word.starts_with("uio")) {
    window.form = Form::uio;
    const auto device = whole_number(left.substr(3));
    const auto index = right.starts_with("map") ? whole_number(right.substr(3)) : std::nullopt;
    if (!device || !index) return std::unexpected("not uioN/mapM");
    window.device = *device;
    window.index = *index;
    return window;
  }
  const auto address = parse_address(text);
  if (!address || address->form != AddressExpression::Form::range) {
    return std::unexpected(
        address || text.empty()
            ? "not a window: PA+LEN, PA-END, pci:DEVICE/barN, uioN/mapM, udmabufN, daxN.M, "
              "u-dma-buf:NAME, iomem:NAME, ram or any"
            : "not a window: " + address.error());
  }
  window.form = Form::literal;
  window.range = {{address->start.value}, {address->end.value}};
  if (window.range.end.value > std::uint64_t{1} << 56)
    return std::unexpected("no physical address is that high");
  return window;
}

Result<Window> look_up(const WindowText& window, WindowSources& sources, PageSize page_size) {
  Result<Window> found;
  switch (window.form) {
    case WindowText::Form::any:
      break;
    case WindowText::Form::ram:
      found = sources.ram();
      break;
    case WindowText::Form::iomem:
      found = sources.iomem(window.name);
      break;
    case WindowText::Form::pci:
      found = sources.pci_bar(window.name, window.index);
      break;
    case WindowText::Form::published:
      found = sources.published(window.name);
      // A word in another case than the device's name.
      if (const std::string name = lower(window.name);
          !found && found.error().code == Errc::not_found && name != window.name) {
        if (auto again = sources.published(name)) found = std::move(again);
      }
      break;
    case WindowText::Form::uio:
      found = sources.uio_map(window.device, window.index);
      break;
    case WindowText::Form::literal:
      found = Window::literal(window.range, page_size);
      break;
  }
  if (found) found->text = window.text;
  return found;
}

std::expected<void, std::string> set_select(Rule& rule, std::string_view text) {
  using Form = AddressExpression::Form;
  if (text.empty()) return std::unexpected("nothing is selected");
  rule.select = text;
  Selector& select = rule.check.select;
  const auto parsed = parse_address(text);
  const Form form = parsed ? parsed->form : Form::name;
  switch (form) {
    case Form::address:
      select = {.form = Selector::Form::address, .text = {}, .address = parsed->start};
      return {};
    case Form::file_offset:
      select = {.form = Selector::Form::file,
                .text = parsed->name,
                .address = {},
                .offset = parsed->offset};
      return {};
    case Form::range:
      return std::unexpected("a range: select the mapping by one address in it");
    case Form::name_offset:
    case Form::name:
      break;
  }
  select = {.form = Selector::Form::name, .text = std::string(text)};
  return {};
}

std::expected<void, std::string> set_option(Check& check, std::string_view given_key,
                                            std::string_view given_value) {
  const std::string key = lower(given_key);
  // No value is a name: a word in another case is the same word.
  const std::string value = lower(given_value);
  if (key == "scatter" || key == "populated" || key == "sparse" || key == "optional") {
    if (!value.empty() && value != "true" && value != "false")
      return std::unexpected("takes no value");
    const bool on = value != "false";
    if (key == "scatter") check.scatter = on;
    if (key == "populated") check.sparse = !on;
    if (key == "sparse") check.sparse = on;
    if (key == "optional") check.optional = on;
    return {};
  }
  if (key == "offset") {
    const auto bytes = parse_size(value);
    if (!bytes) return std::unexpected("not a size in bytes");
    check.offset = bytes;
    return {};
  }
  if (key == "perms") {
    constexpr std::string_view allowed[] = {"r-?", "w-?", "x-?", "sp?"};
    bool good = value.size() == 4;
    for (std::size_t i = 0; good && i < 4; ++i) good = allowed[i].contains(value[i]);
    if (!good)
      return std::unexpected(
          "not permissions as maps shows them, such as rw-s ('?' stands for either)");
    check.perms = value;
    return {};
  }
  if (key == "cache") {
    CacheSet set = 0;
    bool any = false;
    const std::string error = for_each_word(value, '|', [&](std::string_view word) -> std::string {
      const auto bits = cache_set(word);
      if (!bits)
        return "not a cache attribute: uc, uc-, wc, wb, wt, wp, any, or one of arm64's "
               "(device-nGnRnE, device-nGnRE, normal-nc, normal, normal-tagged)";
      any = any || *bits == 0;
      set |= *bits;
      return {};
    });
    if (error.empty()) check.cache = any ? CacheSet{0} : set;
    return good_or(error);
  }
  if (key == "leaf") {
    const auto bytes = parse_size(value);
    if (!bytes || !PageSize::valid(*bytes)) return std::unexpected("not a leaf size: 4K, 2M, 1G");
    check.leaf = PageSize{*bytes};
    return {};
  }
  if (key == "node") {
    const auto node = whole_number(value);
    if (!node) return std::unexpected("not the number of a NUMA node");
    check.node = node;
    return {};
  }
  if (key == "flags") {
    check.flags.clear();
    return good_or(for_each_word(value, ',', [&](std::string_view word) -> std::string {
      if (!is_vm_flag(word))
        return "not VmFlags of smaps: two letters each, such as io,pf ('!io': must not stand "
               "there)";
      if (word.starts_with('!') && !known_vm_flag(word.substr(1)))
        return std::string(word.substr(1)) + " is no flag that is known: that it does not stand " +
               "there proves nothing";
      check.flags.emplace_back(word);
      return {};
    }));
  }
  return std::unexpected(
      "no such option: offset, scatter, perms, cache, leaf, node, populated, sparse, flags, nth, "
      "optional");
}

std::expected<void, std::string> set_nth(Rule& rule, std::string_view value) {
  const auto number = whole_number(value);
  if (!number || *number == 0) return std::unexpected("not which one of the mappings, from 1");
  rule.nth = *number;
  return {};
}

std::string selected_text(const Rule& rule) {
  if (rule.nth == 0) return rule.select;
  const auto tens = rule.nth % 100;
  const std::string_view ending = tens / 10 == 1   ? "th"
                                  : tens % 10 == 1 ? "st"
                                  : tens % 10 == 2 ? "nd"
                                  : tens % 10 == 3 ? "rd"
                                                   : "th";
  return fmt::format("the {}{} of {}", rule.nth, ending, rule.select);
}

std::expected<void, std::string> sensible(const Rule& rule) {
  using Form = WindowText::Form;
  const bool ordered = rule.window.form != Form::any && rule.window.form != Form::ram;
  if (rule.check.offset && (!ordered || rule.check.scatter))
    return std::unexpected(fmt::format("offset: would not be looked at: {} has no order",
                                       ordered ? "scatter" : rule.window.text));
  return {};
}

std::string cache_words(CacheSet set) {
  std::string words;
  // Of two words the one that says all of it: "uc" includes "uc-", which is the narrower one.
  const CacheSet uncached = *cache_set("uc");
  const bool all = (set & uncached) == uncached;
  for (const std::string_view word : {all ? "uc" : "uc-", "uc", "wc", "wt", "wp", "wb"}) {
    const CacheSet bits = *cache_set(word);
    if ((set & bits) == 0) continue;
    set = static_cast<CacheSet>(set & ~bits);
    if (!words.empty()) words += '|';
    words += word;
  }
  return words;
}

std::string size_word(std::uint64_t bytes) {
  constexpr std::string_view units = "KMGT";
  std::size_t unit = 0;
  if (bytes == 0 || bytes % 1024 != 0) return std::to_string(bytes);
  for (bytes /= 1024; bytes % 1024 == 0 && unit + 1 < units.size(); bytes /= 1024) ++unit;
  return std::to_string(bytes) + units[unit];
}

std::expected<Rule, std::string> parse_expectation(std::string_view text) {
  Rule rule;
  const std::size_t equals = text.find('=');
  if (equals == std::string_view::npos) return std::unexpected("not SELECT=WINDOW[,OPT...]");
  if (auto good = set_select(rule, text.substr(0, equals)); !good)
    return std::unexpected(std::move(good.error()));
  std::string_view rest = text.substr(equals + 1);
  const std::size_t comma = rest.find(',');
  auto window = parse_window(rest.substr(0, comma));
  if (!window) return std::unexpected(std::move(window.error()));
  rule.window = std::move(*window);
  rest = comma == std::string_view::npos ? "" : rest.substr(comma + 1);
  if (comma != std::string_view::npos && rest.empty()) return std::unexpected("ends with a comma");
  std::vector<std::string> given;
  while (!rest.empty()) {
    std::size_t end = std::min(rest.find(','), rest.size());
    // The flags of flags= are words of their own between commas.
    while (lower(rest.substr(0, 6)) == "flags=" && end < rest.size()) {
      const std::size_t next = std::min(rest.find(',', end + 1), rest.size());
      if (!is_vm_flag(rest.substr(end + 1, next - end - 1))) break;
      end = next;
    }
    const std::string_view word = rest.substr(0, end);
    const std::size_t assign = word.find('=');
    const std::string key = lower(word.substr(0, assign));
    const std::string_view value = assign == std::string_view::npos ? "" : word.substr(assign + 1);
    const auto good = key == "nth" ? set_nth(rule, value) : set_option(rule.check, key, value);
    if (!good) return std::unexpected(std::string(word) + ": " + good.error());
    // Of two values one would be ignored.
    const std::string what = key == "sparse" ? "populated" : key;
    if (std::ranges::count(given, what) != 0)
      return std::unexpected(what == "populated" ? std::string("sparse or populated, and once")
                                                 : key + ": is given twice");
    given.push_back(what);
    if (end + 1 == rest.size()) return std::unexpected("ends with a comma");
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (auto good = sensible(rule); !good) return std::unexpected(std::move(good.error()));
  rule.check.name = selected_text(rule);
  return rule;
}

}  // namespace vmem::tools
