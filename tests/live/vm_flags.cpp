// SPDX-License-Identifier: MIT
// VmFlags through BPF are those of smaps.
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cstdio>
#include <thread>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"
#if VMEM_BPF
#include "bpf_program.hpp"
#endif

using namespace vmem;
using namespace vmem::test;

namespace {

std::unique_ptr<Translator> bpf_of(const Process& process) {
  auto translator = open_translator(process, Backend::bpf);
  if (translator) return std::move(*translator);
  const Error& e = translator.error();
  skip_or_fail("bpf", to_string(e) + (e.hint != nullptr ? std::string(" (") + e.hint + ")" : ""));
  return nullptr;
}

/// Where children map what they are asked about. Reserved here: a sanitizer does not allow every
/// address.
constexpr std::size_t place_bytes = std::size_t{1} << 34;
const std::uint64_t place = [] {
  void* const at =
      mmap(nullptr, place_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) throw std::runtime_error("reserving addresses");
  return reinterpret_cast<std::uint64_t>(at);
}();
void clear_place() { munmap(reinterpret_cast<void*>(place), place_bytes); }

/// A mapping of its own at each place, so that no two become one VMA.
char* map_apart(std::uint64_t n, int prot = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE) {
  void* const at = mmap(reinterpret_cast<void*>(place + 4 * n * base_page), base_page, prot,
                        flags | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (at == MAP_FAILED) throw std::runtime_error("mmap");
  return static_cast<char*>(at);
}

/// A VMA for each flag that a program can give it.
void map_all_flags() {
  std::uint64_t n = 0;
  for (const int prot : {PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE}) {
    map_apart(n++, prot);
    map_apart(n++, prot, MAP_SHARED);
  }
  for (const int flag : {MAP_NORESERVE, MAP_LOCKED, MAP_GROWSDOWN}) {
    char* const at = map_apart(n, PROT_READ | PROT_WRITE, MAP_PRIVATE | flag);
    *at = 1;
    n += 1000;  // far from what grows down
  }
  for (const int advice : {MADV_SEQUENTIAL, MADV_RANDOM, MADV_DONTFORK, MADV_WIPEONFORK,
                           MADV_DONTDUMP, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_MERGEABLE})
    (void)madvise(map_apart(n++), base_page, advice);
  (void)syscall(SYS_mlock2, map_apart(n++), base_page, 1 /* MLOCK_ONFAULT */);
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  uffdio_api api{};
  api.api = UFFD_API;
  if (fd < 0 || ioctl(fd, UFFDIO_API, &api) != 0) return;
  for (const std::uint64_t mode : {UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP}) {
    uffdio_register range{};
    range.range = {reinterpret_cast<std::uint64_t>(map_apart(n++)), base_page};
    range.mode = mode;
    (void)ioctl(fd, UFFDIO_REGISTER, &range);
  }
}

std::string all_faults(const FlagTally& tally) {
  std::string all;
  for (const std::string& fault : tally.faults) all += fault + '\n';
  return all;
}

}  // namespace

TEST_CASE("VmFlags through BPF: every kind of memory, and every flag that a program can ask for") {
  const KindsChild kinds;
  const Child flags = fork_child([](const std::function<void()>& ready) {
    clear_place();
    map_all_flags();
    ready();
    wait_for_ever();
  });
  for (const pid_t pid : {kinds.pid(), flags.pid()}) {
    stop(pid);
    const Process process = process_of(pid);
    const auto bpf = bpf_of(process);
    if (!bpf) return;
    const FlagTally tally = check_flags(*bpf, pid);
    INFO(all_faults(tally));
    CHECK(tally.faults.empty());
    CHECK(tally.named > 30);
    // Flags above bit 31 that no VMA of ours has, too.
    CHECK(tally.unnamed * 10 < tally.named);
  }
  std::string seen;
  for (const PlainSmaps& entry : plain_smaps(flags.pid())) seen += entry.flags;
  for (const char* const code : {"gd", "lo", "nr", "sr", "rr", "dc", "wf", "dd", "nh", "lf"})
    CHECK(seen.find(code) != std::string::npos);
}

TEST_CASE("VmFlags through BPF: many VMAs in many looks, any start, and in the midst of a walk") {
  constexpr std::uint64_t vmas = 5000;
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    for (std::uint64_t n = 0; n < vmas; ++n) {
      *map_apart(n) = 1;
      if (n % 3 == 0) (void)madvise(map_apart(n + vmas), base_page, MADV_DONTDUMP);
    }
    ready();
    wait_for_ever();
  });
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto bpf = bpf_of(process);
  if (!bpf) return;
  const FlagTally tally = check_flags(*bpf, child.pid());
  INFO(all_faults(tally));
  CHECK(tally.faults.empty());
  CHECK(tally.named > vmas);

  const auto first_from = [&](std::uint64_t from) {
    const auto told = bpf->vm_flags({from});
    REQUIRE(told);
    REQUIRE_FALSE(told->empty());
    return told->front().range.start.value;
  };
  for (const std::uint64_t n : {vmas - 1, std::uint64_t{1}, vmas / 2, vmas / 2, std::uint64_t{7}}) {
    const std::uint64_t start = place + 4 * n * base_page;
    CHECK(first_from(start) == start);
    CHECK(first_from(start + base_page - 1) == start);
    CHECK(first_from(start - 1) == start);
    CHECK(first_from(start - 2 * base_page) == start);
  }
  CHECK(bpf->vm_flags({std::uint64_t{1} << 62})->empty());

  const VaRange all{{place}, {place + 4 * vmas * base_page}};
  std::vector<Extent> still, asked;
  REQUIRE(bpf->walk(all, {}, [&](const Extent& e) {
    still.push_back(e);
    return true;
  }));
  REQUIRE(bpf->walk(all, {}, [&](const Extent& e) {
    asked.push_back(e);
    if (asked.size() % 50 == 1) CHECK(first_from(e.va.value) >= place);
    return true;
  }));
  REQUIRE(still.size() == asked.size());
  CHECK(std::ranges::equal(still, asked, [](const Extent& a, const Extent& b) {
    return a.va == b.va && a.bytes == b.bytes && a.state == b.state && a.pfn == b.pfn;
  }));
}

