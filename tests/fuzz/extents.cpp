// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"
#include "vmem/pages.hpp"

using namespace vmem;

/// Any text as recorded extents: an error, or extents that tile the range and can be.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  if (size < 1) return 0;
  fuzz::write_manifest(tree, data[0]);
  tree.write("proc/1/extents", fuzz::text(data + 1, size - 1));
  const fuzz::System system(tree);
  const auto translator = open_translator(system.process);
  if (!translator) return 0;
  constexpr VaRange whole{{0}, {~std::uint64_t{0} & ~std::uint64_t{0xfff}}};
  VirtAddr at = whole.start;
  const auto walked = (*translator)->walk(whole, {}, [&](const Extent& e) {
    fuzz::must(e.va == at && e.bytes != 0 && e.bytes % 4096 == 0 && e.end() > e.va, "not tiled");
    if (e.state == PageState::resident) {
      constexpr std::uint64_t frames = std::uint64_t{1} << 48;
      fuzz::must(e.pfn.value < frames && e.bytes / 4096 <= frames - e.pfn.value, "no such frame");
    }
    at = e.end();
    return true;
  });
  fuzz::must(walked && at == whole.end, "an end too early");
  return 0;
}
