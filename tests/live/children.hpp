// SPDX-License-Identifier: MIT
/// Processes for the live tests to look at, and what has to be prepared on the machine.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/subprocess.hpp"

namespace vmem::test {

using Clock = std::chrono::steady_clock;

inline std::string first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

inline bool write_setting(const std::string& path, const std::string& value) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool written = write(fd, value.data(), value.size()) == static_cast<ssize_t>(value.size());
  close(fd);
  return written;
}

/// Held while a setting of the whole machine is changed: tests run side by side.
class MachineLock {
 public:
  MachineLock() : fd_(open("/proc/sys/vm", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (fd_ < 0 || flock(fd_, LOCK_EX) != 0) throw std::runtime_error("locking the machine");
  }
  ~MachineLock() { close(fd_); }
  MachineLock(const MachineLock&) = delete;
  MachineLock& operator=(const MachineLock&) = delete;

 private:
  int fd_;
};

/// A setting in /proc/sys or /sys, put back at the end.
class Setting {
 public:
  Setting(std::string path, const std::string& value)
      : path_(std::move(path)), before_(first_line(path_)), set_(write_setting(path_, value)) {}
  ~Setting() {
    if (set_) (void)write_setting(path_, before_);
  }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;
  bool set() const { return set_; }

 private:
  std::string path_, before_;
  bool set_;
};

/// Sixteen more huge pages of 2 MiB, or as many as there can be.
class HugePages {
 public:
  HugePages() {
    const std::string path = "/proc/sys/vm/nr_hugepages";
    const std::string before = first_line(path);
    if (!before.empty()) setting_.emplace(path, std::to_string(std::stoul(before) + 16));
  }

