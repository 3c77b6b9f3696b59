// SPDX-License-Identifier: MIT
#include "support/system_model.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "support/temp_dir.hpp"

namespace vmem::test {
namespace {

namespace fs = std::filesystem;

/// A file of u64 that is written in pieces and keeps its holes.
class SparseWords {
 public:
  explicit SparseWords(const fs::path& path)
      : path_(path), fd_(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) {
    if (fd_ < 0) fail();
  }
  ~SparseWords() { ::close(fd_); }
  SparseWords(const SparseWords&) = delete;
  SparseWords& operator=(const SparseWords&) = delete;

  void write_run(std::uint64_t index, std::uint64_t count, std::uint64_t first,
                 std::uint64_t step) {
    std::uint64_t value = first;
    while (count > 0) {
      const std::uint64_t now = std::min<std::uint64_t>(count, 8192);
      buffer_.resize(now);
      for (std::uint64_t& word : buffer_) {
        word = value;
        value += step;
      }
      const auto bytes = static_cast<ssize_t>(now * 8);
      if (pwrite(fd_, buffer_.data(), now * 8, static_cast<off_t>(index * 8)) != bytes) fail();
      index += now;
      count -= now;
    }
  }

  void set_size(std::uint64_t bytes) {
    if (ftruncate(fd_, static_cast<off_t>(bytes)) != 0) fail();
  }

 private:
  [[noreturn]] void fail() const { throw std::runtime_error("writing " + path_.string()); }
  fs::path path_;
  int fd_;
  std::vector<std::uint64_t> buffer_;
};

/// Where pagemap ends: after the last VMA of user space. The vsyscall page, in the upper
/// half, is beyond it, as it is on the live system.
std::uint64_t end_of_user_vmas(const std::string& maps) {
  std::uint64_t end = 0;
  std::size_t at = 0;
  while (at < maps.size()) {
    const std::size_t newline = maps.find('\n', at);
    // Of one line: sscanf looks for the end of all it is given.
    const std::string line = maps.substr(at, newline - at);
    unsigned long long from = 0, to = 0;
    if (std::sscanf(line.c_str(), "%llx-%llx ", &from, &to) == 2 && to <= 1ULL << 56) {
      end = std::max<std::uint64_t>(end, to);
    }
    if (newline == std::string::npos) break;
    at = newline + 1;
  }
  return end;
}

void write_process(const ProcessModel& process, std::uint64_t page_size, const fs::path& folder) {
  fs::create_directories(folder);
  write_file(folder / "maps", process.maps);
  for (const auto& [name, content] : process.files) write_file(folder / name, content);
  if (!process.has_pagemap) return;
  SparseWords pagemap(folder / "pagemap");
  for (const EntryRun& run : process.entries) {
    pagemap.write_run(run.va / page_size, run.pages, run.first, run.step);
  }
  pagemap.set_size(process.pagemap_bytes ? *process.pagemap_bytes
                                         : end_of_user_vmas(process.maps) / page_size * 8);
}

void write_frames(const SystemModel& system, const char* name,
                  std::optional<std::uint64_t> FrameRun::* fact, const fs::path& folder) {
  const auto has = [&](const FrameRun& run) { return (run.*fact).has_value(); };
  if (std::ranges::none_of(system.frames, has)) return;
  fs::create_directories(folder);
  SparseWords file(folder / name);
  std::uint64_t end = 0;
  for (const FrameRun& run : system.frames) {
    if (run.*fact) file.write_run(run.first, run.frames, *(run.*fact), 0);
    end = std::max(end, run.first + run.frames);
  }
  file.set_size(system.frames_end.value_or(end) * 8);
}

}  // namespace

void write_tree(const SystemModel& system, const fs::path& directory) {
  fs::create_directories(directory / "proc");
  if (!system.manifest.empty()) write_file(directory / "manifest", system.manifest);
  for (const ProcessModel& process : system.processes) {
    write_process(process, system.page_size, directory / "proc" / std::to_string(process.pid));
  }
  write_frames(system, "kpageflags", &FrameRun::flags, directory / "proc");
  write_frames(system, "kpagecount", &FrameRun::mapcount, directory / "proc");
  write_frames(system, "kpagecgroup", &FrameRun::memcg, directory / "proc");
  for (const auto& [path, content] : system.files) write_file(directory / path, content);
  for (const auto& [path, target] : system.links) {
    const fs::path link = directory / path;
    fs::create_directories(link.parent_path());
    fs::create_symlink(target, link);
  }
}

}  // namespace vmem::test
