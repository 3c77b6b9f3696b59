// SPDX-License-Identifier: MIT
// A process that maps, unmaps, forks, collapses, splits and swaps without pause, looked up by every
// way at once while the module comes and goes. Pages that are pinned for DMA and pages of a
// device's window cannot move, so that any other frame than theirs is a wrong answer.
// VMEM_CHURN_SECONDS says for how long (20).
//
// vmtest: machines=smp
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/guest.hpp"
#include "support/window_view.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t huge = std::uint64_t{2} << 20;
constexpr std::uint64_t window = 0x90000000;
constexpr int madv_collapse = 25, madv_pageout = 21;

/// One pinned page in every second 2 MiB; the rest of its page table is the storm's.
constexpr std::uint64_t islands = 32, distance = 2 * huge;
constexpr std::uint64_t hugetlb_pages = 2, window_pages = 64;

/// Where all of it lies in the target.
struct Layout {
  std::uint64_t island(std::uint64_t i) const { return start + i * distance; }
  std::uint64_t hugetlb() const { return start + islands * distance; }
  std::uint64_t device() const { return hugetlb() + hugetlb_pages * huge; }
  std::uint64_t end() const { return device() + huge; }
  std::uint64_t start = 0;
};

/// A page whose frame is known.
struct Known {
  std::uint64_t va, pfn;
};

/// What the lookers count, in memory that they share.
struct Counts {
  std::atomic<std::uint64_t> looks, pages, changed, wrong, missing, loads, strangers, failed;
  std::atomic<bool> enough;
  std::atomic<std::uint64_t> first_wrong_va, first_wrong_pfn;
};

char* map_at(std::uint64_t at, std::uint64_t bytes, int flags, int fd = -1,
             int protection = PROT_READ | PROT_WRITE) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr)
  void* const got = mmap(reinterpret_cast<void*>(at), bytes, protection, flags | MAP_FIXED, fd, 0);
  if (got == MAP_FAILED) _exit(90);
  return static_cast<char*>(got);
}

/// The pinned pages, by io_uring: as a driver pins for DMA.
void make_known(const Layout& layout) {
  std::vector<iovec> pins;
  for (std::uint64_t i = 0; i < islands; ++i) {
    char* const at = map_at(layout.island(i), base_page,
                            (i % 2 != 0 ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS);
    *at = 1;
    if (mlock(at, base_page) != 0) _exit(91);
    pins.push_back({at, base_page});
  }
  char* const large =
      map_at(layout.hugetlb(), hugetlb_pages * huge, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB);
  for (std::uint64_t i = 0; i < hugetlb_pages; ++i) {
    large[i * huge] = 1;
    pins.push_back({large + i * huge, huge});
  }
  const int fd = open("/dev/mem_mmap1", O_RDWR | O_CLOEXEC);
  map_at(layout.device(), window_pages * base_page, MAP_SHARED, fd);
  close(fd);
  io_uring_params params{};
  const long ring = syscall(SYS_io_uring_setup, 1, &params);
  if (ring < 0 ||
      syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, pins.data(), pins.size()) != 0)
    _exit(92);
}

/// Threads of the target. Each `which` has page tables and memory of its own to change, and all
/// have the address space.
void around_the_islands(const Layout& layout, unsigned which) {
  for (std::minstd_rand random(which + 1);;) {
    const std::uint64_t at = layout.island(random() % islands) + (2 + 200 * which) * base_page;
    const std::uint64_t bytes = (1 + random() % 190) * base_page;
    char* const got = map_at(at, bytes, MAP_PRIVATE | MAP_ANONYMOUS);
    for (std::uint64_t i = 0; i < bytes; i += 7 * base_page) got[i] = 1;
    if (random() % 4 == 0) mprotect(got, bytes / 2 & ~(base_page - 1), PROT_NONE);
    munmap(got, bytes);
    // The other 2 MiB has no island: its page table comes and goes.
    char* const whole = map_at(layout.island(random() % islands) + huge + which * 64 * base_page,
                               base_page, MAP_PRIVATE | MAP_ANONYMOUS);
    *whole = 1;
    munmap(whole, base_page);
  }
}

