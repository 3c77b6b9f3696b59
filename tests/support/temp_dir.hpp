// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

namespace vmem::test {

/// A fresh directory, removed with all that is in it. In memory (/dev/shm) unless
/// VMEM_TEST_TMP names another place: recorded trees hold large sparse files.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string string() const { return path_.string(); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

void write_file(const std::filesystem::path& path, const std::string& content);
std::string read_file(const std::filesystem::path& path);

}  // namespace vmem::test
