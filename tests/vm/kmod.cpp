// SPDX-License-Identifier: MIT
// /dev/vmem and the backend on it. The oracles are pagemap, kpagecount, sysfs, and what this
// program itself mapped, pinned and gave up. Runs where vmem.ko is loaded, or can be: in a guest of
// scripts/vmtest.
//
// vmtest: machines=fast,pc,pti,iommu
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/io_uring.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kmod/uapi/vmem.h"
#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/require.hpp"
#include "vmem/pages.hpp"

using namespace vmem;
using vmem::test::skip_or_fail;

namespace {

const std::uint64_t page = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
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
std::uint64_t start_time(pid_t pid) {
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
int call(const Descriptor& device, unsigned long command, void* argument) {
  return ioctl(device.fd, command, argument) == 0 ? 0 : errno;
}

vmem_resolve question(pid_t pid, std::uint64_t start, std::uint64_t end,
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
std::vector<vmem_run> resolve(const Descriptor& device, pid_t pid, std::uint64_t start,
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
std::vector<Slot> expand(const std::vector<vmem_run>& runs) {
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
bool kernel_uses_five_levels() {
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

void touch(char* at, std::size_t bytes, std::size_t stride) {
  for (std::size_t i = 0; i < bytes; i += stride) at[i] = static_cast<char>(i / stride + 1);
}

std::uint64_t pagemap_entry(pid_t pid, std::uint64_t va) {
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
int in_child(const std::function<int()>& body) {
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

bool drop_sys_admin() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (syscall(SYS_capget, &header, data) != 0) return false;
  for (auto* set : {&data[0].effective, &data[0].permitted, &data[0].inheritable}) {
    *set &= ~(1U << CAP_SYS_ADMIN);
  }
  return syscall(SYS_capset, &header, data) == 0;
}

Process process_of(pid_t pid) {
  const auto root = SysRoot::live();
  REQUIRE(root);
  auto process = root->process(pid);
  REQUIRE(process);
  return std::move(*process);
}

/// Every page of every VMA of a process that stands still: what pagemap says against what /dev/vmem
/// says. Returns how many pages both called resident.
std::uint64_t compare_backends(pid_t pid) {
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
void fill_hugetlb_pool() {
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

}  // namespace

TEST_CASE("kmod: INFO tells how to read entries") {
  const Device device;
  if (!device) return;
  vmem_info info{};
  info.size = sizeof info;
  REQUIRE(call(device, VMEM_IOC_INFO, &info) == 0);
  CHECK(info.size == sizeof info);
  CHECK(info.protocol == VMEM_PROTOCOL);
  CHECK(std::uint64_t{1} << info.page_shift == page);
  CHECK(info.reserved == 0);
#if defined(__x86_64__)
  CHECK(info.architecture == VMEM_ARCH_X86_64);
  CHECK(info.levels == (kernel_uses_five_levels() ? 5 : 4));
  // Linux's own arrangement, pat_bp_init(); the first two agree on every machine.
  CHECK((info.pat & 0xff) == 6);
  CHECK((info.pat >> 8 & 0xff) == 1);
  CHECK(info.swap_type_shift == 59);
#elif defined(__aarch64__)
  CHECK(info.architecture == VMEM_ARCH_ARM64);
  CHECK(info.mair != 0);
  CHECK((info.swap_type_shift == 2 || info.swap_type_shift == 3 || info.swap_type_shift == 6));
#endif

  // Structures grow: a caller of a later version, and one that is wrong.
  std::vector<unsigned char> larger(sizeof info + 64);
  const auto size = static_cast<std::uint32_t>(larger.size());
  std::memcpy(larger.data(), &size, sizeof size);
  CHECK(call(device, VMEM_IOC_INFO, larger.data()) == 0);
  larger.back() = 1;
  std::memcpy(larger.data(), &size, sizeof size);
  CHECK(call(device, VMEM_IOC_INFO, larger.data()) == E2BIG);
}

TEST_CASE("kmod: arguments that mean nothing are refused, whatever they are") {
  const Device device;
  if (!device) return;
  std::vector<vmem_run> runs(8);
  const pid_t self = getpid();
  const auto sane = [&] { return question(self, 0x1000000, 0x2000000, runs); };
  const auto resolve_with = [&](const std::function<void(vmem_resolve&)>& change) {
    vmem_resolve ask = sane();
    change(ask);
    return call(device, VMEM_IOC_RESOLVE, &ask);
  };
  CHECK(resolve_with([](auto&) {}) == 0);
  CHECK(resolve_with([](auto& a) { a.size = 0; }) == EINVAL);
  CHECK(resolve_with([](auto& a) { a.size = sizeof a - 1; }) == EINVAL);
  CHECK(resolve_with([](auto& a) { a.size = 0xffffffff; }) == E2BIG);
  CHECK(resolve_with([](auto& a) { a.flags = 1; }) == EINVAL);
  CHECK(resolve_with([](auto& a) { a.reserved = 1; }) == EINVAL);
  CHECK(resolve_with([](auto& a) { a.pid = 0; }) == ESRCH);
  CHECK(resolve_with([](auto& a) { a.pid = -1; }) == ESRCH);
  CHECK(resolve_with([](auto& a) { a.pid = 0x7fffffff; }) == ESRCH);
  CHECK(resolve_with([](auto& a) { a.start_time += 1; }) == ESRCH);
  CHECK(resolve_with([](auto& a) { a.start_time = 0; }) == ESRCH);
  CHECK(resolve_with([](auto& a) { a.address_space = 12345; }) == ESTALE);
  CHECK(resolve_with([](auto& a) { a.start += 1; }) == EINVAL);
  CHECK(resolve_with([](auto& a) { a.end += 8; }) == EINVAL);
  CHECK(resolve_with([](auto& a) { a.end = a.start - 0x1000; }) == EINVAL);
  CHECK(resolve_with([](auto& a) { a.end = a.start; }) == 0);
  CHECK(resolve_with([](auto& a) { a.end = ~std::uint64_t{0xffff}; }) == 0);
  CHECK(resolve_with([](auto& a) {
          a.start = std::uint64_t{1} << 63;
          a.end = a.start + 0x10000;
        }) == 0);
  CHECK(resolve_with([](auto& a) {
          a.runs = 0;
          a.runs_len = 0;
        }) == 0);
  const Mapping touched(page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  touched.at[0] = 1;
  const auto at_page = [&](vmem_resolve& a) {
    a.start = touched.start();
    a.end = touched.end();
  };
  // Where the results go: nowhere, into the kernel, into memory that is read-only, beyond 2^64.
  for (const std::uint64_t pointer :
       {std::uint64_t{8}, std::uint64_t{1} << 63, ~std::uint64_t{0} - 16, std::uint64_t{0}}) {
    CHECK(resolve_with([&](auto& a) {
            at_page(a);
            a.runs = pointer;
          }) == EFAULT);
  }
  const Mapping read_only(page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
  CHECK(resolve_with([&](auto& a) {
          at_page(a);
          a.runs = read_only.start();
        }) == EFAULT);
  // An enormous vector is not allocated at once.
  CHECK(resolve_with([&](auto& a) {
          at_page(a);
          a.runs_len = 0xffffffff;
        }) == 0);

  CHECK(ioctl(device.fd, VMEM_IOC_RESOLVE, nullptr) == -1);
  CHECK(errno == EFAULT);
  CHECK(ioctl(device.fd, VMEM_IOC_RESOLVE, std::uint64_t{1} << 63) == -1);
  CHECK(errno == EFAULT);
  CHECK(ioctl(device.fd, _IO(VMEM_IOC_TYPE, 99), &runs) == -1);
  CHECK(errno == ENOTTY);
  CHECK(ioctl(device.fd, _IO('x', 1), &runs) == -1);
  CHECK(errno == ENOTTY);
  char byte = 0;
  CHECK(read(device.fd, &byte, 1) == -1);
  CHECK(mmap(nullptr, page, PROT_READ, MAP_SHARED, device.fd, 0) == MAP_FAILED);

  const auto walk_with = [&](const std::function<void(vmem_walk&)>& change) {
    vmem_walk ask{};
    ask.size = sizeof ask;
    ask.pid = self;
    ask.start_time = start_time(self);
    ask.va = touched.start();
    change(ask);
    return call(device, VMEM_IOC_WALK, &ask);
  };
  CHECK(walk_with([](auto&) {}) == 0);
  CHECK(walk_with([](auto& a) { a.size = 4; }) == EINVAL);
  CHECK(walk_with([](auto& a) { a.flags = 1; }) == EINVAL);
  CHECK(walk_with([](auto& a) { a.steps_count = 1; }) == EINVAL);
  CHECK(walk_with([](auto& a) { a.start_time ^= 1; }) == ESRCH);
  CHECK(walk_with([](auto& a) { a.va = 0; }) == 0);
  CHECK(walk_with([](auto& a) { a.va = ~std::uint64_t{0}; }) == 0);

  std::vector<vmem_frame> frames(4);
  const auto frames_with = [&](const std::function<void(vmem_frames&)>& change) {
    vmem_frames ask{};
    ask.size = sizeof ask;
    ask.count = frames.size();
    ask.frames = reinterpret_cast<std::uintptr_t>(frames.data());
    change(ask);
    return call(device, VMEM_IOC_FRAMES, &ask);
  };
  CHECK(frames_with([](auto&) {}) == 0);
  CHECK(frames_with([](auto& a) { a.size = 8; }) == EINVAL);
  CHECK(frames_with([](auto& a) { a.flags = 4; }) == EINVAL);
  CHECK(frames_with([](auto& a) { a.pfn = ~std::uint64_t{0}; }) == EINVAL);
  CHECK(frames_with([](auto& a) { a.pfn = ~std::uint64_t{0} - 4; }) == 0);
  CHECK(frames_with([](auto& a) { a.pfn = std::uint64_t{1} << 52; }) == 0);
  CHECK(frames_with([](auto& a) { a.frames = 16; }) == EFAULT);
  CHECK(frames_with([](auto& a) {
          a.count = 0;
          a.frames = 0;
        }) == 0);
  CHECK(frames_with([](auto& a) {
          a.count = ~std::uint64_t{0};
          a.frames = 0;
        }) == EFAULT);

  std::vector<vmem_iova_run> iovas(4);
  const auto iova_with = [&](const std::function<void(vmem_iova&)>& change) {
    vmem_iova ask{};
    ask.size = sizeof ask;
    ask.domain = 0xfffe;  // none
    ask.runs = reinterpret_cast<std::uintptr_t>(iovas.data());
    ask.runs_len = 4;
    change(ask);
    return call(device, VMEM_IOC_IOVA, &ask);
  };
  CHECK(iova_with([](auto&) {}) == ENODEV);
  CHECK(iova_with([](auto& a) { a.domain = 0xffffffff; }) == ENODEV);
  CHECK(iova_with([](auto& a) { a.size = 40; }) == EINVAL);
  CHECK(iova_with([](auto& a) { a.flags = 1; }) == EINVAL);
  CHECK(iova_with([](auto& a) { a.reserved = 1; }) == EINVAL);
  CHECK(iova_with([](auto& a) { a.reserved2 = 1; }) == EINVAL);
  CHECK(iova_with([](auto& a) { a.start = 1; }) == EINVAL);
  CHECK(iova_with([](auto& a) { a.end = 1; }) == EINVAL);
  CHECK(iova_with([](auto& a) {
          a.start = 0x2000;
          a.end = 0x1000;
        }) == EINVAL);
}

TEST_CASE("kmod: noise in every argument neither crashes nor answers past the buffers") {
  const Device device;
  if (!device) return;
  std::mt19937_64 random(20250611);
  std::array<unsigned char, 512> noise{};
  constexpr std::array commands{VMEM_IOC_INFO, VMEM_IOC_RESOLVE, VMEM_IOC_WALK, VMEM_IOC_FRAMES,
                                VMEM_IOC_IOVA};
  constexpr std::array<std::uint32_t, 5> sizes{sizeof(vmem_info), sizeof(vmem_resolve),
                                               sizeof(vmem_walk), sizeof(vmem_frames),
                                               sizeof(vmem_iova)};
  // Results may go here and nowhere else, so that this program survives its own questions.
  const Mapping arena(16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  for (int round = 0; round < 20000; ++round) {
    for (auto& byte : noise) byte = random() % 3 == 0 ? static_cast<unsigned char>(random()) : 0;
    const std::size_t which = random() % commands.size();
    std::memcpy(noise.data(), &sizes[which], 4);
    const std::uint64_t pointer = random() % 4 == 0 ? 0 : arena.start();
    if (commands[which] == VMEM_IOC_RESOLVE) {
      auto* ask = reinterpret_cast<vmem_resolve*>(noise.data());
      ask->runs = pointer;
      ask->runs_len = static_cast<std::uint32_t>(random() % 2048);
    } else if (commands[which] == VMEM_IOC_FRAMES) {
      auto* ask = reinterpret_cast<vmem_frames*>(noise.data());
      ask->frames = pointer;
      ask->count = random() % 4096;
      ask->pfn &= 0xffffff;
    } else if (commands[which] == VMEM_IOC_IOVA) {
      auto* ask = reinterpret_cast<vmem_iova*>(noise.data());
      ask->runs = pointer;
      ask->runs_len = static_cast<std::uint32_t>(random() % 2048);
    }
    (void)ioctl(device.fd, commands[which], noise.data());
  }
  SUCCEED();
}

TEST_CASE("kmod: only CAP_SYS_ADMIN, at open and at each call, and only to read") {
  const Device device;
  if (!device) return;
  CHECK(open(VMEM_DEVICE, O_RDWR | O_CLOEXEC) == -1);
  CHECK(errno == EACCES);
  CHECK(open(VMEM_DEVICE, O_WRONLY | O_CLOEXEC) == -1);
  CHECK(errno == EACCES);
  struct stat status{};
  REQUIRE(fstat(device.fd, &status) == 0);
  CHECK((status.st_mode & 07777) == 0600);
  CHECK(status.st_uid == 0);

  // Root without the capability: it may open the file, but not the device; nor use one that it has.
  CHECK(in_child([] {
          if (!drop_sys_admin()) return 1;
          return open(VMEM_DEVICE, O_RDONLY) == -1 && errno == EPERM ? 0 : 2;
        }) == 0);
  CHECK(in_child([&] {
          if (!drop_sys_admin()) return 1;
          for (const unsigned long command :
               {VMEM_IOC_INFO, VMEM_IOC_RESOLVE, VMEM_IOC_WALK, VMEM_IOC_FRAMES, VMEM_IOC_IOVA}) {
            vmem_info info{};
            info.size = sizeof info;
            if (call(device, command, &info) != EPERM) return 2;
          }
          return 0;
        }) == 0);
  CHECK(in_child([] {
          const auto root = SysRoot::live();
          const auto self = root->self();
          if (!drop_sys_admin()) return 1;
          const auto opened = open_translator(*self, Backend::kmod);
          if (opened) return 2;
          return opened.error().code == Errc::permission && opened.error().hint != nullptr ? 0 : 3;
        }) == 0);
  // Nobody in particular.
  CHECK(in_child([] {
          if (setgroups(0, nullptr) != 0 || setresgid(65534, 65534, 65534) != 0 ||
              setresuid(65534, 65534, 65534) != 0) {
            return 1;
          }
          return open(VMEM_DEVICE, O_RDONLY) == -1 && errno == EACCES ? 0 : 2;
        }) == 0);
  // Root of a user namespace of its own.
  const int in_namespace = in_child([] {
    if (unshare(CLONE_NEWUSER) != 0) return 3;
    return open(VMEM_DEVICE, O_RDONLY) == -1 && (errno == EACCES || errno == EPERM) ? 0 : 2;
  });
  CHECK((in_namespace == 0 || in_namespace == 3));
}

TEST_CASE("kmod: a vector of one run tells the same as a large one") {
  const Device device;
  if (!device) return;
  const Child child([] { new Kinds; });
  const Process process = process_of(child.pid());
  auto reader = VmaReader::open(process);
  REQUIRE(reader);
  Vma vma;
  std::size_t compared = 0;
  while (*reader->next(vma)) {
    const std::uint64_t start = vma.range.start.value, end = vma.range.end.value;
    const auto all = expand(resolve(device, child.pid(), start, end));
    CHECK(all == expand(resolve(device, child.pid(), start, end, 1)));
    CHECK(all == expand(resolve(device, child.pid(), start, end, 7)));
    compared += all.size();
  }
  CHECK(compared > 100);
  // Everything in one question, the holes between the VMAs included.
  const auto whole = resolve(device, child.pid(), 0, std::uint64_t{1} << 47);
  CHECK(expand(whole).size() == compared);
  CHECK(std::ranges::is_sorted(whole, {}, &vmem_run::va));
}

TEST_CASE("kmod: every page of every kind of memory as pagemap has it") {
  const Device device;
  if (!device) return;
  const Child child([] { new Kinds; });
  CHECK(compare_backends(child.pid()) > 2000);
  CHECK(compare_backends(1) > 10);
}

TEST_CASE("kmod: leaf sizes and attributes of one's own pages") {
  const Device device;
  if (!device) return;
  const Kinds kinds;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  const auto at = [&](const Mapping& mapping, std::uint64_t offset = 0) {
    Extent found;
    const VirtAddr va{mapping.start() + offset};
    REQUIRE((*translator)->walk({va, va + page}, {}, [&](const Extent& e) {
      found = e;
      return true;
    }));
    CHECK(found.va == va);
    CHECK(found.bytes == page);
    return found;
  };
  const Extent anon = at(kinds.anon);
  CHECK(anon.state == PageState::resident);
  CHECK(anon.leaf_shift == std::countr_zero(page));
  CHECK((anon.pte & pte_bit::known) != 0);
  CHECK((anon.pte & pte_bit::writable) != 0);
  CHECK((anon.pte & pte_bit::user) != 0);
  CHECK((anon.pte & pte_bit::executable) == 0);
  CHECK((anon.pte & pte_bit::dirty) != 0);
  CHECK((pte_bit::cache(anon.pte) == CacheAttribute::wb ||
         pte_bit::cache(anon.pte) == CacheAttribute::normal ||
         pte_bit::cache(anon.pte) == CacheAttribute::normal_tagged));
  CHECK(at(kinds.anon, page).state == PageState::absent);

  const Extent none = at(kinds.none);
  CHECK(none.state == PageState::resident);
  CHECK(none.pfn.value == (pagemap_entry(getpid(), kinds.none.start()) & pagemap_pfn));
  CHECK((none.pte & pte_bit::user) == 0);

  const Extent zero = at(kinds.zero);
  CHECK(zero.state == PageState::resident);
  CHECK((zero.pte & pte_bit::writable) == 0);
  CHECK(zero.pfn.value == at(kinds.zero, page).pfn.value);

  // Code of this program: executable, not writable.
  const VirtAddr text{reinterpret_cast<std::uintptr_t>(&drop_sys_admin) & ~(page - 1)};
  REQUIRE((*translator)->walk({text, text + page}, {}, [&](const Extent& e) {
    CHECK(e.state == PageState::resident);
    CHECK((e.pte & pte_bit::executable) != 0);
    CHECK((e.pte & pte_bit::writable) == 0);
    return true;
  }));

  const std::uint64_t inside = (kinds.thp.start() + huge - 1) & ~(huge - 1);
  const Extent thp = at(kinds.thp, inside - kinds.thp.start() + 5 * page);
  CHECK(thp.state == PageState::resident);
  CHECK(thp.pfn.value == (pagemap_entry(getpid(), inside + 5 * page) & pagemap_pfn));
  if (thp.leaf_shift != 21) {
    skip_or_fail("vm", "no transparent huge page was made");
  }
  if (kinds.hugetlb.at == nullptr) return skip_or_fail("vm", "no hugetlb pages in the pool");
  const Extent hugetlb = at(kinds.hugetlb, huge + 3 * page);
  CHECK(hugetlb.leaf_shift == 21);
  CHECK(hugetlb.pfn.value ==
        (pagemap_entry(getpid(), kinds.hugetlb.start() + huge + 3 * page) & pagemap_pfn));
}

TEST_CASE("kmod: a range that begins and ends inside of huge leaves is cut to size") {
  const Device device;
  if (!device) return;
  const Kinds kinds;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  std::mt19937_64 random(7);
  for (int i = 0; i < 200; ++i) {
    const std::uint64_t pages = kinds.thp.bytes / page;
    const std::uint64_t a = random() % pages, b = a + 1 + random() % (pages - a);
    VirtAddr at{kinds.thp.start() + a * page};
    const VirtAddr end{kinds.thp.start() + b * page};
    REQUIRE((*translator)->walk({at, end}, {}, [&](const Extent& e) {
      REQUIRE(e.va == at);
      REQUIRE(e.state == PageState::resident);
      CHECK(e.pfn.value == (pagemap_entry(getpid(), e.va.value) & pagemap_pfn));
      at = e.end();
      return true;
    }));
    CHECK(at == end);
  }
}

TEST_CASE("kmod: a mapping above 2^47, with five levels") {
  const Device device;
  if (!device) return;
  const Mapping high(4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                     std::uint64_t{1} << 54);
  REQUIRE(high.at != nullptr);
  REQUIRE((high.start() >= std::uint64_t{1} << 47) == kernel_uses_five_levels());
  if (!kernel_uses_five_levels()) return;
  touch(high.at, high.bytes, page);
  const auto slots = expand(resolve(device, getpid(), high.start(), high.end()));
  REQUIRE(slots.size() == 4);
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  for (std::uint64_t va = high.start(); va < high.end(); va += page) {
    const auto walk = (*translator)->page_walk({va});
    REQUIRE(walk);
    CHECK(walk->steps.size() == 5);
    CHECK(walk->extent.pfn.value == (pagemap_entry(getpid(), va) & pagemap_pfn));
  }
}

TEST_CASE("kmod: a walk goes from table to table down to what resolving tells") {
  const Device device;
  if (!device) return;
  const Kinds kinds;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  for (const Mapping* mapping :
       {&kinds.anon, &kinds.none, &kinds.zero, &kinds.shared, &kinds.thp}) {
    const VirtAddr va{mapping->start() + 2 * page};
    auto walk = (*translator)->page_walk(va);
    REQUIRE(walk);
    REQUIRE(walk->steps.size() >= 2);
    CHECK(std::string(walk->steps.front().level) == "pgd");
    for (std::size_t i = 0; i + 1 < walk->steps.size(); ++i) {
      const WalkStep& step = walk->steps[i];
      CHECK_FALSE(step.leaf);
      CHECK(step.table.value % page == 0);
      // The entry holds the next table's address, among flags that lie outside of it.
      CHECK((step.raw & walk->steps[i + 1].table.value) == walk->steps[i + 1].table.value);
      CHECK(step.flags.find("present") != std::string::npos);
    }
    const WalkStep& last = walk->steps.back();
    CHECK(last.leaf);
    const auto slots = expand(resolve(device, getpid(), va.value, va.value + page));
    REQUIRE(slots.size() == 1);
    CHECK(slots[0].entry == last.raw);
    CHECK(walk->extent.state == PageState::resident);
    CHECK(walk->extent.va == va);
    CHECK(walk->extent.bytes == page);
    CHECK(walk->extent.pfn.value == (pagemap_entry(getpid(), va.value) & pagemap_pfn));
  }
  // Nothing there: no VMA, and a VMA without a page.
  auto nowhere = (*translator)->page_walk({0x1000});
  REQUIRE(nowhere);
  CHECK(nowhere->steps.empty());
  CHECK(nowhere->extent.state == PageState::absent);
  auto empty = (*translator)->page_walk({kinds.anon.start() + page});
  REQUIRE(empty);
  CHECK_FALSE(empty->steps.empty());
  CHECK(empty->extent.state == PageState::absent);
}

TEST_CASE("kmod: sees what remap_pfn_range mapped") {
  const Device device;
  if (!device) return;
  const Process self = process_of(getpid());
  auto translator = open_translator(self, Backend::kmod);
  REQUIRE(translator);
  CHECK((*translator)->sees_pfnmap());
#if defined(__x86_64__)
  // The BIOS's ROM: physical memory that is no RAM, so that /dev/mem maps it.
  const Descriptor mem{open("/dev/mem", O_RDONLY | O_CLOEXEC)};
  if (mem.fd < 0) return skip_or_fail("vm", "/dev/mem cannot be opened");
  const Mapping rom(16 * page, PROT_READ, MAP_SHARED, mem.fd, 0, 0xf0000);
  REQUIRE(rom.at != nullptr);
  std::uint64_t frame = 0xf0;
  std::vector<Extent> extents;
  REQUIRE((*translator)->walk({{rom.start()}, {rom.end()}}, {}, [&](const Extent& e) {
    extents.push_back(e);
    return true;
  }));
  REQUIRE(extents.size() == 1);
  CHECK(extents[0].state == PageState::resident);
  CHECK(extents[0].pfn.value == frame);
  CHECK(extents[0].bytes == rom.bytes);
  CHECK((extents[0].pte & pte_bit::writable) == 0);
  for (std::uint64_t va = rom.start(); va < rom.end(); va += page) {
    CHECK((pagemap_entry(getpid(), va) & pagemap_present) == 0);
  }
#endif
}

TEST_CASE("kmod: what another test turns into", "[kmod-sleeper]") {
  while (std::getenv("KMOD_SLEEPER") != nullptr) pause();
}

TEST_CASE("kmod: who is asked about") {
  const Device device;
  if (!device) return;
  std::vector<vmem_run> runs(4);
  SECTION("a kernel thread has no address space") {
    vmem_resolve ask = question(2, 0, page, runs);
    CHECK(call(device, VMEM_IOC_RESOLVE, &ask) == ENXIO);
  }
  SECTION("a zombie has none any more, and one that was waited for is not there") {
    const pid_t pid = fork();
    if (pid == 0) _exit(0);
    siginfo_t info{};
    REQUIRE(waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) == 0);
    vmem_resolve ask = question(pid, 0, page, runs);
    CHECK(call(device, VMEM_IOC_RESOLVE, &ask) == ENXIO);
    REQUIRE(waitpid(pid, nullptr, 0) == pid);
    CHECK(call(device, VMEM_IOC_RESOLVE, &ask) == ESRCH);
  }
  SECTION("a process whose first thread has ended is looked at through the others") {
    std::array<int, 2> ends{};
    REQUIRE(pipe2(ends.data(), O_CLOEXEC) == 0);
    const pid_t pid = fork();
    if (pid == 0) {
      pthread_t thread{};
      static int signal_end = ends[1];
      pthread_create(
          &thread, nullptr,
          [](void*) -> void* {
            usleep(100000);  // until the other has ended
            (void)!write(signal_end, "r", 1);
            for (;;) pause();
          },
          nullptr);
      syscall(SYS_exit, 0);
    }
    char ready = 0;
    REQUIRE(read(ends[0], &ready, 1) == 1);
    vmem_resolve ask = question(pid, 0, std::uint64_t{1} << 47, runs);
    CHECK(call(device, VMEM_IOC_RESOLVE, &ask) == 0);
    CHECK(ask.runs_count == 4);
    CHECK(compare_backends(pid) > 0);
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    close(ends[0]);
    close(ends[1]);
  }
  SECTION("after an exec it is another address space") {
    std::array<int, 2> go{};
    REQUIRE(pipe2(go.data(), 0) == 0);
    const pid_t pid = fork();
    if (pid == 0) {
      char c = 0;
      (void)!read(go[0], &c, 1);
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      setenv("KMOD_SLEEPER", "1", 1);
      execl("/proc/self/exe", "sleeper", "[kmod-sleeper]", nullptr);
      _exit(1);
    }
    const Process process = process_of(pid);
    auto translator = open_translator(process, Backend::kmod);
    REQUIRE(translator);
    vmem_resolve ask = question(pid, 0, page, runs);
    REQUIRE(call(device, VMEM_IOC_RESOLVE, &ask) == 0);
    REQUIRE(ask.address_space != 0);
    const std::uint64_t before = ask.address_space;
    REQUIRE(call(device, VMEM_IOC_RESOLVE, &ask) == 0);
    CHECK(ask.address_space == before);
    REQUIRE(write(go[1], "g", 1) == 1);
    int error = 0;
    for (int i = 0; i < 500 && error == 0; ++i) {
      usleep(10000);
      error = call(device, VMEM_IOC_RESOLVE, &ask);
    }
    CHECK(error == ESTALE);
    const auto walked = (*translator)->walk({{0}, {page}}, {}, [](const Extent&) { return true; });
    REQUIRE_FALSE(walked);
    CHECK(walked.error().code == Errc::process_changed);
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    close(go[0]);
    close(go[1]);
  }
  SECTION("one that ends under a translator") {
    Child child([] {});
    const Process process = process_of(child.pid());
    auto translator = open_translator(process, Backend::kmod);
    REQUIRE(translator);
    child.end();
    const auto walked = (*translator)->walk({{0}, {page}}, {}, [](const Extent&) { return true; });
    REQUIRE_FALSE(walked);
    CHECK(walked.error().code == Errc::process_changed);
    const auto opened = open_translator(process, Backend::kmod);
    REQUIRE_FALSE(opened);
    CHECK(opened.error().code == Errc::no_process);
  }
}

TEST_CASE("kmod: frames tell references, mappings and pins") {
  const Device device;
  if (!device) return;
  const auto look = [&](std::uint64_t pfn) {
    vmem_frame frame{};
    vmem_frames ask{};
    ask.size = sizeof ask;
    ask.pfn = pfn;
    ask.count = 1;
    ask.frames = reinterpret_cast<std::uintptr_t>(&frame);
    REQUIRE(call(device, VMEM_IOC_FRAMES, &ask) == 0);
    REQUIRE(ask.done == 1);
    return frame;
  };
  const Kinds kinds;
  const auto frame_of = [&](const Mapping& mapping, std::uint64_t offset = 0) {
    const std::uint64_t entry = pagemap_entry(getpid(), mapping.start() + offset);
    REQUIRE((entry & pagemap_present) != 0);
    return entry & pagemap_pfn;
  };
  const std::uint64_t pfn = frame_of(kinds.anon);
  const vmem_frame frame = look(pfn);
  CHECK((frame.flags & VMEM_FRAME_ONLINE) != 0);
  CHECK((frame.flags & VMEM_FRAME_MAYBE_PINNED) == 0);
  CHECK(frame.mapcount == 1);
  CHECK(frame.refcount >= 1);
  {
    // A page of shared memory that three processes map.
    const Child one([&] { (void)*static_cast<volatile char*>(kinds.shared.at); });
    const Child two([&] { (void)*static_cast<volatile char*>(kinds.shared.at); });
    CHECK(look(frame_of(kinds.shared)).mapcount == 3);
  }
  CHECK(look(frame_of(kinds.shared)).mapcount == 1);

  // The kernel's own count, over frames of all kinds.
  const Descriptor counts{open("/proc/kpagecount", O_RDONLY | O_CLOEXEC)};
  REQUIRE(counts.fd >= 0);
  std::size_t checked = 0;
  for (const Mapping* mapping :
       {&kinds.anon, &kinds.none, &kinds.shared, &kinds.thp, &kinds.hugetlb}) {
    for (std::uint64_t offset = 0; mapping->at != nullptr && offset < mapping->bytes;
         offset += 2 * page) {
      const std::uint64_t at = frame_of(*mapping, offset);
      std::uint64_t count = 0;
      REQUIRE(pread(counts.fd, &count, 8, static_cast<off_t>(at * 8)) == 8);
      const vmem_frame told = look(at);
      if (static_cast<std::uint64_t>(told.mapcount) != count) {
        FAIL_CHECK("frame " << at << ": mapcount " << told.mapcount << ", kpagecount " << count);
        break;
      }
      ++checked;
    }
  }
  CHECK(checked > 500);
  const std::uint64_t inside = (kinds.thp.start() + huge - 1) & ~(huge - 1);
  if ((pagemap_entry(getpid(), inside) & pagemap_pfn) % (huge / page) == 0) {
    CHECK(look(pagemap_entry(getpid(), inside + 7 * page) & pagemap_pfn).order == 9);
  }
  if (kinds.hugetlb.at != nullptr) CHECK(look(frame_of(kinds.hugetlb, 4 * page)).order == 9);

  SECTION("no such frame") {
    CHECK(look(std::uint64_t{1} << 40).flags == 0);
    CHECK(look((std::uint64_t{1} << 52) + 1).flags == 0);
  }
  SECTION("all of memory, in one go: never stops, never lies about what it is") {
    std::vector<vmem_frame> frames(65536);
    std::uint64_t online = 0;
    for (std::uint64_t at = 0; at < (std::uint64_t{5} << 30) / page;) {
      vmem_frames ask{};
      ask.size = sizeof ask;
      ask.pfn = at;
      ask.count = frames.size();
      ask.frames = reinterpret_cast<std::uintptr_t>(frames.data());
      REQUIRE(call(device, VMEM_IOC_FRAMES, &ask) == 0);
      REQUIRE(ask.done > 0);
      REQUIRE(ask.done <= frames.size());
      for (std::uint64_t i = 0; i < ask.done; ++i) {
        online += frames[i].flags & VMEM_FRAME_ONLINE;
        if (frames[i].refcount < 0 || frames[i].mapcount < 0 || frames[i].order > 20) {
          FAIL_CHECK("frame " << at + i << ": " << frames[i].refcount << " " << frames[i].mapcount);
        }
      }
      at += ask.done;
    }
    CHECK(online * page > std::uint64_t{256} << 20);
  }
  SECTION("pinned by a device driver's means") {
    // io_uring pins registered buffers with FOLL_PIN | FOLL_LONGTERM, as RDMA does.
    io_uring_params params{};
    const Descriptor ring{static_cast<int>(syscall(SYS_io_uring_setup, 1, &params))};
    if (ring.fd < 0) return skip_or_fail("vm", "no io_uring");
    for (const Mapping* mapping : {&kinds.anon, &kinds.thp, &kinds.hugetlb}) {
      if (mapping->at == nullptr) continue;
      CHECK((look(frame_of(*mapping)).flags & VMEM_FRAME_MAYBE_PINNED) == 0);
      iovec buffer{mapping->at, page};
      REQUIRE(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1) == 0);
      CHECK((look(frame_of(*mapping)).flags & VMEM_FRAME_MAYBE_PINNED) != 0);
      // The pages of a hugetlb or transparent huge page are pinned together, small ones each alone.
      if (mapping == &kinds.anon) {
        CHECK((look(frame_of(*mapping, 2 * page)).flags & VMEM_FRAME_MAYBE_PINNED) == 0);
      }
      REQUIRE(syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, nullptr, 0) == 0);
      bool pinned = true;
      for (int i = 0; pinned && i < 500; ++i) {  // some kernels let go of them a little later
        pinned = (look(frame_of(*mapping)).flags & VMEM_FRAME_MAYBE_PINNED) != 0;
        if (pinned) usleep(10000);
      }
      CHECK_FALSE(pinned);
    }
  }
}

TEST_CASE("kmod: what a device's addresses lead to") {
  const Device device;
  if (!device) return;
  namespace fs = std::filesystem;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator("/sys/bus/pci/devices", none)) {
    unsigned domain = 0, bus = 0, slot = 0, function = 0;
    REQUIRE(std::sscanf(entry.path().filename().c_str(), "%x:%x:%x.%x", &domain, &bus, &slot,
                        &function) == 4);
    std::vector<vmem_iova_run> runs(16);
    vmem_iova ask{};
    ask.size = sizeof ask;
    ask.domain = domain;
    ask.bus = static_cast<std::uint8_t>(bus);
    ask.devfn = static_cast<std::uint8_t>(slot << 3 | function);
    ask.start = 0x100000;
    ask.end = 0x400000;
    ask.runs = reinterpret_cast<std::uintptr_t>(runs.data());
    ask.runs_len = 16;
    REQUIRE(call(device, VMEM_IOC_IOVA, &ask) == 0);
    std::string type;
    if (std::ifstream file(entry.path() / "iommu_group/type"); file) file >> type;
    INFO(entry.path() << " " << type << " state " << ask.state);
    if (!fs::exists(entry.path() / "iommu_group")) {
      CHECK(ask.state == VMEM_IOVA_NO_IOMMU);
    } else if (type == "identity") {
      CHECK(ask.state == VMEM_IOVA_IDENTITY);
    } else if (type.starts_with("DMA")) {
      CHECK((ask.state == VMEM_IOVA_TRANSLATED || ask.state == VMEM_IOVA_BLOCKED));
    }
    if (ask.state == VMEM_IOVA_NO_IOMMU || ask.state == VMEM_IOVA_IDENTITY) {
      REQUIRE(ask.runs_count == 1);
      CHECK(runs[0].iova == 0x100000);
      CHECK(runs[0].pa == 0x100000);
      CHECK(runs[0].bytes == 0x300000);
      CHECK(ask.next == ask.end);
    }
  }
}

TEST_CASE("kmod: what VFIO mapped for a device is where the page lies") {
  const Device device;
  if (!device) return;
  const VfioDevice bound;
  if (bound.group.empty()) {
    if (vmem::test::guest_machine() == "iommu") FAIL("no device can be bound to vfio-pci");
    return;
  }
  unsigned domain = 0, bus = 0, slot = 0, function = 0;
  REQUIRE(std::sscanf(bound.name.c_str(), "%x:%x:%x.%x", &domain, &bus, &slot, &function) == 4);

  Descriptor container{open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC)};
  REQUIRE(container.fd >= 0);
  Descriptor member_group{open(("/dev/vfio/" + bound.group).c_str(), O_RDWR | O_CLOEXEC)};
  REQUIRE(member_group.fd >= 0);
  REQUIRE(ioctl(member_group.fd, VFIO_GROUP_SET_CONTAINER, &container.fd) == 0);
  REQUIRE(ioctl(container.fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
  const Mapping memory(8 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  touch(memory.at, memory.bytes, page);
  constexpr std::uint64_t iova = 0x12340000;
  vfio_iommu_type1_dma_map map{};
  map.argsz = sizeof map;
  map.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE;
  map.vaddr = memory.start();
  map.iova = iova;
  map.size = memory.bytes;
  REQUIRE(ioctl(container.fd, VFIO_IOMMU_MAP_DMA, &map) == 0);

  std::vector<vmem_iova_run> runs(64), some(1);
  vmem_iova ask{};
  ask.size = sizeof ask;
  ask.domain = domain;
  ask.bus = static_cast<std::uint8_t>(bus);
  ask.devfn = static_cast<std::uint8_t>(slot << 3 | function);
  ask.start = iova - 4 * page;
  ask.end = iova + memory.bytes + 4 * page;
  ask.runs = reinterpret_cast<std::uintptr_t>(runs.data());
  ask.runs_len = 64;
  REQUIRE(call(device, VMEM_IOC_IOVA, &ask) == 0);
  CHECK(ask.state == VMEM_IOVA_TRANSLATED);
  CHECK(ask.next == ask.end);
  std::uint64_t mapped = 0;
  for (std::uint32_t i = 0; i < ask.runs_count; ++i) {
    for (std::uint64_t at = 0; at < runs[i].bytes; at += page) {
      const std::uint64_t va = memory.start() + (runs[i].iova + at - iova);
      REQUIRE(va >= memory.start());
      REQUIRE(va < memory.end());
      CHECK((runs[i].pa + at) / page == (pagemap_entry(getpid(), va) & pagemap_pfn));
      mapped += page;
    }
  }
  CHECK(mapped == memory.bytes);
  // The same with room for one run at a time.
  ask.start = iova - 4 * page;
  std::uint64_t again = 0;
  while (ask.start < ask.end) {
    ask.runs = reinterpret_cast<std::uintptr_t>(some.data());
    ask.runs_len = 1;
    REQUIRE(call(device, VMEM_IOC_IOVA, &ask) == 0);
    REQUIRE(ask.next > ask.start);
    for (std::uint32_t i = 0; i < ask.runs_count; ++i) again += some[i].bytes;
    ask.start = ask.next;
  }
  CHECK(again == mapped);
  // And the pages are pinned.
  vmem_frame frame{};
  vmem_frames look{};
  look.size = sizeof look;
  look.pfn = pagemap_entry(getpid(), memory.start()) & pagemap_pfn;
  look.count = 1;
  look.frames = reinterpret_cast<std::uintptr_t>(&frame);
  REQUIRE(call(device, VMEM_IOC_FRAMES, &look) == 0);
  CHECK((frame.flags & VMEM_FRAME_MAYBE_PINNED) != 0);

  vfio_iommu_type1_dma_unmap unmap{};
  unmap.argsz = sizeof unmap;
  unmap.iova = iova;
  unmap.size = memory.bytes;
  REQUIRE(ioctl(container.fd, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0);
  ask.start = iova - 4 * page;
  ask.runs = reinterpret_cast<std::uintptr_t>(runs.data());
  ask.runs_len = 64;
  REQUIRE(call(device, VMEM_IOC_IOVA, &ask) == 0);
  CHECK(ask.runs_count == 0);
}

TEST_CASE("kmod: a call is bounded, and a fatal signal ends it") {
  const Device device;
  if (!device) return;
  // 16 TiB of reserved address space with a page here and there: tables that take long to walk.
  const std::uint64_t bytes = std::uint64_t{16} << 40;
  const Mapping sparse(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  if (sparse.at == nullptr) return skip_or_fail("vm", "cannot reserve 16 TiB");
  for (std::uint64_t i = 0; i < 512; ++i) sparse.at[i << 30] = 1;
  std::vector<vmem_run> runs(1024);
  vmem_resolve ask = question(getpid(), sparse.start(), sparse.end(), runs);
  REQUIRE(call(device, VMEM_IOC_RESOLVE, &ask) == 0);
  CHECK(ask.next > ask.start);
  CHECK(expand(resolve(device, getpid(), sparse.start(), sparse.end())).size() == 512);

  const pid_t pid = fork();
  if (pid == 0) {
    for (;;) {  // as long a call as there is, again and again
      vmem_resolve mine = question(getppid(), 0, std::uint64_t{1} << 47, runs);
      if (call(device, VMEM_IOC_RESOLVE, &mine) != 0) _exit(1);
    }
  }
  usleep(200000);
  const auto before = std::chrono::steady_clock::now();
  REQUIRE(kill(pid, SIGKILL) == 0);
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  CHECK(WIFSIGNALED(status));
  CHECK(std::chrono::steady_clock::now() - before < std::chrono::seconds(10));
}

TEST_CASE("kmod: stays loaded while it is open") {
  const Device device;
  if (!device) return;
  CHECK(syscall(SYS_delete_module, "vmem", O_NONBLOCK) == -1);
  CHECK(errno == EWOULDBLOCK);
  vmem_info info{};
  info.size = sizeof info;
  CHECK(call(device, VMEM_IOC_INFO, &info) == 0);
}

TEST_CASE("kmod: a target that maps, unmaps, forks and exits meanwhile") {
  const Device device;
  if (!device) return;
  // Pinned pages amid a storm: their frames may not change, and must be told right each time.
  const Mapping pinned(64 * page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  touch(pinned.at, pinned.bytes, page);
  io_uring_params params{};
  const Descriptor ring{static_cast<int>(syscall(SYS_io_uring_setup, 1, &params))};
  if (ring.fd < 0) return skip_or_fail("vm", "no io_uring to pin pages with");
  iovec buffer{pinned.at, pinned.bytes};
  REQUIRE(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &buffer, 1) == 0);
  std::vector<std::uint64_t> frames;
  for (std::uint64_t i = 0; i < 64; ++i) {
    frames.push_back(pagemap_entry(getpid(), pinned.start() + i * page) & pagemap_pfn);
  }
  const Child storm([&] {
    for (std::size_t i = 0; i < pinned.bytes; i += page)
      (void)*static_cast<volatile char*>(pinned.at + i);
    pthread_t thread{};
    for (int t = 0; t < 2; ++t) {
      pthread_create(
          &thread, nullptr,
          [](void*) -> void* {
            for (unsigned n = 0;; ++n) {
              const Mapping m((1 + n % 7) * huge, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS);
              if (m.at == nullptr) continue;
              if (n % 3 == 0) madvise(m.at, m.bytes, MADV_HUGEPAGE);
              touch(m.at, m.bytes, (1 + n % 5) * page);
              if (n % 4 == 0) madvise(m.at, m.bytes / 2, MADV_DONTNEED);
              if (n % 8 == 0) mprotect(m.at, m.bytes / 2, PROT_NONE);
              if (n % 16 == 0) {
                if (const pid_t pid = fork(); pid == 0)
                  _exit(0);
                else if (pid > 0)
                  waitpid(pid, nullptr, 0);
              }
            }
          },
          nullptr);
    }
  });
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  std::uint64_t looks = 0, wrong = 0, missing = 0;
  while (std::chrono::steady_clock::now() < until) {
    std::uint64_t found = 0;
    for (const Slot& slot : expand(resolve(device, storm.pid(), pinned.start(), pinned.end()))) {
#if defined(__x86_64__)
      const std::uint64_t pfn = (slot.entry & 0x000ffffffffff000) / page;
#else
      const std::uint64_t pfn = (slot.entry & 0x0000fffffffff000) / page;
#endif
      if (slot.level != 0) continue;
      ++found;
      wrong += pfn != frames[(slot.va - pinned.start()) / page];
    }
    missing += 64 - found;
    (void)resolve(device, storm.pid(), 0, std::uint64_t{1} << 47);
    ++looks;
  }
  CHECK(wrong == 0);
  CHECK(missing == 0);
  CHECK(looks > 3);
}
