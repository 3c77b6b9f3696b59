// SPDX-License-Identifier: MIT
/// vmem-bench-target WORKLOAD: makes it, prints "START END", and holds it until stdin ends.
#include <unistd.h>

#include <cstdio>

#include "workload.hpp"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: vmem-bench-target WORKLOAD\n", stderr);
    for (const auto& workload : vmem::bench::workloads()) {
      std::fprintf(stderr, "  %-18s %s\n", workload.name.data(), workload.what.data());
    }
    return 2;
  }
  const auto scale = vmem::bench::scale_from_environment();
  if (!scale) {
    std::fprintf(stderr, "vmem-bench-target: %s\n", scale.error().c_str());
    return 2;
  }
  return vmem::bench::serve(argv[1], *scale, STDIN_FILENO, STDOUT_FILENO);
}
