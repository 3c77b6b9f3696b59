// SPDX-License-Identifier: MIT
// The protocol of /dev/vmem: what is asked, by whom and about whom, and what is refused. The oracle
// is uapi/vmem.h, which says it.
//
// vmtest: machines=fast,pc
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>

#include <chrono>
#include <random>

#include "vm/kmod_device.hpp"

using namespace vmem;
using namespace vmem::test::kmod;
using vmem::test::skip_or_fail;

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
