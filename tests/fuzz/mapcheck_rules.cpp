// SPDX-License-Identifier: MIT
// Expectations and policies. The tools are programs, not a library: the sources themselves are
// taken in.
#define FMT_HEADER_ONLY 1
#include "../../tools/mapcheck_rules.cpp"

#include "../../tools/addresses.cpp"
#include "../../tools/mapcheck_policy.cpp"
#include "../../tools/render.cpp"
#include "fuzz_tree.hpp"

using namespace vmem;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::text(data, size);
  const auto check = [](const tools::Rule& rule) {
    fuzz::must(!rule.select.empty(), "selects nothing");
    if (rule.window.form == tools::WindowText::Form::literal)
      fuzz::must(rule.window.range.start < rule.window.range.end, "an empty window");
    Vma vma;
    vma.path = "/dev/mem_mmap1";
    vma.range = {{0x1000}, {0x2000}};
    (void)rule.check.select.selects(vma);
    const std::string words = tools::cache_words(rule.check.cache);
    if (rule.check.cache != 0) {
      Check again;
      fuzz::must(tools::set_option(again, "cache", words).has_value(), "cache words");
      fuzz::must((rule.check.cache & ~again.cache) == 0, "cache words lose some");
    }
  };
  if (const auto rule = tools::parse_expectation(text))
    check(*rule);
  else
    fuzz::must(!rule.error().empty(), "a reason");
  if (const auto rules = tools::parse_policy(text, "p")) {
    fuzz::must(!rules->empty(), "no rules");
    for (const tools::Rule& rule : *rules) check(rule);
  } else {
    fuzz::must(rules.error().starts_with("p:"), "a place");
  }
  return 0;
}
