// SPDX-License-Identifier: MIT
#include "support/temp_dir.hpp"

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace vmem::test {
namespace {

std::string parent() {
  if (const char* named = std::getenv("VMEM_TEST_TMP"); named != nullptr && *named != '\0')
    return named;
  if (access("/dev/shm", W_OK | X_OK) == 0) return "/dev/shm";
  if (const char* named = std::getenv("TMPDIR"); named != nullptr && *named != '\0') return named;
  return "/tmp";
}

}  // namespace

TempDir::TempDir() {
  std::string name = parent() + "/vmem-test-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp " + name);
  // Unprivileged children of a test read in it.
  std::filesystem::permissions(name, static_cast<std::filesystem::perms>(0755));
  path_ = name;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void write_file(const std::filesystem::path& path, const std::string& content) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary);
  out.write(content.data(), static_cast<std::streamsize>(content.size()));
  if (!out.flush()) throw std::runtime_error("writing " + path.string());
}

std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("reading " + path.string());
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace vmem::test
