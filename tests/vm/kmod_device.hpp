// SPDX-License-Identifier: MIT
/// What the tests of /dev/vmem have in common: the device, questions to it, plain readings of
/// pagemap, processes and memory to look at.
#pragma once

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "kmod/uapi/vmem.h"
#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/require.hpp"
#include "vmem/pages.hpp"

namespace vmem::test::kmod {

/// Where user addresses end that nobody asked to be higher: arch/x86/include/asm/page_64_types.h,
/// arch/arm64/include/asm/processor.h.
#if defined(__x86_64__)
constexpr std::uint64_t user_end = std::uint64_t{1} << 47;
#else
constexpr std::uint64_t user_end = std::uint64_t{1} << 48;
#endif
inline const std::uint64_t page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
constexpr std::uint64_t huge = std::uint64_t{2} << 20;

struct Descriptor {
  int fd = -1;
  explicit Descriptor(int opened = -1) : fd(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  Descriptor(Descriptor&& other) noexcept : fd(std::exchange(other.fd, -1)) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
};

/// /dev/vmem, open. In a guest the module is loaded for as long as this lives.
class Device : public Descriptor {
 public:
  Device() {
    if (access(VMEM_DEVICE, F_OK) != 0 && std::getenv("VMEM_VM") != nullptr) {
      module_.emplace("vmem");
    }
    fd = open(VMEM_DEVICE, O_RDONLY | O_CLOEXEC);
    opening_ = errno;
  }
  ~Device() {
    close(std::exchange(fd, -1));  // before the module goes
  }
  /// False, and the test skipped, where there is none.
  explicit operator bool() const {
    if (fd < 0) skip_or_fail("kmod", std::string(VMEM_DEVICE) + ": " + std::strerror(opening_));
    return fd >= 0;
  }

 private:
  std::optional<vmem::test::Module> module_;
  int opening_ = 0;
};

/// Field 22 of /proc/PID/stat, read on its own.
inline std::uint64_t start_time(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t comm_end = text.rfind(')');
  REQUIRE(comm_end != std::string::npos);
  unsigned long long ticks = 0;
  REQUIRE(std::sscanf(text.c_str() + comm_end + 2,
                      "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d "
                      "%*d %llu",
                      &ticks) == 1);
  return ticks;
}

/// The errno of an ioctl, 0 if it worked.
inline int call(const Descriptor& device, unsigned long command, void* argument) {
  return ioctl(device.fd, command, argument) == 0 ? 0 : errno;
}

inline vmem_resolve question(pid_t pid, std::uint64_t start, std::uint64_t end,
                             std::vector<vmem_run>& runs) {
  vmem_resolve ask{};
  ask.size = sizeof ask;
  ask.pid = pid;
  ask.start_time = start_time(pid);
  ask.start = start;
  ask.end = end;
  ask.runs = reinterpret_cast<std::uintptr_t>(runs.data());
  ask.runs_len = static_cast<std::uint32_t>(runs.size());
  return ask;
}

/// All runs of a range, `room` at a time.
inline std::vector<vmem_run> resolve(const Descriptor& device, pid_t pid, std::uint64_t start,
                                     std::uint64_t end, std::size_t room = 512) {
  std::vector<vmem_run> all, some(room);
  vmem_resolve ask = question(pid, start, end, some);
  while (ask.start < end) {
    REQUIRE(call(device, VMEM_IOC_RESOLVE, &ask) == 0);
    REQUIRE(ask.runs_count <= room);
    REQUIRE(ask.next > ask.start);
    REQUIRE(ask.next <= end);
    all.insert(all.end(), some.begin(), some.begin() + ask.runs_count);
    ask.start = ask.next;
  }
  return all;
}

/// One entry for each slot that is not empty: as if nothing had been merged.
struct Slot {
  std::uint64_t va, entry;
  unsigned level;
  friend bool operator==(const Slot&, const Slot&) = default;
};
inline std::vector<Slot> expand(const std::vector<vmem_run>& runs) {
  std::vector<Slot> slots;
  for (const vmem_run& run : runs) {
    const std::uint64_t step = (run.flags & VMEM_RUN_UP) != 0 ? std::uint64_t{1} << run.shift
                               : (run.flags & VMEM_RUN_DOWN) != 0
                                   ? 0 - (std::uint64_t{1} << run.shift)
                                   : 0;
    for (std::uint64_t i = 0; i < run.count; ++i) {
      const Slot slot{run.va + (i << run.shift), run.entry + i * step, run.level};
      // A leaf that two calls came upon is told twice.
      if (slots.empty() || slots.back().va != slot.va) slots.push_back(slot);
    }
  }
  return slots;
}

/// x86: the flag is shown where the kernel uses it, not only where the processor has it.
inline bool kernel_uses_five_levels() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  const std::string text{std::istreambuf_iterator<char>(cpuinfo), {}};
  return text.find(" la57") != std::string::npos;
}

struct Mapping {
  char* at = nullptr;
  std::size_t bytes = 0;
  Mapping(std::size_t length, int prot, int flags, int fd = -1, std::uint64_t hint = 0,
          std::uint64_t offset = 0)
      : bytes(length) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr)
    void* const got =
        mmap(reinterpret_cast<void*>(hint), length, prot, flags, fd, static_cast<off_t>(offset));
    at = got == MAP_FAILED ? nullptr : static_cast<char*>(got);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (at != nullptr) munmap(at, bytes);
  }
  std::uint64_t start() const { return reinterpret_cast<std::uintptr_t>(at); }
  std::uint64_t end() const { return start() + bytes; }
};

