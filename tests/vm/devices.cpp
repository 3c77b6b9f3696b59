// SPDX-License-Identifier: MIT
// Device memory that drivers of the kernel's own map: PCI BARs through sysfs, UIO and VFIO, and
// /dev/mem. The oracles are what sysfs says of the BAR, the kernel's record of what was asked of
// it, and its list of cache attributes.
//
// vmtest: machines=pc,iommu
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/require.hpp"
#include "support/window_view.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t huge = std::uint64_t{2} << 20;

std::string hex(std::uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

/// QEMU's shared memory device: BAR 2 is 16 MiB of memory, prefetchable.
std::string shared_memory_device() {
  const std::string device = pci_device(0x1af4, 0x1110);
  REQUIRE_FALSE(device.empty());
  return device;
}

struct Bar {
  std::uint64_t start = 0, bytes = 0;
};
Bar bar_of(const std::string& device, int number) {
  const auto found = pci_bar(device, number);
  REQUIRE(found);
  REQUIRE(*found->physical % page == 0);
  return {*found->physical, found->bytes};
}

/// What every way to page tables sees of [at, at + bytes), which must be one run.
void check_run(std::uint64_t at, std::uint64_t bytes, std::uint64_t physical,
               const std::string& cache) {
  const std::vector<Run> expected{{0, bytes, physical, cache}};
  INFO("expected\n" << describe(expected));
  for (const Backend backend : {Backend::kmod, Backend::bpf}) {
    if (!works(backend)) continue;
    const std::string name(to_string(backend));
    const auto seen = seen_by(backend, getpid(), at, bytes);
    INFO(name << " sees\n" << describe(seen));
    CHECK(seen == expected);
    CHECK(seen_by_vtop(name, name, getpid(), at, bytes) == expected);
  }
}

void check_noted(std::uint64_t physical, const std::string& cache) {
  const auto caches = reserved_caches(physical);
  CHECK_FALSE(caches.empty());
  for (const std::string& noted : caches) CHECK(noted == cache);
}

std::string kind_of(std::uint64_t at) {
  const RunResult result =
      guest_vtop({"-J", "--backend", "kmod", std::to_string(getpid()), hex(at)});
  INFO(result.out << result.err);
  const auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  return document["results"][0]["vma"]["kind"];
}

int must(int result, const char* what) {
  INFO(what << ": " << std::strerror(errno));
  REQUIRE(result >= 0);
  return result;
}

struct Descriptor {
  int fd;
  explicit Descriptor(int opened) : fd(opened) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() { close(fd); }
};

}  // namespace

TEST_CASE("devices: a PCI BAR through sysfs") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const std::string device = shared_memory_device();
  const Bar bar = bar_of(device, 2);
  CHECK(bar.bytes == std::uint64_t{16} << 20);
  RemapRecord record;
  SECTION("uncached, then write-combining, whole and in part") {
    for (const auto& [file, cache] :
         {std::pair{"/resource2", "uc-"}, std::pair{"/resource2_wc", "wc"}}) {
      for (const auto& [offset, bytes] :
           {std::pair{std::uint64_t{0}, bar.bytes}, std::pair{5 * page, 3 * page}}) {
        INFO(file << " " << offset);
        record.take();
        const MappedFile mapping = map_device(device + file, offset, bytes);
        REQUIRE(mapping.error() == 0);
        CHECK(record.take() == std::vector<Run>{{0, bytes, bar.start + offset, ""}});
        check_noted(bar.start + offset, cache);
        check_run(mapping.address(), bytes, bar.start + offset, cache);
        CHECK(kind_of(mapping.address()) == "pci-bar");
      }
    }
  }
  SECTION("the second of two gets the first's attribute, and is shown with that") {
    const MappedFile first = map_device(device + "/resource2", 0, bar.bytes);
    REQUIRE(first.error() == 0);
    const MappedFile second = map_device(device + "/resource2_wc", 0, bar.bytes);
    REQUIRE(second.error() == 0);
    check_noted(bar.start, "uc-");
    check_run(second.address(), bar.bytes, bar.start, "uc-");
  }
  SECTION("the registers of another device") {
    const std::string edu = pci_device(0x1234, 0x11e8);
    REQUIRE_FALSE(edu.empty());
    const Bar registers = bar_of(edu, 0);
    const MappedFile mapping = map_device(edu + "/resource0", 0, registers.bytes);
    REQUIRE(mapping.error() == 0);
    check_run(mapping.address(), registers.bytes, registers.start, "uc-");
  }
}

TEST_CASE("devices: a BAR through UIO") {
  if (!in_guest()) return;
  const Module reader("vmem");
  // uio_pci_generic has no memory to map; this driver maps BAR 0 and BAR 2 of whatever device it is
  // given.
  const BoundDevice device(shared_memory_device(), "hilscher", "uio_cif");
  if (!device.bound()) return skip_or_fail("vm", "this kernel has no uio_cif");
  const Bar bar = bar_of(shared_memory_device(), 2);
  const fs::path uio = fs::directory_iterator(shared_memory_device() + "/uio")->path();
  std::string said;
  std::ifstream(uio / "maps/map1/addr") >> said;
  REQUIRE(std::stoull(said, nullptr, 16) == bar.start);
  RemapRecord record;
  // Of UIO's files the offset is the number of the map, in pages.
  const MappedFile mapping = map_device("/dev/" + uio.filename().string(), page, bar.bytes);
  REQUIRE(mapping.error() == 0);
  CHECK(record.take() == std::vector<Run>{{0, bar.bytes, bar.start, ""}});
  check_noted(bar.start, "uc-");
  check_run(mapping.address(), bar.bytes, bar.start, "uc-");
  CHECK(kind_of(mapping.address()) == "uio");
}

