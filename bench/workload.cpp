// SPDX-License-Identifier: MIT
#include "workload.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <utility>

namespace vmem::bench {
namespace {

constexpr std::uint64_t KiB = 1024, MiB = 1024 * KiB, GiB = 1024 * MiB, TiB = 1024 * GiB;

constexpr auto table = std::to_array<Workload>({
    {"anon", "8 GiB anonymous, 4 KiB pages"},
    {"thp", "8 GiB anonymous, transparent huge pages"},
    {"shm", "4 GiB shared memory, 4 KiB pages"},
    {"hugetlb", "2 GiB hugetlb"},
    {"file", "4 GiB file in the page cache"},
    {"sparse-worst", "16 TiB, one page per 64 MiB"},
    {"sparse-clustered", "16 TiB PROT_NONE, 1024 clusters of 1 MiB"},
    {"sparse-untouched", "16 TiB PROT_NONE, untouched"},
    {"vmas", "60,000 VMAs of one page"},
    {"small", "one page"},
});

using Made = std::expected<Memory, std::string>;

std::uint64_t hugepages_added = 0;
constexpr const char* hugepage_pool = "/proc/sys/vm/nr_hugepages";

std::unexpected<std::string> failed(const char* what) {
  return std::unexpected(std::string(what) + ": " + std::strerror(errno));
}

std::uint64_t page_size() { return static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)); }

/// `bytes` by the scale, in whole `unit`s, at least one.
std::uint64_t scaled(std::uint64_t bytes, double scale, std::uint64_t unit) {
  const auto units = static_cast<std::uint64_t>(static_cast<double>(bytes / unit) * scale);
  return std::max<std::uint64_t>(units, 1) * unit;
}

Memory range(void* start, std::uint64_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(start);
  return {at, at + bytes};
}

/// A mapping that starts at a multiple of `alignment`.
void* map(std::uint64_t bytes, std::uint64_t alignment, int protection, int flags) {
  void* area = mmap(nullptr, bytes + alignment, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (area == MAP_FAILED) return MAP_FAILED;
  const auto at = (reinterpret_cast<std::uintptr_t>(area) + alignment - 1) / alignment * alignment;
  munmap(area, bytes + alignment);
  return mmap(reinterpret_cast<void*>(at), bytes, protection,
              flags | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
}

/// A different word in each page, so that nothing merges them.
void touch(void* start, std::uint64_t bytes, std::uint64_t step) {
  auto* p = static_cast<char*>(start);
  for (std::uint64_t at = 0; at < bytes; at += step) std::memcpy(p + at, &at, sizeof at);
}

Made make_anonymous(std::uint64_t bytes, int sharing, bool huge) {
  void* p = map(bytes, 2 * MiB, PROT_READ | PROT_WRITE, sharing);
  if (p == MAP_FAILED) return failed("mmap");
  if (madvise(p, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) != 0 && huge)
    return failed("madvise(MADV_HUGEPAGE)");
  touch(p, bytes, page_size());
  if (!huge) return range(p, bytes);
  std::ifstream rollup{"/proc/self/smaps_rollup"};
  std::string key;
  for (std::uint64_t kib = 0; rollup >> key;) {
    if (key != "AnonHugePages:") continue;
    rollup >> kib;
    if (kib * KiB >= bytes / 10 * 9) return range(p, bytes);
  }
  return std::unexpected("under 90 % of the memory came in huge pages");
}

std::uint64_t read_number(const char* path) {
  std::uint64_t value = 0;
  std::ifstream{path} >> value;
  return value;
}

Made make_hugetlb(std::uint64_t bytes) {
  const std::uint64_t pages = bytes / (2 * MiB);
  const std::uint64_t before = read_number(hugepage_pool);
  {
    std::ofstream pool{hugepage_pool};
    pool << before + pages << std::flush;
  }
  const std::uint64_t after = read_number(hugepage_pool);
  hugepages_added = after > before ? after - before : 0;
  if (hugepages_added < pages) return std::unexpected("the pool of huge pages could not be raised");
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
  if (p == MAP_FAILED) return failed("mmap(MAP_HUGETLB)");
  touch(p, bytes, 2 * MiB);
  return range(p, bytes);
}

Made make_file(std::uint64_t bytes) {
  const char* directory = std::getenv("TMPDIR");
  const int fd =
      open(directory != nullptr ? directory : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) return failed("O_TMPFILE");
  if (posix_fallocate(fd, 0, static_cast<off_t>(bytes)) != 0)
    return std::unexpected("no disk space");
  void* p = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return failed("mmap");
  const auto* bytes_of = static_cast<const volatile char*>(p);
  for (std::uint64_t at = 0; at < bytes; at += page_size()) static_cast<void>(bytes_of[at]);
  return range(p, bytes);
}

Made make_sparse(std::uint64_t bytes, int protection) {
  void* p = map(bytes, 64 * MiB, protection, MAP_PRIVATE);
  if (p == MAP_FAILED) return failed("mmap");
  madvise(p, bytes, MADV_NOHUGEPAGE);
  return range(p, bytes);
}

Made make_clusters(std::uint64_t bytes) {
  auto memory = make_sparse(bytes, PROT_NONE);
  if (!memory) return memory;
  constexpr std::uint64_t distance = 16 * GiB;
  for (std::uint64_t at = memory->start; at < memory->end; at += distance) {
    void* cluster = reinterpret_cast<void*>(at);
    if (mprotect(cluster, MiB, PROT_READ | PROT_WRITE) != 0) return failed("mprotect");
    touch(cluster, MiB, page_size());
  }
  return memory;
}

/// Neighbours differ in protection, so each page is a VMA.
Made make_vmas(std::uint64_t count) {
  const std::uint64_t page = page_size();
  auto memory = make_anonymous(count * page, MAP_PRIVATE, false);
  if (!memory) return memory;
  for (std::uint64_t at = memory->start; at < memory->end; at += 2 * page) {
    if (mprotect(reinterpret_cast<void*>(at), page, PROT_READ) != 0)
      return failed("mprotect (vm.max_map_count?)");
  }
  return memory;
}

void say(int fd, const std::string& text) {
  if (write(fd, text.data(), text.size()) < 0) std::perror("vmem-bench: pipe");
}

}  // namespace

std::span<const Workload> workloads() { return table; }

std::expected<double, std::string> scale_from_environment() {
  const char* text = std::getenv("VMEM_BENCH_SCALE");
  if (text == nullptr) return 1.0;
  char* end = nullptr;
  const double scale = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(scale > 0) || scale > 1) {
    return std::unexpected(std::string("VMEM_BENCH_SCALE: not a number over 0 and up to 1: ") +
                           text);
  }
  return scale;
}

