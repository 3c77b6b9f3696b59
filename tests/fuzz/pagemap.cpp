// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"
#include "vmem/pages.hpp"

using namespace vmem;

/// Any bytes as a pagemap: extents tile the range or an error says why not.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  if (size < 1) return 0;
  fuzz::write_manifest(tree, data[0]);
  tree.write("proc/1/maps",
             "0-4000 rw-p 00000000 00:00 0 \n6000-40000 rw-s 00000000 00:05 7 /dev/window\n");
  tree.write("proc/1/pagemap", fuzz::text(data + 1, size - 1));
  const fuzz::System system(tree);
  const auto translator = open_translator(system.process);
  fuzz::must(translator.has_value(), "translator");
  VmaInspector inspector(system.process);
  VirtAddr at{0};
  const auto result = translate(
      system.process, **translator, inspector, {{0}, {0x50000}}, {1, false},
      [&](const Vma* vma, const Extent& extent) {
        fuzz::must(extent.va == at && extent.bytes != 0 && extent.bytes % 4096 == 0, "not tiled");
        fuzz::must((vma == nullptr) == (extent.state == PageState::unmapped), "a gap with a VMA");
        at = extent.end();
        return true;
      });
  fuzz::must(!result || at == VirtAddr{0x50000}, "an end too early");
  return 0;
}
