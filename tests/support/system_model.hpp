// SPDX-License-Identifier: MIT
/// A system as tests describe it, and how it becomes a tree that SysRoot::open reads.
/// Uses nothing of the library, so that it can be its oracle's source.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace vmem::test {

/// Consecutive pagemap entries: `first`, first + step, first + 2 step, ...
struct EntryRun {
  std::uint64_t va = 0;
  std::uint64_t pages = 1;
  std::uint64_t first = 0;
  std::uint64_t step = 0;
};

struct ProcessModel {
  int pid = 0;
  std::string maps;
  std::vector<EntryRun> entries;
  /// Size of pagemap in bytes; by default it ends with the last VMA below 2^56.
  std::optional<std::uint64_t> pagemap_bytes;
  bool has_pagemap = true;
  std::map<std::string, std::string> files;  ///< below proc/PID, maps and pagemap apart
};

/// Frames with equal facts. What is empty is not recorded.
struct FrameRun {
  std::uint64_t first = 0;
  std::uint64_t frames = 1;
  std::optional<std::uint64_t> flags, mapcount, memcg;
};

struct SystemModel {
  std::string manifest;  ///< verbatim; empty: none
  std::uint64_t page_size = 4096;
  std::vector<ProcessModel> processes;
  std::vector<FrameRun> frames;
  std::optional<std::uint64_t> frames_end;   ///< how many entries the kpage* files hold
  std::map<std::string, std::string> files;  ///< anywhere in the tree
  std::map<std::string, std::string> links;  ///< symbolic links: path to target
};

/// Writes the tree into `directory`, which is created if need be. Throws on failure.
void write_tree(const SystemModel& system, const std::filesystem::path& directory);

/// Reads a fixture as tests/fixtures/README.md describes it. Throws std::runtime_error
/// with file and line where it is not well formed.
SystemModel load_fixture(const std::filesystem::path& fixture);

/// The folder of this repository's fixtures: VMEM_FIXTURES, else as configured.
std::filesystem::path fixtures_folder();

/// pagemap entries, by the table in Documentation/admin-guide/mm/pagemap.rst.
namespace entry {
inline constexpr std::uint64_t soft_dirty = 1ULL << 55, exclusive = 1ULL << 56,
                               uffd_wp = 1ULL << 57, guard = 1ULL << 58, file = 1ULL << 61,
                               swap = 1ULL << 62, present = 1ULL << 63;
constexpr std::uint64_t swapped(std::uint64_t type, std::uint64_t offset) {
  return swap | type | offset << 5;
}
inline constexpr std::uint64_t swap_step = 1ULL << 5;
/// What MADV_GUARD_INSTALL shows on 6.15 and later.
inline constexpr std::uint64_t guard_page = 0x440000000000009fULL;
}  // namespace entry

}  // namespace vmem::test
