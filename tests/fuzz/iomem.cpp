// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"
#include "vmem/physmap.hpp"

using namespace vmem;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto iomem = Iomem::parse(fuzz::text(data, size));
  if (!iomem) return 0;
  std::size_t looked = 0;
  for (const IomemRegion& region : iomem->regions()) {
    fuzz::must(region.range.start <= region.range.end, "an inverted region");
    if (region.range.start == region.range.end) continue;
    const IomemRegion* const found = iomem->find(region.range.start);
    fuzz::must(found != nullptr && found->range.contains(region.range.start),
               "the region of another address");
    fuzz::must(found->depth >= region.depth, "not the innermost");
    if (++looked == 64) break;
  }
  (void)iomem->find({0});
  (void)iomem->find({~std::uint64_t{0}});
  return 0;
}
