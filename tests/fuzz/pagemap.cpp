// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"
#include "vmem/pages.hpp"

using namespace vmem;

/// Any bytes as a pagemap: extents tile the range or an error says why not.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  if (size < 1) return 0;
  constexpr std::string_view access[] = {"full", "hidden", "none"};
  tree.write("manifest", "page_size 4096\npfn_access " + std::string(access[data[0] % 3]) + "\n");
  tree.write("proc/1/maps",
             "0-4000 rw-p 00000000 00:00 0 \n6000-40000 rw-s 00000000 00:05 7 /dev/window\n");
  tree.write("proc/1/pagemap", fuzz::text(data + 1, size - 1));
  const auto root = SysRoot::open(tree.path());
  fuzz::must(root.has_value(), "opening");
  const auto process = root->process(1);
  fuzz::must(process.has_value(), "process");
  const auto translator = open_translator(*process);
  fuzz::must(translator.has_value(), "translator");
  VmaInspector inspector(*process);
  VirtAddr at{0};
  const auto result = translate(
      *process, **translator, inspector, {{0}, {0x50000}}, {1, false},
      [&](const Vma* vma, const Extent& extent) {
        fuzz::must(extent.va == at && extent.bytes != 0 && extent.bytes % 4096 == 0, "not tiled");
        fuzz::must((vma == nullptr) == (extent.state == PageState::unmapped), "a gap with a VMA");
        at = extent.end();
        return true;
      });
  fuzz::must(!result || at == VirtAddr{0x50000}, "an end too early");
  return 0;
}
