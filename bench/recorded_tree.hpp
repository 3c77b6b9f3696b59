// SPDX-License-Identifier: MIT
/// A recorded system of one process, in memory, for the time of a benchmark.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "vmem/sysroot.hpp"

namespace vmem::bench {

class RecordedTree {
 public:
  RecordedTree() {
    if (mkdtemp(path_.data()) == nullptr) std::abort();
    std::filesystem::create_directories(path_ + "/proc/1");
    file("manifest") << "vmem-tree 1\npage_size 4096\npfn_access full\n";
    file("proc/1/comm") << "bench\n";
  }
  ~RecordedTree() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  RecordedTree(const RecordedTree&) = delete;
  RecordedTree& operator=(const RecordedTree&) = delete;

  std::ofstream file(const std::string& name) const {
    return std::ofstream(path_ + "/" + name, std::ios::binary);
  }
  /// Once all files are there.
  void open() {
    if (auto root = SysRoot::open(path_)) root_ = std::move(*root);
  }
  const SysRoot& root() const { return *root_; }

 private:
  std::string path_ = "/dev/shm/vmem-bench-XXXXXX";
  std::optional<SysRoot> root_;
};

}  // namespace vmem::bench
