// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"
#include "vmem/maps.hpp"

using namespace vmem;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  tree.write("proc/1/maps",
             "1000-2000 rw-s 00000000 00:05 7 /dev/window\n20000-40000 rw-p 00000000 00:00 0 \n");
  tree.write("proc/1/smaps", fuzz::text(data, size));
  const fuzz::System system(tree);
  SmapsReader reader(system.process);
  for (const std::uint64_t address : {std::uint64_t{0x1000}, std::uint64_t{0x2fff},
                                      std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{0x1000}}) {
    const auto entry = reader.find({address});
    if (!entry || !*entry) continue;
    fuzz::must((*entry)->range.contains({address}), "the entry of another address");
    if ((*entry)->kernel_page_size)
      fuzz::must(PageSize::valid((*entry)->kernel_page_size->bytes()), "page size");
    if ((*entry)->flags)
      fuzz::must((*entry)->flags->text().size() <= size, "flags longer than the text");
  }
  const auto vmas = read_vmas(system.process);
  fuzz::must(vmas.has_value(), "maps");
  VmaInspector inspector(system.process);
  for (const Vma& vma : *vmas) {
    inspector.classify(vma);
    inspector.blindness(vma);
    inspector.hugetlb_page_size(vma);
  }
  return 0;
}
