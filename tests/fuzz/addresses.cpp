// SPDX-License-Identifier: MIT
// The tools are programs, not a library: the source itself is taken in.
#include "../../tools/addresses.cpp"

#include "fuzz_tree.hpp"

using namespace vmem;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::text(data, size);
  const auto parsed = tools::parse_address(text);
  if (!parsed) {
    fuzz::must(!parsed.error().empty(), "a reason");
    return 0;
  }
  using Form = tools::AddressExpression::Form;
  if (parsed->form == Form::range) fuzz::must(parsed->start < parsed->end, "an empty range");
  if (parsed->form == Form::name)
    fuzz::must(parsed->name.starts_with('[') && parsed->name.ends_with(']'),
               "a name without brackets");
  if (parsed->form == Form::file_offset) fuzz::must(!parsed->name.empty(), "a file without a name");
  fuzz::must(!text.empty(), "nothing is not an address");
  return 0;
}
