// SPDX-License-Identifier: MIT
/// What every kind of memory-kinds is made with: a place, pages to touch, a line to say.
#pragma once

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace memory_kinds {

// Newer than the oldest kernel headers that this is built with.
constexpr int madv_populate_read = 22, madv_populate_write = 23, madv_collapse = 25;
constexpr int madv_guard_install = 102;
constexpr int map_droppable = 0x08;
constexpr int af_xdp = 44;

inline const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
constexpr std::size_t huge = std::size_t{2} << 20;
inline std::string directory;

/// Why a kind cannot be made here. Never caught but in main.
struct Skip {
  std::string why;
};

[[noreturn]] inline void skip(const char* what) {
  throw Skip{std::string(what) + ": " + std::strerror(errno)};
}

inline int check(long result, const char* what) {
  if (result < 0) skip(what);
  return static_cast<int>(result);
}

/// A fresh place for each mapping, with nothing next to it: neighbours would merge.
inline char* next_place(std::size_t bytes) {
  static std::uintptr_t place = 0x100000000000;
  const std::uintptr_t at = place;
  place += ((bytes + huge - 1) & ~(huge - 1)) + (std::uintptr_t{1} << 30);
  return reinterpret_cast<char*>(at);  // NOLINT(performance-no-int-to-ptr)
}

inline char* map(std::size_t bytes, int prot, int flags, int fd = -1, std::uint64_t offset = 0) {
  void* const at = mmap(next_place(bytes), bytes, prot, flags | MAP_FIXED_NOREPLACE, fd,
                        static_cast<off_t>(offset));
  if (at == MAP_FAILED) skip("mmap");
  return static_cast<char*>(at);
}

constexpr int read_write = PROT_READ | PROT_WRITE;

inline char* map_anon(std::size_t pages, int prot = read_write, int flags = MAP_PRIVATE) {
  return map(pages * page, prot, flags | MAP_ANONYMOUS);
}

/// No two pages alike, so that ksmd leaves them alone and zram keeps them.
inline void write_page(char* at) {
  static std::uint64_t serial = 0;
  std::uint64_t x = ++serial * 0x9e3779b97f4a7c15;
  for (std::size_t i = 0; i < page; i += sizeof x) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    std::memcpy(at + i, &x, sizeof x);
  }
}

inline void write_pages(char* at, std::size_t first, std::size_t count) {
  for (std::size_t i = first; i < first + count; ++i) write_page(at + i * page);
}

inline void read_pages(const char* at, std::size_t first, std::size_t count) {
  for (std::size_t i = first; i < first + count; ++i) {
    (void)*static_cast<const volatile char*>(at + i * page);
  }
}

inline void say(const char* name, const char* vma_class, const char* kind, const void* start,
                std::size_t bytes, const std::string& pages) {
  const auto address = reinterpret_cast<std::uintptr_t>(start);
  std::printf("map\t%s\t%s\t%s\t%" PRIxPTR "\t%" PRIxPTR "\t%s\n", name, vma_class, kind, address,
              address + bytes, pages.c_str());
}

inline std::string all(std::size_t pages, const char* state) {
  return "0+" + std::to_string(pages) + "=" + state;
}

/// A file of `pages` written pages in `in`.
inline int make_file(const std::string& path, std::size_t pages, int flags = 0) {
  const int fd =
      check(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | flags, 0600), "open");
  std::vector<char> content(pages * page);
  write_pages(content.data(), 0, pages);
  if (write(fd, content.data(), content.size()) != static_cast<ssize_t>(content.size())) {
    skip("write");
  }
  return fd;
}

/// Says every VMA whose name in maps is exactly `wanted`. Its own text parsing, by sscanf.
inline bool say_named(const char* name, const char* wanted, const char* vma_class, const char* kind,
                      const std::string& pages) {
  std::FILE* const maps = std::fopen("/proc/self/maps", "re");
  if (maps == nullptr) skip("maps");
  char* line = nullptr;
  std::size_t capacity = 0;
  bool found = false;
  while (getline(&line, &capacity, maps) > 0) {
    std::uintptr_t start = 0, end = 0;
    int at = 0;
    line[std::strcspn(line, "\n")] = '\0';
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %*s %n", &start, &end, &at) != 2 ||
        at == 0 || std::strcmp(line + at, wanted) != 0) {
      continue;
    }
    std::printf("map\t%s\t%s\t%s\t%" PRIxPTR "\t%" PRIxPTR "\t%s\n", name, vma_class, kind, start,
                end, pages.c_str());
    found = true;
  }
  std::free(line);
  (void)std::fclose(maps);
  return found;
}

/// Mounts `type` on a new directory, in a mount namespace that ends with this process.
inline std::string mount_private(const char* type) {
  static const bool own = [] {
    return unshare(CLONE_NEWNS) == 0 &&
           mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
  }();
  if (!own) skip("a mount namespace");
  std::string path = directory + "/" + type;
  if (mkdir(path.c_str(), 0700) != 0) skip("mkdir");
  if (mount("none", path.c_str(), type, 0, nullptr) != 0) skip("mount");
  return path;
}

/// 2 MiB aligned, because next_place() is.
inline char* huge_pages(std::size_t count) {
  char* const at = map_anon(count * huge / page);
  if (madvise(at, count * huge, MADV_HUGEPAGE) != 0) skip("MADV_HUGEPAGE");
  for (std::size_t i = 0; i < count; ++i) {
    write_pages(at, i * huge / page, huge / page);
    // Already huge unless memory was fragmented at the first write.
    if (madvise(at + i * huge, huge, madv_collapse) != 0) skip("MADV_COLLAPSE");
  }
  return at;
}

inline char* attach_sysv(int id) {
  const std::size_t bytes = 2 * huge;
  void* const at = shmat(id, next_place(bytes), 0);
  const int attach_errno = errno;
  shmctl(id, IPC_RMID, nullptr);  // It lives on while attached.
  errno = attach_errno;
  if (at == reinterpret_cast<void*>(-1)) skip("shmat");
  return static_cast<char*>(at);
}

/// io_uring refuses an address of the caller's choice.
inline char* map_anywhere(std::size_t bytes, int fd, std::uint64_t offset) {
  void* const at =
      mmap(nullptr, bytes, read_write, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(offset));
  if (at == MAP_FAILED) skip("mmap");
  return static_cast<char*>(at);
}

}  // namespace memory_kinds