void fork_and_exit() {
  for (unsigned n = 0;; ++n) {
    const pid_t pid = fork();
    if (pid == 0) {
      char* const got = static_cast<char*>(
          mmap(nullptr, huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      for (std::uint64_t i = 0; got != MAP_FAILED && i < huge; i += 16 * base_page) got[i] = 1;
      if (n % 4 == 0) execl("/bin/busybox", "true", nullptr);
      _exit(0);
    }
    if (pid > 0) waitpid(pid, nullptr, 0);
  }
}

void collapse_and_split() {
  char* const room = static_cast<char*>(
      mmap(nullptr, 5 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (room == MAP_FAILED) _exit(93);
  char* const at = room + (huge - reinterpret_cast<std::uintptr_t>(room) % huge) % huge;
  for (unsigned n = 0;; ++n) {
    madvise(at, 4 * huge, MADV_NOHUGEPAGE);
    for (std::uint64_t i = 0; i < 4 * huge; i += base_page) at[i] = 1;
    madvise(at, 4 * huge, MADV_HUGEPAGE);
    madvise(at, 4 * huge, madv_collapse);  // where there is none khugepaged may do it
    mprotect(at + huge / 2, base_page, PROT_READ);
    mprotect(at + huge / 2, base_page, PROT_READ | PROT_WRITE);
    madvise(at + huge, base_page, MADV_DONTNEED);
    madvise(at + (n % 2) * 2 * huge, 2 * huge, MADV_DONTNEED);
    for (std::uint64_t i = 0; i < 4 * huge; i += huge) at[i] = 1;  // huge at once
    madvise(at, 4 * huge, MADV_DONTNEED);
  }
}

void swap_out_and_in() {
  char* const at = static_cast<char*>(
      mmap(nullptr, huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (at == MAP_FAILED) _exit(94);
  for (std::uint64_t n = 1;; ++n) {
    for (std::uint64_t i = 0; i < huge; i += base_page) std::memcpy(at + i, &n, sizeof n);
    madvise(at, huge, madv_pageout);
    for (std::uint64_t i = 0; i < huge; i += base_page) (void)*static_cast<volatile char*>(at + i);
  }
}

void map_the_device() {
  const int fd = open("/dev/mem_mmap1", O_RDWR | O_CLOEXEC);
  for (std::uint64_t n = 0;; ++n) {
    void* at = mmap(nullptr, 64 * base_page, PROT_READ, MAP_SHARED, fd,
                    static_cast<off_t>(n % 64 * base_page));
    if (at == MAP_FAILED) _exit(95);
    if (n % 4 == 0) at = mremap(at, 64 * base_page, 32 * base_page, 0);
    munmap(at, 64 * base_page);
  }
}

/// Counts what an extent says of the known pages in it.
void judge(const Extent& e, const std::vector<Known>& known, Counts& counts) {
  const auto first = std::lower_bound(known.begin(), known.end(), e.va.value,
                                      [](const Known& k, std::uint64_t va) { return k.va < va; });
  for (auto k = first; k != known.end() && k->va < e.end().value; ++k) {
    ++counts.pages;
    if (e.state == PageState::changed) {
      ++counts.changed;
    } else if (e.state != PageState::resident) {
      if (counts.missing++ == 0) {
        counts.first_wrong_va = k->va;
        std::fprintf(stderr, "missing %s\n", describe(e).c_str());
      }
    } else if (const std::uint64_t pfn = e.pfn.value + (k->va - e.va.value) / base_page;
               pfn != k->pfn) {
      if (counts.wrong++ == 0) {
        counts.first_wrong_va = k->va;
        counts.first_wrong_pfn = pfn;
      }
    }
  }
}

/// All of the known part by one source, and single addresses of it, again and again.
void look(const Process& process, Backend backend, const Layout& layout,
          const std::vector<Known>& known, unsigned seed, Counts& counts, int times) {
  auto translator = open_translator(process, backend);
  if (!translator) {
    // The module may be on its way out or in.
    if (backend != Backend::kmod) ++counts.failed;
    return;
  }
  VmaInspector inspector(process);
  std::minstd_rand random(seed + 1);
  for (int i = 0; i < times && !counts.enough; ++i) {
    const auto judged = [&](const Extent& e) {
      judge(e, known, counts);
      return true;
    };
    if (backend != Backend::pagemap) {
      if (!(*translator)->walk({{layout.start}, {layout.end()}}, {}, judged)) ++counts.failed;
      if (!(*translator)->page_walk({known[random() % known.size()].va})) ++counts.failed;
    }
    const Known& one = known[random() % known.size()];
    const auto page = translate(process, **translator, inspector, VirtAddr{one.va + 5});
    if (!page) {
      ++counts.failed;
    } else if (page->extent.state != PageState::unseen) {
      judge(page->extent, known, counts);
    }
    // Everything: it must end and tile, whatever it finds.
    if (backend != Backend::pagemap && i % 8 == 0) {
      std::uint64_t at = 0;
      const auto all =
          (*translator)->walk({{0}, {std::uint64_t{1} << 47}}, {}, [&](const Extent& e) {
            if (e.va.value != at) ++counts.failed;
            at = e.end().value;
            judge(e, known, counts);
            return true;
          });
      if (!all || at != std::uint64_t{1} << 47) ++counts.failed;
    }
    ++counts.looks;
  }
}

/// Children of the target that are about to end, and whatever else runs.
void look_at_strangers(Counts& counts) {
  while (!counts.enough) {
    std::error_code gone;
    for (const auto& entry : std::filesystem::directory_iterator("/proc", gone)) {
      const std::string name = entry.path().filename();
      if (name.find_first_not_of("0123456789") != std::string::npos) continue;
      const auto root = SysRoot::live();
      const auto process = root->process(std::stoi(name));
      if (!process) continue;
      for (const Backend backend : {Backend::pagemap, Backend::kmod, Backend::bpf}) {
        const auto translator = open_translator(*process, backend);
        if (!translator) continue;
        if (backend == Backend::pagemap) {
          VmaInspector inspector(*process);
          (void)translate(*process, **translator, inspector, VirtAddr{0x400000});
          continue;
        }
        (void)(*translator)->walk({{0}, {std::uint64_t{1} << 47}}, {}, [](const Extent&) {
          return true;
        });
        (void)(*translator)->page_walk({0x400000});
        ++counts.strangers;
      }
    }
  }
}

/// vtop itself, on some known addresses at a time.
void look_by_vtop(pid_t pid, const std::vector<Known>& known, Counts& counts) {
  const bool has_bpf = works(Backend::bpf);
  for (std::minstd_rand random(3); !counts.enough;) {
    std::vector<std::string> arguments{"-J", std::to_string(pid)};
    std::vector<Known> asked;
    for (int i = 0; i < 8; ++i) {
      asked.push_back(known[random() % known.size()]);
      arguments.push_back(hex(asked.back().va));
    }
    const RunResult result = guest_vtop(arguments);
    const auto document = nlohmann::json::parse(result.out, nullptr, false);
    if (document.is_discarded()) {
      ++counts.failed;
      continue;
    }
    std::size_t i = 0;
    for (const auto& group : document["results"]) {
      for (const auto& extent : group["extents"]) {
        const Known& want = asked.at(i++);
        ++counts.pages;
        // Where there is no BPF, nobody sees the device's pages while the module is away.
        if (extent["state"] == "changed" || (extent["state"] == "unseen" && !has_bpf)) {
          ++counts.changed;
        } else if (extent["state"] != "resident") {
          if (counts.missing++ == 0) {
            counts.first_wrong_va = want.va;
            std::fprintf(stderr, "missing in vtop: %s\n", extent.dump().c_str());
          }
        } else if (std::stoull(extent["pfn"].get<std::string>(), nullptr, 16) != want.pfn) {
          if (counts.wrong++ == 0) counts.first_wrong_va = want.va;
        }
      }
    }
    if (i != asked.size()) ++counts.failed;
    ++counts.looks;
  }
}

/// What the kernel said since this was made, at the level of a warning and above.
class KernelLog {
 public:
  KernelLog() : fd_(open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
    lseek(fd_, 0, SEEK_END);
  }
  ~KernelLog() { close(fd_); }
  KernelLog(const KernelLog&) = delete;
  KernelLog& operator=(const KernelLog&) = delete;
  std::string warnings() {
    std::string all;
    std::array<char, 8192> record{};
    for (ssize_t n = 0; (n = read(fd_, record.data(), record.size())) > 0 || errno == EPIPE;) {
      const std::string text(record.data(), static_cast<std::size_t>(std::max<ssize_t>(n, 0)));
      if (n <= 0 || (std::stoul(text) & 7) > 4) continue;
      // Loading a module that is not of the kernel's own tree is told once; and an emulated
      // processor that had to wait for a real one finds its timers late.
      const std::string words = text.substr(text.find(';') + 1);
      if (words.find("taint") == std::string::npos &&
          !words.starts_with("hrtimer: interrupt took") && !words.starts_with("clocksource:"))
        all += words;
    }
    return all;
  }

 private:
  int fd_;
};

/// Objects in use of one of the kernel's caches.
std::uint64_t objects(const std::string& cache) {
  std::ifstream in("/proc/slabinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(cache + " ")) return std::stoull(line.substr(cache.size()));
  }
  return 0;
}

int seconds() {
  const char* const setting = std::getenv("VMEM_CHURN_SECONDS");
  return setting == nullptr ? 20 : std::atoi(setting);
}

}  // namespace

TEST_CASE("churn: no wrong frame, no message, no leak, and the module goes when it may") {
  if (!in_guest()) return;
  REQUIRE(std::system("modprobe zram && echo 256M >/sys/block/zram0/disksize &&"
                      " mkswap /dev/zram0 >/dev/null && swapon /dev/zram0") == 0);
  {
    const Module reader("vmem");  // what is said of the first module that is loaded is said now
  }
  const HugePages huge_pages;
  const Module driver("mem_mmap");
  const bool bpf = works(Backend::bpf);
  KernelLog log;
  const std::uint64_t address_spaces = objects("mm_struct");

  Layout layout;
  {
    void* const free = mmap(nullptr, std::uint64_t{1} << 30, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(free != MAP_FAILED);
    layout.start = (reinterpret_cast<std::uintptr_t>(free) + huge) & ~(huge - 1);
    munmap(free, std::uint64_t{1} << 30);
  }
  void* const shared =
      mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  auto& counts = *new (shared) Counts{};
  {
    std::array<int, 2> go{};
    REQUIRE(pipe2(go.data(), O_CLOEXEC) == 0);
    Child target = fork_child([&](const std::function<void()>& ready) {
      make_known(layout);
      // Their stacks before the storm begins.
      std::vector<std::thread> threads;
      std::atomic<bool> begin = false;
      const auto start = [&](const std::function<void()>& body) {
        threads.emplace_back([&begin, body] {
          while (!begin) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          body();
        });
      };
      start([&] { around_the_islands(layout, 0); });
      start([&] { around_the_islands(layout, 1); });
      start(fork_and_exit);
      start(collapse_and_split);
      start(swap_out_and_in);
      start(map_the_device);
      ready();
      char c = 0;
      (void)!read(go[0], &c, 1);
      begin = true;
      wait_for_ever();
    });

    // Before anything moves: by a plain read of pagemap, and of the device as it was asked for.
    std::vector<Known> known;
    const int pagemap =
        open(("/proc/" + std::to_string(target.pid()) + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC);
    const auto note = [&](std::uint64_t va) {
      std::uint64_t entry = 0;
      REQUIRE(pread(pagemap, &entry, sizeof entry, static_cast<off_t>(va / base_page * 8)) ==
              sizeof entry);
      REQUIRE(entry >> 63 == 1);
      known.push_back({va, entry << 9 >> 9});
    };
    for (std::uint64_t i = 0; i < islands; ++i) note(layout.island(i));
    for (std::uint64_t i = 0; i < hugetlb_pages * huge; i += 37 * base_page)
      note(layout.hugetlb() + i);
    for (std::uint64_t i = 0; i < window_pages; ++i)
      known.push_back({layout.device() + i * base_page, window / base_page + i});
    const std::vector<Known> before = known;

    const pid_t pid = target.pid();
    const auto looker = [&](const std::function<void()>& body) {
      return fork_child([&](const std::function<void()>& ready) {
        ready();
        body();
      });
    };
    std::vector<Child> lookers;
    const auto by = [&](Backend backend, unsigned seed) {
      lookers.push_back(looker([&, backend, seed] {
        while (!counts.enough) {
          if (backend == Backend::kmod) {
            const int error = Module::load("vmem");
            if (error != 0 && error != EEXIST && error != EBUSY) ++counts.failed;
            ++counts.loads;
          }
          // Opened anew each time: whatever holds the module is gone by then.
          look(process_of(pid), backend, layout, known, seed, counts, 40);
          if (backend == Backend::kmod) {
            const int error = Module::unload("vmem");
            if (error != 0 && error != EAGAIN && error != ENOENT && error != EBUSY) ++counts.failed;
          }
        }
      }));
    };
    by(Backend::kmod, 1);
    by(Backend::kmod, 2);
    by(Backend::pagemap, 3);
    if (bpf) by(Backend::bpf, 4);
    lookers.push_back(looker([&] { look_at_strangers(counts); }));
    lookers.push_back(looker([&] { look_by_vtop(pid, known, counts); }));
    REQUIRE(write(go[1], "g", 1) == 1);

    const auto until = Clock::now() + std::chrono::seconds(seconds());
    while (Clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      if (waitpid(pid, nullptr, WNOHANG) != 0) FAIL("the target has ended");
    }
    counts.enough = true;
    for (Child& child : lookers) {
      int status = -1;
      const auto patience = Clock::now() + std::chrono::seconds(60);
      while (waitpid(child.pid(), &status, WNOHANG) == 0 && Clock::now() < patience)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      CHECK(status == 0);
    }
    // The proof that these pages could not move.
    known.clear();
    for (std::uint64_t i = 0; i < islands; ++i) note(layout.island(i));
    for (std::size_t i = 0; i < known.size(); ++i) CHECK(known[i].pfn == before[i].pfn);
    close(pagemap);
    close(go[0]);
    close(go[1]);
  }
  std::printf(
      "churn: %d s, %llu looks, %llu known pages judged, %llu changed, %llu loads of the module, "
      "%llu strangers\n",
      seconds(), static_cast<unsigned long long>(counts.looks.load()),
      static_cast<unsigned long long>(counts.pages.load()),
      static_cast<unsigned long long>(counts.changed.load()),
      static_cast<unsigned long long>(counts.loads.load()),
      static_cast<unsigned long long>(counts.strangers.load()));
  INFO("first at " << hex(counts.first_wrong_va) << ", frame " << hex(counts.first_wrong_pfn));
  CHECK(counts.wrong == 0);
  CHECK(counts.missing == 0);
  CHECK(counts.failed == 0);
  CHECK(counts.looks > 20);
  CHECK(counts.strangers > 20);
  CHECK(counts.loads > 2);
  CHECK(counts.changed * 10 < counts.pages);

  // Nobody has it open any more.
  const int unloaded = Module::unload("vmem");
  CHECK((unloaded == 0 || unloaded == ENOENT));
  CHECK(std::system("swapoff /dev/zram0 && rmmod zram") == 0);
  // A process that was looked at would stay if it were still held.
  std::uint64_t left = 0;
  for (int i = 0; i < 200; ++i) {
    left = objects("mm_struct");
    if (left < address_spaces + 20) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  CHECK(left < address_spaces + 20);
  CHECK(log.warnings() == "");
}
