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

inline std::string_view text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace vmem::fuzz
