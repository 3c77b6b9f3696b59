// SPDX-License-Identifier: MIT
/// A recorded tree in memory whose one file the fuzzer writes.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

#include "vmem/sysroot.hpp"

namespace vmem::fuzz {

inline void must(bool good, const char* what) {
  if (good) return;
  std::perror(what);
  std::abort();
}

class Tree {
 public:
  Tree() {
    must(mkdtemp(path_.data()) != nullptr, "mkdtemp");
    std::filesystem::create_directories(path_ + "/proc/1");
  }
  ~Tree() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Tree(const Tree&) = delete;
  Tree& operator=(const Tree&) = delete;

  void write(const char* name, std::string_view content) const {
    const int fd =
        open((path_ + "/" + name).c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    must(fd >= 0, "open");
    must(::write(fd, content.data(), content.size()) == static_cast<ssize_t>(content.size()),
         "write");
    ::close(fd);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/dev/shm/vmem-fuzz-XXXXXX";
};

/// The recorded system and its one process.
struct System {
  explicit System(const Tree& tree) : root(opened(tree)), process(started(root)) {}
  SysRoot root;
  Process process;

 private:
  static SysRoot opened(const Tree& tree) {
    auto root = SysRoot::open(tree.path());
    must(root.has_value(), "opening");
    return std::move(*root);
  }
  static Process started(const SysRoot& root) {
    auto process = root.process(1);
    must(process.has_value(), "process");
    return std::move(*process);
  }
};

/// A machine of 4 KiB pages, with each kind of PFN access in turn.
inline void write_manifest(const Tree& tree, std::uint8_t which) {
  constexpr std::string_view access[] = {"full", "hidden", "none"};
  tree.write("manifest", "page_size 4096\npfn_access " + std::string(access[which % 3]) + "\n");
}

inline std::string_view text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace vmem::fuzz
