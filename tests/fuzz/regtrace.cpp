// SPDX-License-Identifier: MIT
// The log of `regaudit trace`, which the traced program can write whatever it likes into.
#include <sys/mman.h>

#include "../../tools/callers_rights.cpp"
#include "../../tools/regaudit_trace.cpp"
#include "fuzz_tree.hpp"

using namespace vmem;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const Fd fd{memfd_create("fuzz", MFD_CLOEXEC)};
  fuzz::must(fd.valid() && write(fd.get(), data, size) == static_cast<ssize_t>(size), "memfd");
  for (const pid_t pid : {0, 1, 2}) {
    const auto trace = tools::read_trace(fd, "fuzz", pid);
    if (!trace) continue;
    // No record of a registration is smaller than itself.
    fuzz::must(trace->regions.size() <= size / sizeof(regtrace_record), "more than there is");
    for (const tools::TracedRegion& region : trace->regions)
      fuzz::must(region.length != 0, "an empty region");
  }
  return 0;
}
