// SPDX-License-Identifier: MIT
#include "fuzz_tree.hpp"

using namespace vmem;

/// proc/PID/stat and status, split at the first zero byte.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  const std::string_view all = fuzz::text(data, size);
  const std::size_t zero = all.find('\0');
  tree.write("proc/1/stat", all.substr(0, zero));
  tree.write("proc/1/status", zero == std::string_view::npos ? "" : all.substr(zero + 1));
  tree.write("proc/1/maps", "1000-2000 rw-p 00000000 00:00 0 \n");
  const auto root = SysRoot::open(tree.path());
  fuzz::must(root.has_value(), "opening");
  const auto process = root->process(1);
  if (process) {
    fuzz::must(process->comm().size() <= size, "comm");
    fuzz::must(process->pid() > 0, "pid");
  } else {
    fuzz::must(to_string(process.error()).find('\n') == std::string::npos, "an error of two lines");
  }
  return 0;
}