 private:
  MachineLock lock_;
  std::optional<Setting> setting_;
};

/// State letter of a process or thread, 0 when it is gone.
inline char task_state(const std::string& path) {
  const std::string stat = first_line(path + "/stat");
  const std::size_t at = stat.rfind(") ");
  return at == std::string::npos ? '\0' : stat[at + 2];
}

/// SIGSTOP, and not before every thread is at rest.
inline void stop(pid_t pid) {
  if (kill(pid, SIGSTOP) != 0) throw std::runtime_error("SIGSTOP");
  const auto deadline = Clock::now() + std::chrono::seconds(20);
  for (;;) {
    bool all = true;
    for (const auto& task :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
      all = all && std::strchr("TtZ", task_state(task.path().string())) != nullptr;
    }
    if (all) return;
    if (Clock::now() > deadline) throw std::runtime_error("the child does not stop");
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

/// A child of this process that dies with it, killed and reaped at the end.
class Child {
 public:
  explicit Child(pid_t pid) : pid_(pid) {
    if (pid < 0) throw std::runtime_error("fork");
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child& operator=(Child&&) = delete;
  ~Child() { end(); }
  pid_t pid() const { return pid_; }
  void end() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    (void)waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_;
};

/// Runs `body` in a forked child until it says it is ready (closes its end of the pipe by
/// calling the argument), then returns. The child must not return from `body` by exception.
inline Child fork_child(const std::function<void(const std::function<void()>&)>& body) {
  std::array<int, 2> ends{};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(ends[0]);
    body([&] {
      (void)!write(ends[1], "r", 1);
      close(ends[1]);
    });
    _exit(0);
  }
  close(ends[1]);
  char ready = 0;
  const bool told = pid > 0 && read(ends[0], &ready, 1) == 1;
  close(ends[0]);
  Child child(pid);
  if (!told) throw std::runtime_error("the child ended before it was ready");
  return child;
}

[[noreturn]] inline void wait_for_ever() {
  for (;;) pause();
}

/// A process with two transparent huge pages of 2 MiB at `*address`, and a child that has made its
/// own copies of some of their pages: of the first the pages 0 and 1, of the second all but page 0.
/// The process itself still maps both by one leaf each, where the kernel gave it such.
inline Child partly_shared_huge_pages(std::uint64_t* address) {
  constexpr std::size_t page = 4096, huge = std::size_t{2} << 20;
  return fork_child([&](const std::function<void()>& ready) {
    char* at = static_cast<char*>(
        mmap(nullptr, 3 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    at += (huge - reinterpret_cast<std::uintptr_t>(at) % huge) % huge;
    madvise(at, 2 * huge, MADV_HUGEPAGE);
    std::memset(at, 1, 2 * huge);
    *address = reinterpret_cast<std::uint64_t>(at);
    std::array<int, 2> ends{};
    if (pipe(ends.data()) != 0) return;
    if (fork() == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);  // ends with its parent
      // Else khugepaged may gather the second's pages into a huge page of the child's own.
      madvise(at, 2 * huge, MADV_NOHUGEPAGE);
      std::memset(at, 2, 2 * page);
      std::memset(at + huge + page, 2, huge - page);
      (void)!write(ends[1], "r", 1);
      wait_for_ever();
    }
    char copied = 0;
    if (read(ends[0], &copied, 1) == 1) ready();
    wait_for_ever();
  });
}

/// What memory-kinds says of one mapping.
struct Mapping {
  std::string name, vma_class, kind;
  std::uint64_t start = 0, end = 0;
  struct Pages {
    std::uint64_t first = 0, count = 0;
    std::string state;
    unsigned leaf_shift = 0;  ///< 0: no expectation
  };
  std::vector<Pages> pages;
};

inline Mapping parse_mapping(const std::string& line) {
  Mapping m;
  std::istringstream in(line);
  std::string word, pages;
  in >> word >> m.name >> m.vma_class >> m.kind >> std::hex >> m.start >> m.end >> pages;
  if (!in) throw std::runtime_error("memory-kinds said: " + line);
  if (pages == "-") return m;
  std::istringstream list(pages);
  while (std::getline(list, word, ',')) {
    Mapping::Pages p;
    char plus = 0, equals = 0;
    std::istringstream item(word);
    if (!(item >> p.first >> plus >> p.count >> equals >> p.state)) {
      throw std::runtime_error("memory-kinds said: " + line);
    }
    if (const std::size_t colon = p.state.find(':'); colon != std::string::npos) {
      p.leaf_shift = p.state.substr(colon + 1) == "2M" ? 21 : 12;
      p.state.resize(colon);
    }
    m.pages.push_back(p);
  }
  return m;
}

/// A directory on a file system that files stay files on: not tmpfs, whose are shared memory.
class FileDir {
 public:
  FileDir() {
    constexpr long tmpfs = 0x01021994;
    for (const char* parent : {"/tmp", "/var/tmp", "."}) {
      struct statfs facts{};
      std::string name = std::string(parent) + "/vmem-live-XXXXXX";
      if (statfs(parent, &facts) == 0 && facts.f_type != tmpfs && mkdtemp(name.data())) {
        path_ = name;
        return;
      }
    }
    throw std::runtime_error("no directory outside tmpfs");
  }
  ~FileDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  FileDir(const FileDir&) = delete;
  FileDir& operator=(const FileDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// memory-kinds, ready and stopped.
class KindsChild {
 public:
  explicit KindsChild(const std::vector<std::string>& names = {}) {
    std::array<int, 2> in{}, out{};
    if (pipe2(in.data(), O_CLOEXEC) != 0 || pipe2(out.data(), O_CLOEXEC) != 0) {
      throw std::runtime_error("pipe2");
    }
    const std::string program = program_path("MEMORY_KINDS", VMEM_MEMORY_KINDS_PATH);
    std::vector<const char*> argv{program.c_str(), directory_.path().c_str()};
    for (const std::string& name : names) argv.push_back(name.c_str());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(in[0], 0);
      dup2(out[1], 1);
      execv(argv[0], const_cast<char**>(argv.data()));
      _exit(127);
    }
    close(in[0]);
    close(out[1]);
    stdin_ = in[1];
    const bool ready = pid_ > 0 && read_until_ready(out[0]);
    close(out[0]);
    if (!ready) {
      end();
      throw std::runtime_error("memory-kinds ended before it was ready; last: " + last_);
    }
  }
  ~KindsChild() { end(); }
  KindsChild(const KindsChild&) = delete;
  KindsChild& operator=(const KindsChild&) = delete;

  pid_t pid() const { return pid_; }
  const std::vector<Mapping>& mappings() const { return mappings_; }
  const std::vector<std::string>& skips() const { return skips_; }
  const Mapping& mapping(const std::string& name) const {
    for (const Mapping& m : mappings_) {
      if (m.name == name) return m;
    }
    throw std::runtime_error("memory-kinds made no " + name);
  }

 private:
  bool read_until_ready(int fd) {
    FILE* const file = fdopen(dup(fd), "r");
    char* line = nullptr;
    std::size_t capacity = 0;
    bool ready = false;
    while (!ready && getline(&line, &capacity, file) > 0) {
      last_ = line;
      if (last_.starts_with("map\t")) mappings_.push_back(parse_mapping(last_));
      if (last_.starts_with("skip\t")) skips_.push_back(last_.substr(5, last_.size() - 6));
      ready = last_ == "ready\n";
    }
    std::free(line);
    (void)std::fclose(file);
    return ready;
  }

  void end() {
    close(stdin_);
    if (pid_ <= 0) return;
    // By the end of its input first: its forked children go with it.
    kill(pid_, SIGCONT);
    const auto deadline = Clock::now() + std::chrono::seconds(10);
    while (waitpid(pid_, nullptr, WNOHANG) == 0) {
      if (Clock::now() > deadline) kill(pid_, SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }

  FileDir directory_;
  pid_t pid_ = -1;
  int stdin_ = -1;
  std::string last_;
  std::vector<Mapping> mappings_;
  std::vector<std::string> skips_;
};

}  // namespace vmem::test
