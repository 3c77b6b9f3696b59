// SPDX-License-Identifier: MIT
// What /dev/vmem tells of page frames, and of a device's addresses. The oracles are kpagecount,
// sysfs, and what this program itself mapped, pinned and gave up.
//
// vmtest: machines=fast,iommu
#include <linux/io_uring.h>
#include <linux/vfio.h>

#include <cinttypes>

#include "vm/kmod_device.hpp"

using namespace vmem;
using namespace vmem::test::kmod;
using vmem::test::skip_or_fail;

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

TEST_CASE("kmod: a device that gets another domain while it is asked about has no one answer") {
  const Device device;
  if (!device) return;
  const VfioDevice bound;
  if (bound.group.empty()) {
    if (vmem::test::guest_machine() == "iommu") FAIL("no device can be bound to vfio-pci");
    return;
  }
  unsigned domain = 0, bus = 0, slot = 0, function = 0;
  REQUIRE(std::sscanf(bound.name.c_str(), "%x:%x:%x.%x", &domain, &bus, &slot, &function) == 4);
  std::array<int, 2> go{};
  REQUIRE(pipe2(go.data(), O_CLOEXEC) == 0);
  const pid_t child = fork();
  if (child == 0) {
    std::vector<vmem_iova_run> runs(512);
    vmem_iova ask{};
    ask.size = sizeof ask;
    ask.domain = domain;
    ask.bus = static_cast<std::uint8_t>(bus);
    ask.devfn = static_cast<std::uint8_t>(slot << 3 | function);
    ask.end = std::uint64_t{1} << 30;
    ask.runs = reinterpret_cast<std::uintptr_t>(runs.data());
    ask.runs_len = static_cast<std::uint32_t>(runs.size());
    char byte = 0;
    if (read(go[0], &byte, 1) != 1) _exit(99);
    const int error = call(device, VMEM_IOC_IOVA, &ask);
    if (error != 0) _exit(error);
    _exit(ask.state == VMEM_IOVA_TRANSLATED ? 0 : 98);
  }
  REQUIRE(child > 0);
  // Each look at the domain takes so long that the device is given another one between two.
  const vmem::test::Module slow(
      "fail_call",
      "function=iommu_group_for_each_dev milliseconds=100 pid=" + std::to_string(child));
  const auto looks = [] {
    int number = 0;
    std::ifstream("/sys/module/fail_call/parameters/calls") >> number;
    return number;
  };
  REQUIRE(write(go[1], "g", 1) == 1);
  while (looks() < 2) usleep(1000);
  {
    const Descriptor container{open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC)};
    const Descriptor group{open(("/dev/vfio/" + bound.group).c_str(), O_RDWR | O_CLOEXEC)};
    REQUIRE(ioctl(group.fd, VFIO_GROUP_SET_CONTAINER, &container.fd) == 0);
    REQUIRE(ioctl(container.fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == EAGAIN);
  }
  for (const int end : go) close(end);
}
