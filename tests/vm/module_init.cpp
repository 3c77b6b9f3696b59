// SPDX-License-Identifier: MIT
// What a module's init function leaves to somebody who opens and maps its devices, and opens its
// files in debugfs, all the while. The kernel frees a module whose init function fails in spite of
// open files, so that every file that was opened until then is a use after free: nobody must get
// in. Whether the kernel had anything to say is looked at after each test (tests/vm/init).
//
// vmtest: machines=smp
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <new>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest.hpp"

using namespace vmem::test;

namespace {

constexpr int windows = 4;
constexpr std::uint64_t page = 4096;
constexpr std::uint64_t base = 0x90000000;

/// Where no window can be, with room for some before it: firmware, and the RAM behind what is kept
/// from the kernel; a serial line.
#ifdef __x86_64__
constexpr std::uint64_t taken_ranges[] = {0xf0000, 0x98000000};
#else
constexpr std::uint64_t taken_ranges[] = {0x9000000};
#endif

std::string device(int number) { return "/dev/mem_mmap" + std::to_string(number); }

/// All that the modules make and that can be opened.
std::vector<std::string> all_files() {
  std::vector<std::string> files{"/dev/vmem"};
  for (int i = 1; i <= 16; ++i) {
    files.push_back(device(i));
    files.push_back("/sys/kernel/debug/mem_mmap/" + std::to_string(i) + "/truth");
  }
  return files;
}

/// Opens and maps whatever there is of them, without pause, and keeps what it has got.
class Opener {
 public:
  Opener() : files_(all_files()) {
    void* const memory =
        mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    shared_ = new (memory) Shared{};
    child_ = fork();
    if (child_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      run();
    }
    REQUIRE(child_ > 0);
    while (shared_->rounds == 0) sched_yield();
  }
  Opener(const Opener&) = delete;
  Opener& operator=(const Opener&) = delete;
  ~Opener() {
    finish();
    munmap(shared_, page);
  }

  /// How many files it could open until now.
  int opened() const { return shared_->opened; }
  /// Waits until it has tried all files once more, from first to last.
  void one_round() const {
    const unsigned seen = shared_->rounds;
    while (shared_->rounds < seen + 2) usleep(1000);
  }
  /// What open() failed with, other than "there is none".
  int surprise() const { return shared_->surprise; }

  /// Lets it use once more what it has, and end. Returns whether it came to that.
  bool finish() {
    shared_->stop = true;
    int status = 0;
    if (child_ > 0) status_ = waitpid(child_, &status, 0) == child_ && status == 0;
    child_ = -1;
    return status_;
  }

 private:
  struct Shared {
    std::atomic<unsigned> rounds;
    std::atomic<int> opened, surprise;
    std::atomic<bool> stop;
  };

  /// Everything that leads into the module.
  static void use(int fd) {
    struct stat status{};
    char text[256];
    (void)fstat(fd, &status);
    (void)!pread(fd, text, sizeof text, 0);
    for (const int flags : {MAP_SHARED, MAP_PRIVATE}) {
      void* const at = mmap(nullptr, page, PROT_READ, flags, fd, 0);
      if (at == MAP_FAILED) continue;
      (void)!pread(fd, text, sizeof text, 0);
      munmap(at, page);
    }
  }

  [[noreturn]] void run() {
    std::vector<int> held;
    while (!shared_->stop) {
      for (const std::string& file : files_) {
        const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
        if (fd < 0) {
          if (errno != ENOENT && errno != ENODEV) shared_->surprise = errno;
          continue;
        }
        ++shared_->opened;
        use(fd);
        if (held.size() < 64)
          held.push_back(fd);
        else
          close(fd);
      }
      ++shared_->rounds;
    }
    for (const int fd : held) {
      use(fd);
      close(fd);
    }
    _exit(0);
  }

