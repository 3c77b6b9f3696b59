// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"
#include "vmem/maps.hpp"

using namespace vmem;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  tree.write("proc/1/maps",
             "1000-2000 rw-s 00000000 00:05 7 /dev/window\n20000-40000 rw-p 00000000 fe:00 9 "
             "/memfd:x (deleted)\n"
             "50000-60000 rw-p 00000000 00:0f 3 /mnt/huge/x\n");
  tree.write("proc/1/mountinfo", fuzz::text(data, size));
  const fuzz::System system(tree);
  const auto vmas = read_vmas(system.process);
  fuzz::must(vmas.has_value(), "maps");
  VmaInspector inspector(system.process);
  for (const Vma& vma : *vmas) {
    fuzz::must(!to_string(inspector.classify(vma).kind).empty(), "kind");
    inspector.blindness(vma);
  }
  return 0;
}
