// SPDX-License-Identifier: MIT
// Which VMAs pagemap is blind to, and VmFlags that hold nobody up: against smaps of each VMA.
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "live/children.hpp"
#include "live/oracle.hpp"
#include "pagemap_sight.hpp"

using namespace vmem;
using namespace vmem::test;

TEST_CASE("PAGEMAP_SCAN tells VM_PFNMAP of every kind of memory, as smaps does") {
  const HugePages huge_pages;
  const KindsChild child;
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto smaps = plain_smaps(child.pid());
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  REQUIRE(vmas->size() == smaps.size());
  PagemapSight sight;
  VmaInspector inspector{process};
  unsigned blind = 0;
  for (std::size_t i = 0; i < vmas->size(); ++i) {
    const Vma& vma = (*vmas)[i];
    INFO(vma.path);
    if (vma.path == "[vsyscall]") {
      CHECK(inspector.blindness(vma) == VmaInspector::Blindness::gate);
      continue;
    }
    const auto answer = sight.ask(process, vma.range.start);
    // The kernel is older than 6.7: flags decide alone.
    if (answer != PagemapSight::Answer::cannot_tell)
      CHECK((answer == PagemapSight::Answer::blind) == smaps[i].has("pf"));
    CHECK((inspector.blindness(vma) == VmaInspector::Blindness::pfnmap) == smaps[i].has("pf"));
    blind += smaps[i].has("pf");
  }
  CHECK(blind > 0);
  CHECK(inspector.missing() == nullptr);
}

TEST_CASE("what is no VMA any more is no blind one") {
  const Child child = fork_child([](const std::function<void()>& ready) {
    ready();
    wait_for_ever();
  });
  const Process process = process_of(child.pid());
  VmaInspector inspector{process};
  Vma vma;
  vma.range = {{0x10000}, {0x11000}};
  CHECK(inspector.blindness(vma) != VmaInspector::Blindness::pfnmap);
  vma.path = "/dev/driver";
  vma.inode = 1;
  vma.shared = true;
  struct stat dev{};
  REQUIRE(stat("/dev", &dev) == 0);
  vma.dev_major = major(dev.st_dev);
  vma.dev_minor = minor(dev.st_dev);
  CHECK(to_string(inspector.classify(vma).kind) == "unknown");
}

TEST_CASE("VmFlags come without smaps from a process that smaps would hold up, by every backend") {
  // Page tables are what smaps has to walk: the zero page fills them without taking memory.
  constexpr std::size_t bytes = std::size_t{256} << 20;
  void* place = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(place != MAP_FAILED);
  const Child child = fork_child([&](const std::function<void()>& ready) {
    (void)mmap(place, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    (void)madvise(place, bytes, MADV_NOHUGEPAGE);
    (void)madvise(place, bytes, 22 /* MADV_POPULATE_READ */);
    ready();
    wait_for_ever();
  });
  munmap(place, bytes);
  stop(child.pid());
  const Process process = process_of(child.pid());
  const auto smaps = plain_smaps(child.pid());
  for (const char* const name : {"auto", "pagemap", "bpf"}) {
    INFO(name);
    const Backend backend = *name == 'b' ? Backend::bpf : Backend::pagemap;
    auto translator = *name == 'a' ? open_translator(process) : open_translator(process, backend);
    if (!translator) {
      skip_or_fail("bpf", to_string(translator.error()));
      continue;
    }
    if (const auto bpf = open_translator(process, Backend::bpf); !bpf) {
      skip_or_fail("bpf", to_string(bpf.error()));
      continue;
    }
    VmaInspector inspector{process, vm_flags_source(process, **translator)};
    std::size_t i = 0;
    const auto vmas = read_vmas(process);
    REQUIRE(vmas);
    for (const Vma& vma : *vmas) {
      INFO(vma.path);
      const auto flags = inspector.flags(vma);
      REQUIRE(i < smaps.size());
      REQUIRE(flags);
      for (const char* const code : {"rd", "wr", "ex", "sh", "mr", "pf", "io", "nh", "ac", "dd"})
        CHECK(flags->has(code) == smaps[i].has(code));
      ++i;
    }
    CHECK_FALSE(inspector.smaps_stalled());
  }
  // Without such a source smaps is what is left, and that is said.
  VmaInspector alone{process};
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  CHECK(alone.flags(vmas->front()));
  CHECK(alone.smaps_stalled());
}