Made make(std::string_view name, double scale) {
  const auto sized = [&](std::uint64_t bytes) { return scaled(bytes, scale, 2 * MiB); };
  const std::uint64_t space = scaled(16 * TiB, scale, 16 * GiB);
  if (name == "anon") return make_anonymous(sized(8 * GiB), MAP_PRIVATE, false);
  if (name == "thp") return make_anonymous(sized(8 * GiB), MAP_PRIVATE, true);
  if (name == "shm") return make_anonymous(sized(4 * GiB), MAP_SHARED, false);
  if (name == "hugetlb") return make_hugetlb(sized(2 * GiB));
  if (name == "file") return make_file(sized(4 * GiB));
  if (name == "sparse-worst") {
    auto memory = make_sparse(space, PROT_READ | PROT_WRITE);
    if (memory) touch(reinterpret_cast<void*>(memory->start), space, 64 * MiB);
    return memory;
  }
  if (name == "sparse-clustered") return make_clusters(space);
  if (name == "sparse-untouched") return make_sparse(space, PROT_NONE);
  if (name == "vmas") return make_vmas(scaled(60000, scale, 2));
  if (name == "small") return make_anonymous(page_size(), MAP_PRIVATE, false);
  return std::unexpected("no such workload: " + std::string(name));
}

void release() {
  if (hugepages_added == 0) return;
  // Not the old value but what was added: others may have changed the pool meanwhile.
  const std::uint64_t now = read_number(hugepage_pool);
  std::ofstream{hugepage_pool} << (now > hugepages_added ? now - hugepages_added : 0);
  hugepages_added = 0;
}

int serve(std::string_view name, double scale, int in, int out) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) std::signal(signal, SIG_IGN);
  const auto memory = make(name, scale);
  if (!memory) {
    release();
    say(out, "error: " + memory.error() + "\n");
    return 1;
  }
  char line[64];
  std::snprintf(line, sizeof line, "%llx %llx\n", static_cast<unsigned long long>(memory->start),
                static_cast<unsigned long long>(memory->end));
  say(out, line);
  char byte = 0;
  while (read(in, &byte, 1) > 0 || errno == EINTR) errno = 0;
  munmap(reinterpret_cast<void*>(memory->start), memory->end - memory->start);
  release();
  return 0;
}

std::expected<Target, std::string> Target::start(std::string_view name, double scale) {
  int control[2];
  int answer[2];
  if (pipe2(control, O_CLOEXEC) != 0 || pipe2(answer, O_CLOEXEC) != 0) return failed("pipe");
  Target target;
  target.pid_ = fork();
  if (target.pid_ < 0) return failed("fork");
  if (target.pid_ == 0) {
    close(control[1]);
    close(answer[0]);
    _exit(serve(name, scale, control[0], answer[1]));
  }
  close(control[0]);
  close(answer[1]);
  target.control_ = control[1];
  std::string line;
  char piece[256];
  for (ssize_t got = 0;
       (got = read(answer[0], piece, sizeof piece)) > 0 && !line.ends_with('\n');) {
    line.append(piece, static_cast<std::size_t>(got));
    if (line.ends_with('\n')) break;
  }
  close(answer[0]);
  unsigned long long start = 0;
  unsigned long long end = 0;
  if (std::sscanf(line.c_str(), "%llx %llx", &start, &end) != 2) {
    if (line.ends_with('\n')) line.pop_back();
    return std::unexpected(line.empty() ? std::string("the target process died") : line);
  }
  target.memory_ = {start, end};
  return target;
}

Target::Target(Target&& other) noexcept
    : pid_(std::exchange(other.pid_, 0)),
      control_(std::exchange(other.control_, -1)),
      memory_(other.memory_) {}

Target& Target::operator=(Target&& other) noexcept {
  if (this != &other) {
    end();
    pid_ = std::exchange(other.pid_, 0);
    control_ = std::exchange(other.control_, -1);
    memory_ = other.memory_;
  }
  return *this;
}

Target::~Target() { end(); }

void Target::end() {
  if (control_ >= 0) close(control_);
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
  control_ = -1;
  pid_ = 0;
}

}  // namespace vmem::bench
