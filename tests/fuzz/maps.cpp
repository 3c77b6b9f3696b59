// SPDX-License-Identifier: MIT
#include "vmem/maps.hpp"

#include "fuzz_tree.hpp"

using namespace vmem;

/// The text as a whole, line by line, and as a file: what is accepted is well formed, and
/// all three agree.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view all = fuzz::text(data, size);
  std::size_t lines = 0;
  const auto parsed = parse_maps(all, [&](const Vma& vma) {
    fuzz::must(vma.range.start < vma.range.end, "an empty VMA");
    fuzz::must(vma.path.size() <= all.size(), "a name longer than the text");
    ++lines;
    return true;
  });
  if (!parsed) fuzz::must(parsed.error().address < all.size(), "an error beyond the text");

  std::size_t good = 0;
  bool intact = true;
  for (std::string_view rest = all; !rest.empty() && intact;) {
    const std::size_t newline = rest.find('\n');
    Vma vma;
    intact = parse_maps_line(rest.substr(0, newline), vma);
    good += intact ? 1 : 0;
    rest.remove_prefix(newline == std::string_view::npos ? rest.size() : newline + 1);
  }
  fuzz::must(intact == parsed.has_value() && good == lines, "line by line it is another answer");

  static const fuzz::Tree tree;
  tree.write("proc/1/maps", all);
  const fuzz::System system(tree);
  const auto vmas = read_vmas(system.process);
  if (!vmas) return 0;
  fuzz::must(parsed.has_value() && vmas->size() == lines, "the file is another answer");
  for (const Vma& vma : *vmas) {
    classify(vma, {}, system.root.page_size());
    const auto found = find_vma(system.process, vma.range.start);
    fuzz::must(found && *found == vma, "find_vma");
    if (vmas->size() > 8) break;
  }
  return 0;
}