inline void touch(char* at, std::size_t bytes, std::size_t stride) {
  for (std::size_t i = 0; i < bytes; i += stride) at[i] = static_cast<char>(i / stride + 1);
}

inline std::uint64_t pagemap_entry(pid_t pid, std::uint64_t va) {
  const Descriptor fd{
      open(("/proc/" + std::to_string(pid) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC)};
  std::uint64_t entry = 0;
  REQUIRE(pread(fd.fd, &entry, sizeof entry, static_cast<off_t>(va / page * 8)) == sizeof entry);
  return entry;
}
constexpr std::uint64_t pagemap_present = std::uint64_t{1} << 63;
constexpr std::uint64_t pagemap_pfn = (std::uint64_t{1} << 55) - 1;

/// A child that runs `body` and then sleeps, and is killed at the end.
class Child {
 public:
  explicit Child(const std::function<void()>& body) {
    std::array<int, 2> ends{};
    REQUIRE(pipe2(ends.data(), O_CLOEXEC) == 0);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      try {
        body();
      } catch (...) {
        _exit(1);  // a failed REQUIRE: not for two processes to go on
      }
      (void)!write(ends[1], "r", 1);
      for (;;) pause();
    }
    close(ends[1]);
    char ready = 0;
    const bool started = read(ends[0], &ready, 1) == 1;
    close(ends[0]);
    REQUIRE(started);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() { end(); }
  void end() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
};

/// Runs `body` in a child; its return value is what the child exits with.
inline int in_child(const std::function<int()>& body) {
  const pid_t pid = fork();
  if (pid == 0) {
    try {
      _exit(body());
    } catch (...) {
      _exit(99);
    }
  }
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

inline bool drop_sys_admin() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (syscall(SYS_capget, &header, data) != 0) return false;
  for (auto* set : {&data[0].effective, &data[0].permitted, &data[0].inheritable}) {
    *set &= ~(1U << CAP_SYS_ADMIN);
  }
  return syscall(SYS_capset, &header, data) == 0;
}

inline Process process_of(pid_t pid) {
  const auto root = SysRoot::live();
  REQUIRE(root);
  auto process = root->process(pid);
  REQUIRE(process);
  return std::move(*process);
}

/// Every page of every VMA of a process that stands still: what pagemap says against what /dev/vmem
/// says. Returns how many pages both called resident.
inline std::uint64_t compare_backends(pid_t pid) {
  const Process process = process_of(pid);
  auto pagemap = open_translator(process, Backend::pagemap);
  auto kmod = open_translator(process, Backend::kmod);
  REQUIRE(pagemap);
  if (!kmod) FAIL(to_string(kmod.error()));
  auto reader = VmaReader::open(process);
  REQUIRE(reader);
  Vma vma;
  std::uint64_t resident = 0, differing = 0;
  std::string differences;
  while (*reader->next(vma)) {
    if (vma.path == "[vsyscall]") continue;
    std::vector<Extent> seen;
    const auto collect = [&](const Extent& e) {
      REQUIRE(e.va == (seen.empty() ? vma.range.start : seen.back().end()));
      REQUIRE(e.backend == Backend::kmod);
      seen.push_back(e);
      return true;
    };
    REQUIRE((*kmod)->walk(vma.range, {}, collect));
    REQUIRE((seen.empty() ? vma.range.start : seen.back().end()) == vma.range.end);
    std::size_t i = 0;
    const auto compare = [&](const Extent& e) {
      for (std::uint64_t at = e.va.value; at < e.end().value; at += page) {
        while (seen[i].end().value <= at) ++i;
        const Extent& k = seen[i];
        const std::uint64_t n = (at - k.va.value) / page, m = (at - e.va.value) / page;
        bool same = k.state == e.state;
        if (same && e.state == PageState::resident) {
          same = k.pfn.value + n == e.pfn.value + m &&
                 (k.bits & page_bit::soft_dirty) == (e.bits & page_bit::soft_dirty) &&
                 (e.leaf_shift == 0 || k.leaf_shift == e.leaf_shift);
          ++resident;
        } else if (same && e.state == PageState::swapped) {
          same = k.swap_type == e.swap_type && k.swap_offset + n == e.swap_offset + m;
        }
        if (!same && ++differing < 8) {
          std::ostringstream line;
          line << vma.path << " " << std::hex << at << ": pagemap " << to_string(e.state) << " "
               << e.pfn.value + m << " bits " << int{e.bits} << " leaf " << std::dec
               << int{e.leaf_shift} << std::hex << ", kmod " << to_string(k.state) << " "
               << k.pfn.value + n << " bits " << int{k.bits} << " leaf " << std::dec
               << int{k.leaf_shift} << "\n";
          differences += line.str();
        }
      }
      return true;
    };
    WalkOptions options;
    options.every_page = true;
    // A VM_PFNMAP VMA shows nothing at all in pagemap; then there is nothing to compare.
    bool blind = true;
    REQUIRE((*pagemap)->walk(vma.range, {}, [&](const Extent& e) {
      blind = blind && e.state == PageState::absent;
      return blind;
    }));
    if (blind) continue;
    REQUIRE((*pagemap)->walk(vma.range, options, compare));
  }
  INFO(differences);
  CHECK(differing == 0);
  return resident;
}

/// Hugetlb pages for the time of a test program; in a virtual machine nobody else wants them.
inline void fill_hugetlb_pool() {
  std::fstream pool("/proc/sys/vm/nr_hugepages");
  unsigned pages = 0;
  if (pool >> pages && pages < 8) {
    pool.clear();
    pool.seekp(0);
    pool << 8 << std::flush;
  }
}

/// QEMU's edu device, bound to vfio-pci for as long as this lives. `group` is empty where there is
/// no such device, or no IOMMU.
struct VfioDevice {
  std::string name, group;
  VfioDevice() {
    namespace fs = std::filesystem;
    const fs::path device = vmem::test::pci_device(0x1234, 0x11e8);
    if (device.empty() || !fs::exists(device / "iommu_group")) return;
    if (std::system("modprobe vfio_iommu_type1") != 0) return;
    name = device.filename();
    bound_.emplace(device, "vfio-pci", "vfio-pci");
    const std::string number = fs::read_symlink(device / "iommu_group").filename();
    if (fs::exists("/dev/vfio/" + number)) group = number;
  }

 private:
  std::optional<vmem::test::BoundDevice> bound_;
};

/// A page-by-page flip through every kind of memory that this makes; the process must hold still.
struct Kinds {
  Mapping anon{64 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS};
  Mapping none{16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS};
  Mapping zero{16 * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS};
  Mapping shared{16 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS};
  Mapping thp{4 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS};
  Mapping hugetlb{hugetlb_bytes(), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB};  // at is null where the pool is empty
  static std::size_t hugetlb_bytes() {
    fill_hugetlb_pool();
    return 2 * huge;
  }
  Kinds() {
    touch(anon.at, anon.bytes, 2 * page);
    touch(none.at, none.bytes, page);
    REQUIRE(mprotect(none.at, none.bytes, PROT_NONE) == 0);
    for (std::size_t i = 0; i < zero.bytes; i += page)
      (void)*static_cast<volatile char*>(zero.at + i);
    touch(shared.at, shared.bytes, page);
    (void)madvise(thp.at, thp.bytes, MADV_HUGEPAGE);
    touch(thp.at, thp.bytes, page);
    if (hugetlb.at != nullptr) touch(hugetlb.at, hugetlb.bytes, huge);
  }
};

}  // namespace vmem::test::kmod