TEST_CASE("VmFlags through BPF: VMAs that come and go, and a process that ends") {
  Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    for (std::uint64_t n = 0; n < 3000; ++n) *map_apart(n) = 1;
    ready();
    for (std::uint64_t n = 0;; n = (n * 5 + 1) % 3000) {
      char* const at = map_apart(4000 + n);
      (void)madvise(at, base_page, MADV_DONTFORK);
      munmap(at, base_page);
    }
  });
  const Process process = process_of(child.pid());
  const auto bpf = bpf_of(process);
  if (!bpf) return;
  for (int pass = 0; pass < 50; ++pass) {
    std::uint64_t still = 0;
    for (const FlaggedVma& vma : all_flags(*bpf)) {
      const std::uint64_t n = (vma.range.start.value - place) / base_page;
      if (vma.range.start.value < place || n >= 4 * 3000) continue;
      ++still;
      CHECK((vma.flags && vma.flags->has("wr") && !vma.flags->has("dc")));
    }
    CHECK(still == 3000);
  }
  child.end();
  const auto gone = bpf->vm_flags({});
  REQUIRE_FALSE(gone);
  CHECK((gone.error().code == Errc::no_process || gone.error().code == Errc::process_changed));
}

TEST_CASE("vtop -J of over a gigabyte goes through BPF, VmFlags and all") {
  // Resident is what is mapped: the same memory, many times.
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    constexpr std::size_t bytes = std::size_t{64} << 20;
    (void)prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    (void)madvise(map_apart(0), base_page, MADV_DONTFORK);
    const int fd = memfd_create("gigabyte", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, bytes) != 0) _exit(1);
    for (int i = 0; i < 17; ++i) {
      if (mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0) ==
          MAP_FAILED)
        _exit(1);
    }
    ready();
    wait_for_ever();
  });
  stop(child.pid());
  if (!bpf_of(process_of(child.pid()))) return;
  const std::string pid = std::to_string(child.pid());
  const auto by = [&](const std::string& backend) {
    return tool_json("vtop", {"-J", "--backend", backend, pid});
  };
  const auto by_itself = by("auto");
  CHECK(by_itself["host"]["backend"] == "bpf");
  const auto smaps = plain_smaps(child.pid());
  REQUIRE(by_itself["results"].size() == smaps.size());
  for (std::size_t i = 0; i < smaps.size(); ++i) {
    const auto& group = by_itself["results"][i];
    CHECK(group["vma"]["start"] == "0x" + hex(smaps[i].start));
    std::string flags = " ";
    for (const auto& code : group["vma"]["flags"]) flags += code.get<std::string>() + " ";
    CHECK(flags + " " == smaps[i].flags);
    if (smaps[i].start >> 63 != 0) continue;
    for (const auto& extent : group["extents"]) CHECK(extent["backend"] == "bpf");
  }
  // It is what pagemap says, besides what only the one or the other tells.
  const auto frames = [](const nlohmann::ordered_json& document) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> all;
    for (const auto& group : document["results"]) {
      for (const auto& e : group["extents"]) {
        if (e["state"] != "resident" || group["vma"]["kind"] == "vvar") continue;
        const auto number = [&](const char* key) {
          return std::stoull(e[key].template get<std::string>(), nullptr, 16);
        };
        for (std::uint64_t n = 0; n < e["bytes"].template get<std::uint64_t>() / base_page; ++n)
          all.emplace_back(number("va") / base_page + n, number("pfn") + n);
      }
    }
    return all;
  };
  const auto by_pagemap = by("pagemap");
  CHECK(by_pagemap["host"]["backend"] == "pagemap");
  // Other tests that want huge pages have pages moved out of their way.
  bool same = frames(by_itself) == frames(by_pagemap);
  for (int left = 5; left > 0 && !same; --left) same = frames(by("auto")) == frames(by("pagemap"));
  CHECK(same);
}