TEST_CASE("devices: a BAR through VFIO, by huge leaves where the kernel makes them") {
  if (!in_guest()) return;
  if (guest_machine() != "iommu") return;
  const Module reader("vmem");
  REQUIRE(std::system("modprobe vfio_iommu_type1") == 0);
  const std::string path = shared_memory_device();
  const BoundDevice device(path, "vfio-pci", "vfio-pci");
  REQUIRE(device.bound());
  const Bar bar = bar_of(path, 2);
  const std::string group_name = fs::read_symlink(path + "/iommu_group").filename();
  const Descriptor container(must(open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), "container"));
  const Descriptor group(
      must(open(("/dev/vfio/" + group_name).c_str(), O_RDWR | O_CLOEXEC), "group"));
  must(ioctl(group.fd, VFIO_GROUP_SET_CONTAINER, &container.fd), "VFIO_GROUP_SET_CONTAINER");
  must(ioctl(container.fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "VFIO_SET_IOMMU");
  const Descriptor fd(
      must(ioctl(group.fd, VFIO_GROUP_GET_DEVICE_FD, fs::path(path).filename().c_str()), "device"));
  vfio_region_info region{};
  region.argsz = sizeof region;
  region.index = VFIO_PCI_BAR2_REGION_INDEX;
  must(ioctl(fd.fd, VFIO_DEVICE_GET_REGION_INFO, &region), "VFIO_DEVICE_GET_REGION_INFO");
  REQUIRE(region.size == bar.bytes);

  // Where it can be mapped by leaves of 2 MiB.
  char* const room = static_cast<char*>(mmap(nullptr, bar.bytes + huge, PROT_NONE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  REQUIRE(room != MAP_FAILED);
  const std::uint64_t at = (reinterpret_cast<std::uintptr_t>(room) + huge - 1) & ~(huge - 1);
  void* const got = mmap(reinterpret_cast<void*>(at), bar.bytes, PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_FIXED, fd.fd, static_cast<off_t>(region.offset));
  REQUIRE(got != MAP_FAILED);
  const auto touch = [&](std::uint64_t offset) {
    (void)*reinterpret_cast<volatile std::uint32_t*>(at + offset);
  };

  // Nothing is there before it is touched.
  for (const Backend backend : {Backend::kmod, Backend::bpf}) {
    if (!works(backend)) continue;
    CHECK(seen_by(backend, getpid(), at, bar.bytes) == std::vector<Run>{{0, bar.bytes, {}, "-"}});
  }
  for (std::uint64_t offset = 0; offset < bar.bytes; offset += page) touch(offset);
  check_noted(bar.start, "uc-");
  check_run(at, bar.bytes, bar.start, "uc-");
  // From inside of a leaf into the inside of another one.
  check_run(at + 3 * page, 2 * huge, bar.start + 3 * page, "uc-");
  CHECK(kind_of(at) == "vfio");
  // Since 6.12 the driver maps as much as fits one leaf at each fault.
  const bool by_pages = guest_kernel() == "5.10" || guest_kernel() == "6.1";
  for (const Backend backend : {Backend::kmod, Backend::bpf}) {
    if (!works(backend)) continue;
    CHECK(leaves_seen_by(backend, getpid(), at, bar.bytes) ==
          std::vector<unsigned>{by_pages ? 12U : 21U});
  }
  munmap(room, bar.bytes + huge);
}

TEST_CASE("devices: /dev/mem") {
  if (!in_guest()) return;
  const Module reader("vmem");
  constexpr std::uint64_t window = 0x90000000, bytes = 0x100000;
  RemapRecord record;
  for (const int flags : {O_SYNC, 0}) {
    INFO((flags == O_SYNC ? "O_SYNC" : "no O_SYNC"));
    const MappedFile mapping("/dev/mem", window + page, bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                             flags);
    REQUIRE(mapping.error() == 0);
    const auto calls = record.take();
    // Later kernels map it without that call: by mmap_prepare.
    if (guest_kernel() != "newest" || !calls.empty())
      CHECK(calls == std::vector<Run>{{0, bytes, window + page, ""}});
    // Without O_SYNC write-back is asked for; whether it is given depends on the MTRRs, too.
    const auto noted = reserved_caches(window + page);
    REQUIRE_FALSE(noted.empty());
    if (flags == O_SYNC) CHECK(noted[0] == "uc-");
    check_noted(window + page, noted[0]);
    check_run(mapping.address(), bytes, window + page, noted[0]);
    CHECK(kind_of(mapping.address()) == "devmem");
  }
}
