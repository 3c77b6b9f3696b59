// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"

using namespace vmem;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  tree.write("manifest", fuzz::text(data, size));
  const auto root = SysRoot::open(tree.path());
  if (root) {
    const std::uint64_t bytes = root->page_size().bytes();
    fuzz::must(PageSize::valid(bytes), "page size");
    fuzz::must(root->kernel_release().size() <= size, "kernel");
  } else {
    fuzz::must(to_string(root.error()).find('\n') == std::string::npos, "an error of two lines");
  }
  return 0;
}
