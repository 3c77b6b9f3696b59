// SPDX-License-Identifier: MIT
/// vmem-bench: libvmem in process, each row beside the plain C reader, in turn.
#include <cstdio>

#include "pairing.hpp"

int main(int argc, char** argv) {
  if (const auto scale = vmem::bench::scale_from_environment(); !scale) {
    std::fprintf(stderr, "vmem-bench: %s\n", scale.error().c_str());
    return 2;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  vmem::bench::register_walks();
  vmem::bench::register_lookups();
  benchmark::RunSpecifiedBenchmarks();
  vmem::bench::end_subject();
  benchmark::Shutdown();
  return 0;
}
