// SPDX-License-Identifier: MIT
#include "support/require.hpp"

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "support/catch.hpp"

namespace vmem::test {

bool required(const char* feature) {
  const char* const list = std::getenv("VMEM_REQUIRE");
  std::string_view rest = list == nullptr ? "" : list;
  while (!rest.empty()) {
    const std::size_t comma = rest.find(',');
    if (rest.substr(0, comma) == feature) return true;
    if (comma == std::string_view::npos) break;
    rest.remove_prefix(comma + 1);
  }
  return false;
}

void skip_or_fail(const char* feature, const std::string& why) {
  if (required(feature)) FAIL("VMEM_REQUIRE names " << feature << ", but: " << why);
  std::fprintf(stderr, "SKIPPED: %s: %s\n", feature, why.c_str());
#ifdef VMEM_CATCH_HAS_SKIP
  SKIP(feature << ": " << why);
#else
  WARN("SKIPPED: " << feature << ": " << why);
#endif
}

}  // namespace vmem::test