  std::vector<std::string> files_;
  Shared* shared_ = nullptr;
  pid_t child_ = -1;
  bool status_ = false;
};

/// Lets this process's `call`-th call of a kernel function fail, and each take long enough for
/// others to open everything meanwhile.
struct FailCall : Module {
  FailCall(const std::string& function, int call, long result)
      : Module("fail_call", "function=" + function + " pid=" + std::to_string(getpid()) +
                                " call=" + std::to_string(call) +
                                " result=" + std::to_string(result) + " milliseconds=30") {}
  static int calls() {
    int number = 0;
    std::ifstream("/sys/module/fail_call/parameters/calls") >> number;
    return number;
  }
};

std::string parameters(std::uint64_t start, std::uint64_t bytes, int number) {
  std::ostringstream text;
  text << "base=0x" << std::hex << start << " len=0x" << bytes << std::dec << " windows=" << number;
  return text.str();
}

/// Nothing of the driver is left that can be seen.
void check_gone() {
  for (const std::string& file : all_files()) {
    INFO(file);
    CHECK(access(file.c_str(), F_OK) != 0);
  }
  CHECK(access("/sys/kernel/debug/mem_mmap", F_OK) != 0);
  CHECK(access("/sys/module/mem_mmap", F_OK) != 0);
  std::ifstream in("/proc/iomem");
  const std::string iomem{std::istreambuf_iterator<char>(in), {}};
  CHECK(iomem.find("mem_mmap") == std::string::npos);
}

/// Loading the module fails with `error`, and whoever tries gets nothing of it.
void check_failure(const std::string& module, const std::string& options, int error) {
  Opener opener;
  const int got = Module::load(module, options);
  CHECK(got == error);
  opener.one_round();
  CHECK(opener.opened() == 0);
  CHECK(opener.surprise() == 0);
  CHECK(opener.finish());
  if (got == 0) Module::unload(module);  // the next one finds what this one found
  check_gone();
}

}  // namespace

TEST_CASE("module_init: a window that is taken, with the others being opened meanwhile") {
  if (!in_guest()) return;
  for (const std::uint64_t range : taken_ranges) {
    for (int taken = 1; taken <= windows; ++taken) {
      INFO("window " << taken << " at " << range);
      const std::uint64_t first = range - static_cast<std::uint64_t>(taken - 1) * page;
      check_failure("mem_mmap", parameters(first, page, windows), EBUSY);
    }
  }
  // As many as there can be, and the last one is taken.
  check_failure("mem_mmap", parameters(taken_ranges[0] - 15 * page, page, 16), EBUSY);
}

TEST_CASE("module_init: each step of each window fails, with the others being opened meanwhile") {
  if (!in_guest()) return;
  struct Step {
    const char* function;
    long result;
    int error;
  };
  for (const auto& [function, result, error] : {
           Step{"insert_resource", -EBUSY, EBUSY},
#ifdef __x86_64__
           Step{"ioremap", 0, ENOMEM},
#endif
           Step{"misc_register", -ENOSPC, ENOSPC},
       }) {
    for (int call = 1; call <= windows; ++call) {
      INFO(function << " of window " << call);
      const FailCall fail(function, call, result);
      check_failure("mem_mmap", parameters(base, 16 * page, windows), error);
      CHECK(FailCall::calls() == call);
    }
  }
  const FailCall fail("misc_register", 1, -ENOSPC);
  check_failure("vmem", "", ENOSPC);
  CHECK(FailCall::calls() == 1);
}

TEST_CASE("module_init: who opens and maps while it loads gets the window, and keeps the module") {
  if (!in_guest()) return;
  for (const char* const function : {"misc_register", "insert_resource"}) {
    INFO(function);
    const FailCall slow(function, 0, 0);
    Opener opener;
    REQUIRE(Module::load("mem_mmap", parameters(base, 16 * page, windows)) == 0);
    CHECK(FailCall::calls() == windows);
    opener.one_round();
    CHECK(opener.opened() >= 2 * windows);
    CHECK(opener.surprise() == 0);
    CHECK(Module::unload("mem_mmap") == EAGAIN);
    for (int i = 1; i <= windows; ++i) {
      CHECK(truth(i).at(0).physical == base + static_cast<std::uint64_t>(i - 1) * 16 * page);
      const MappedFile mapping = map_device(device(i), 0, 16 * page);
      CHECK(mapping.error() == 0);
      CHECK(mapping.word(0));
    }
    CHECK(opener.finish());
    CHECK(Module::unload("mem_mmap") == 0);
    check_gone();
  }
  Opener opener;
  REQUIRE(Module::load("vmem") == 0);
  opener.one_round();
  CHECK(opener.opened() > 0);
  CHECK(Module::unload("vmem") == EAGAIN);
  CHECK(opener.finish());
  CHECK(Module::unload("vmem") == 0);
  check_gone();
}

TEST_CASE("module_init: loaded and unloaded again and again, with everything being opened") {
  if (!in_guest()) return;
  int loaded = 0;
  for (int i = 0; i < 15; ++i) {
    Opener opener;
    const bool good = i % 3 != 0;
    const int error =
        Module::load("mem_mmap", good ? parameters(base, 16 * page, windows)
                                      : parameters(taken_ranges[0] - 3 * page, page, windows));
    CHECK(error == (good ? 0 : EBUSY));
    CHECK(opener.finish());
    if (error == 0 && Module::unload("mem_mmap") == 0) ++loaded;
  }
  CHECK(loaded == 10);
  check_gone();
}