TEST_CASE("VmFlags through BPF: a process whose first thread has ended, with others that wait") {
  constexpr std::uint64_t vmas = 2000;
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    for (std::uint64_t n = 0; n < vmas; ++n) *map_apart(n) = 1;
    for (int n = 0; n < 20; ++n) std::thread{wait_for_ever}.detach();
    ready();
    syscall(SYS_exit, 0);
  });
  const std::string tasks = "/proc/" + std::to_string(child.pid()) + "/task/";
  const std::string leader = tasks + std::to_string(child.pid()) + "/stat";
  for (std::string stat; stat.find(") Z") == std::string::npos;) stat = read_file(leader);
  const Process process = process_of(child.pid());
  const auto bpf = bpf_of(process);
  if (!bpf) return;
  CHECK(std::ranges::count_if(all_flags(*bpf), [](const FlaggedVma& vma) {
          const std::uint64_t at = vma.range.start.value;
          return at >= place && at < place + 4 * vmas * base_page;
        }) == vmas);

#if VMEM_BPF
  // Each thread has the same VMAs: they are looked at once.
  const auto root = SysRoot::live();
  REQUIRE(root);
  const auto program = BpfProgram::load(*root);
  REQUIRE(program);
  const auto link = (*program)->link(child.pid(), vmem_filter_group);
  REQUIRE(link);
  const auto iterator = (*program)->iterate(*link);
  REQUIRE(iterator);
  REQUIRE((*program)->read_vmas(*iterator, {std::uint64_t{1} << 62}, false));
  CHECK((*program)->run().ended == 1);
  CHECK((*program)->run().seen > vmas);
  CHECK((*program)->run().seen < 2 * vmas);
#endif
}

TEST_CASE("VmFlags through BPF: a child that asks with its parent's translator disturbs no walk") {
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    for (std::uint64_t n = 0; n < 5000; ++n) *map_apart(n) = 1;
    ready();
    wait_for_ever();
  });
  const Process process = process_of(child.pid());
  const auto bpf = bpf_of(process);
  if (!bpf) return;
  const Child asks = fork_child([&](const std::function<void()>& ready) {
    const auto refused = [](const auto& told) {
      return !told && told.error().code == Errc::invalid_argument;
    };
    if (!refused(bpf->vm_flags({})) || !refused(bpf->vm_ops({place}))) _exit(1);
    ready();
    for (;;) {
      (void)bpf->vm_flags({});
      (void)bpf->vm_ops({place});
    }
  });
  for (int pass = 0; pass < 100; ++pass) {
    std::uint64_t resident = 0;
    REQUIRE(bpf->walk({{place}, {place + 4 * 5000 * base_page}}, {}, [&](const Extent& e) {
      resident += e.state == PageState::resident ? e.bytes / base_page : 0;
      return true;
    }));
    REQUIRE(resident == 5000);
  }
}

TEST_CASE("VmFlags through BPF: more VMAs below than one run passes over") {
  constexpr std::uint64_t run = std::uint64_t{1} << 19;
  if (std::stoull(read_file("/proc/sys/vm/max_map_count")) < run + 3000) {
    WARN("vm.max_map_count is too small for it: not tested");
    return;
  }
  const Child child = fork_child([](const std::function<void()>& ready) {
    clear_place();
    for (std::uint64_t n = 0; n < run + 1000; ++n) map_apart(n);
    ready();
    wait_for_ever();
  });
  stop(child.pid());
  const Process process = process_of(child.pid());
  if (!bpf_of(process)) return;
  auto maps = VmaReader::open(process);
  REQUIRE(maps);
  Vma vma;
  for (std::uint64_t n = 0; n <= run + 1; ++n) {
    REQUIRE(*maps->next(vma));
    if (n + 1 < run) continue;
    // From within the gap before it, too.
    for (const VirtAddr from : {vma.range.start, vma.range.start - base_page}) {
      const auto told = bpf_of(process)->vm_flags(from);
      REQUIRE(told);
      REQUIRE_FALSE(told->empty());
      CHECK(told->front().range == vma.range);
    }
  }
}
