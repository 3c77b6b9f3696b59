// SPDX-License-Identifier: MIT
/// vmem-expand-fixture FIXTURE DIR: a fixture (tests/fixtures/README.md) as a recorded
/// tree, for `vtop --sysroot DIR`.
#include <cstdio>
#include <exception>
#include <filesystem>
#include <string_view>

#include "support/system_model.hpp"

int main(int argc, char** argv) {
  if (argc != 3 || std::string_view(argv[1]).starts_with("--")) {
    std::fputs("usage: vmem-expand-fixture FIXTURE DIR\n", stderr);
    return 2;
  }
  try {
    const std::filesystem::path directory = argv[2];
    if (std::filesystem::exists(directory) && !std::filesystem::is_empty(directory)) {
      std::fprintf(stderr, "vmem-expand-fixture: %s: not empty\n", argv[2]);
      return 2;
    }
    vmem::test::write_tree(vmem::test::load_fixture(argv[1]), directory);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "vmem-expand-fixture: %s\n", error.what());
    return 2;
  }
  return 0;
}
