// SPDX-License-Identifier: MIT
// mapcheck on windows that a driver mapped rightly, or wrongly in a known way, and on device memory
// of the kernel's own drivers. What must be found is written here; where BARs lie, sysfs says.
//
// vmtest: machines=fast,pc,iommu
#include <fcntl.h>
#include <linux/vfio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/require.hpp"
#include "support/temp_dir.hpp"
#include "support/tool.hpp"
#include "support/window_view.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t huge = std::uint64_t{2} << 20;
constexpr std::uint64_t base = 0x90000000;
constexpr std::uint64_t length = 0x4000000;

std::string hex(std::uint64_t value) {
  std::ostringstream out;
  out << "0x" << std::hex << value;
  return out.str();
}

std::string window_at(std::uint64_t start, std::uint64_t bytes) {
  return hex(start) + "+" + hex(bytes);
}

/// One finding as the test writes it; an address that is not there is 0.
struct Fault {
  std::string kind;
  std::uint64_t offset = 0, bytes = 0, expected = 0, actual = 0;
  bool operator==(const Fault&) const = default;
};

struct Answer {
  int status = -1;
  std::string verdict;
  std::vector<Fault> faults;
  bool operator==(const Answer&) const = default;
};

std::string text(const Answer& answer) {
  std::ostringstream out;
  out << answer.status << " " << answer.verdict << std::hex;
  for (const Fault& f : answer.faults)
    out << "\n  " << f.kind << " at " << f.offset << "+" << f.bytes << " want " << f.expected
        << " is " << f.actual;
  return out.str();
}

RunResult mapcheck(const std::vector<std::string>& arguments, std::optional<uid_t> uid = {}) {
  RunOptions options;
  options.directory = "/";
  options.uid = uid;
  options.timeout = std::chrono::seconds(300);
  return run_tool("mapcheck", arguments, options);
}

nlohmann::json document_of(const std::vector<std::string>& options, int* status = nullptr) {
  std::vector<std::string> arguments{"-J"};
  arguments.insert(arguments.end(), options.begin(), options.end());
  const RunResult result = mapcheck(arguments);
  INFO(result.out.substr(0, 3000) << result.err);
  CHECK(result.signal == 0);
  if (status != nullptr) *status = result.status;
  auto document = nlohmann::json::parse(result.out, nullptr, false);
  REQUIRE_FALSE(document.is_discarded());
  return document;
}

/// What is said of the mapping at `at`.
Answer ask(std::uint64_t at, std::vector<std::string> options) {
  Answer answer;
  options.push_back(std::to_string(getpid()));
  const auto document = document_of(options, &answer.status);
  for (const auto& check : document["checks"]) {
    if (check["vma"].is_null() || check["vma"]["start"] != hex(at)) continue;
    answer.verdict = check["verdict"];
    for (const auto& finding : check["findings"]) {
      const auto address = [&](const char* name) {
        return finding[name].is_null() ? 0
                                       : std::stoull(finding[name].get<std::string>(), nullptr, 16);
      };
      answer.faults.push_back({finding["kind"], address("va") - at, finding["bytes"],
                               address("expected_pa"), address("actual_pa")});
    }
  }
  return answer;
}

const Answer pass{0, "pass", {}};

void check_answer(const Answer& got, const Answer& wanted) {
  INFO("got " << text(got) << "\nwanted " << text(wanted));
  CHECK(got == wanted);
}

struct Case {
  std::string parameters;
  std::vector<Fault> faults;  ///< of the first window
};

}  // namespace

TEST_CASE("mapcheck: right windows pass, each fault is found as what it is, and nothing else is") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const Case cases[] = {
      {"", {}},
      {"fault=wrong-base", {{"outside-window", 0, length, base, base + length}}},
      {"fault=shifted",
       {{"wrong-address", 0, length - page, base, base + page},
        {"wrong-address", length - page, page, base + length - page, base}}},
      {"fault=hole", {{"hole", page, page, base + page, 0}}},
      {"fault=swapped-pages",
       {{"wrong-address", page, page, base + page, base + 2 * page},
        {"wrong-address", 2 * page, page, base + 2 * page, base + page}}},
      {"fault=cached", {{"wrong-cache", 0, length, base, base}}},
      {"fault=short", {{"hole", length / 2, length / 2, base + length / 2, 0}}},
      {"fault=reversed", {{"wrong-address", 0, length, base, base + length - page}}},
  };
  for (const auto& [parameters, faults] : cases) {
    INFO(parameters);
    const Module driver("mem_mmap", parameters);
    const MappedFile mapping = map_device("/dev/mem_mmap1", 0, length);
    REQUIRE(mapping.error() == 0);
    const Answer wanted = faults.empty() ? pass : Answer{1, "fail", faults};
    for (const std::string backend : {"auto", "kmod", "bpf"}) {
      if (backend == "bpf" && !works(Backend::bpf)) continue;
      INFO(backend);
      check_answer(
          ask(mapping.address(), {"--backend", backend, "-e",
                                  "/dev/mem_mmap1=" + window_at(base, length) + ",cache=uc"}),
          wanted);
    }
    // pagemap alone sees nothing of it, right or wrong.
    const Answer blind = ask(mapping.address(), {"--backend", "pagemap", "-e",
                                                 "/dev/mem_mmap1=" + window_at(base, length)});
    CHECK(blind.status == 2);
    CHECK(blind.verdict == "unverified");
    // In any order somewhere within: then order and place are right.
    if (parameters == "fault=reversed" || parameters == "fault=shifted") {
      check_answer(
          ask(mapping.address(), {"-e", "/dev/mem_mmap1=" + window_at(base, length) + ",scatter"}),
          pass);
    }
    // Whose window it is only its driver knows.
    const Answer derived = ask(mapping.address(), {"--auto"});
    CHECK(derived.status == 2);
    CHECK(derived.verdict == "unverified");
  }
}

TEST_CASE("mapcheck: parts of windows, by their file offset") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const Module driver("mem_mmap", "cache=wc");
  const MappedFile part = map_device("/dev/mem_mmap2", 5 * page, 3 * page);
  REQUIRE(part.error() == 0);
  const std::string window = "/dev/mem_mmap2=" + window_at(base + length, length);
  check_answer(ask(part.address(), {"-e", window + ",cache=wc,perms=rw-s,flags=pf,io,leaf=4K"}),
               pass);
  check_answer(ask(part.address(), {"-e", window + ",offset=20K"}), pass);
  check_answer(
      ask(part.address(), {"-e", window + ",offset=0"}),
      {1, "fail", {{"wrong-address", 0, 3 * page, base + length, base + length + 5 * page}}});
}

TEST_CASE("mapcheck: the cache attribute over RAM is what it is, whatever was asked for") {
  if (!in_guest()) return;
#ifdef __x86_64__
  // RAM is mapped as it is elsewhere, whatever a driver wants (reserve_pfn_range() in
  // arch/x86/mm/pat/memtype.c).
  const std::string is = "wb", is_not = "uc";
#else
  const std::string is = "uc", is_not = "wb";  // the driver's default
#endif
  std::ifstream in("/proc/iomem");
  std::string line;
  std::uint64_t start = 0;
  while (std::getline(in, line)) {
    if (line.find("Kernel code") != std::string::npos) start = std::stoull(line, nullptr, 16);
  }
  start &= ~(page - 1);
  REQUIRE(start != 0);
  const Module reader("vmem");
  const Module driver("mem_mmap", "base=" + hex(start) + " len=0x10000 windows=1 allow_ram=1");
  const MappedFile mapping = map_device("/dev/mem_mmap1", 0, 0x10000);
  REQUIRE(mapping.error() == 0);
  const std::string window = "/dev/mem_mmap1=" + window_at(start, 0x10000);
  check_answer(ask(mapping.address(), {"-e", window + ",cache=" + is_not}),
               {1, "fail", {{"wrong-cache", 0, 0x10000, start, start}}});
  check_answer(ask(mapping.address(), {"-e", window + ",cache=" + is}), pass);
  // Meant for the reserved window, it lies in RAM.
  check_answer(ask(mapping.address(), {"-e", "/dev/mem_mmap1=" + window_at(base, 0x10000)}),
               {1, "fail", {{"not-device", 0, 0x10000, base, start}}});
}

TEST_CASE("mapcheck: without privilege nothing passes") {
  if (!in_guest()) return;
  const Module driver("mem_mmap");
  constexpr uid_t nobody = 65534;
  for (const std::string line : {"[stack]=ram,sparse", "[stack]=any,sparse", "[vdso]=any,sparse"}) {
    const RunResult result = mapcheck({"-e", line, "self"}, nobody);
    INFO(line << result.out << result.err);
    CHECK(result.status == 2);
    CHECK(result.out.find("pass") == std::string::npos);
  }
  CHECK(mapcheck({"--auto", "--all"}, nobody).status == 2);
}

TEST_CASE("mapcheck: a policy of what is now finds what changes") {
  if (!in_guest()) return;
  const Module reader("vmem");
  const TempDir directory;
  const std::string file = (directory / "policy.toml").string();
  {
    const Module driver("mem_mmap");
    const MappedFile mapping = map_device("/dev/mem_mmap1", 0, length);
    REQUIRE(mapping.error() == 0);
    const RunResult printed = mapcheck({"--print-policy", std::to_string(getpid())});
    INFO(printed.err);
    REQUIRE(printed.status == 0);
    CHECK(printed.out.find("window = \"" + window_at(base, length) + "\"") != std::string::npos);
    std::ofstream(file) << printed.out;
    check_answer(ask(mapping.address(), {"--policy", file}), {0, "pass", {}});
  }
  const Module driver("mem_mmap", "fault=hole");
  const MappedFile mapping = map_device("/dev/mem_mmap1", 0, length);
  REQUIRE(mapping.error() == 0);
  check_answer(ask(mapping.address(), {"--policy", file}),
               {1, "fail", {{"hole", page, page, base + page, 0}}});
}

namespace {

struct Bar {
  std::string device, name;
  std::uint64_t start = 0, bytes = 0;
};

/// BAR 2 of QEMU's shared memory device.
Bar shared_memory() {
  const std::string device = pci_device(0x1af4, 0x1110);
  REQUIRE_FALSE(device.empty());
  const auto found = pci_bar(device, 2);
  REQUIRE(found);
  return {device, fs::path(device).filename(), *found->physical, found->bytes};
}

}  // namespace

TEST_CASE("mapcheck: PCI BARs through sysfs") {
  if (!in_guest() || guest_machine() == "fast") return;
  const Module reader("vmem");
  const Bar bar = shared_memory();
  for (const auto& [file, cache] :
       {std::pair{"/resource2", "uc"}, std::pair{"/resource2_wc", "wc"}}) {
    INFO(file);
    const MappedFile mapping = map_device(bar.device + file, 0, bar.bytes);
    REQUIRE(mapping.error() == 0);
    check_answer(ask(mapping.address(), {"--auto"}), pass);
    const std::string expectation = std::string("*") + file + "=pci:" + bar.name + "/bar2,cache=";
    check_answer(ask(mapping.address(), {"-e", expectation + cache}), pass);
    const Answer other = ask(mapping.address(), {"-e", expectation + "wb"});
    check_answer(other, {1, "fail", {{"wrong-cache", 0, bar.bytes, bar.start, bar.start}}});
    // Another BAR's.
    CHECK(ask(mapping.address(), {"-e", std::string("*") + file + "=pci:" + bar.name + "/bar0"})
              .status == 1);
  }
  {
    // The second of two gets the first's attribute: write-combining it is not.
    const MappedFile first = map_device(bar.device + "/resource2", 0, bar.bytes);
    const MappedFile second = map_device(bar.device + "/resource2_wc", 0, bar.bytes);
    REQUIRE(second.error() == 0);
    check_answer(ask(second.address(), {"--auto"}),
                 {1, "fail", {{"wrong-cache", 0, bar.bytes, bar.start, bar.start}}});
    check_answer(ask(first.address(), {"--auto"}), {1, "pass", {}});
  }
  // The wrong place of the right device: its offset says where, so only a rule can tell.
  const MappedFile shifted = map_device(bar.device + "/resource2", 4 * page, 8 * page);
  REQUIRE(shifted.error() == 0);
  const std::string rule = "*/resource2=pci:" + bar.name + "/bar2,offset=0";
  check_answer(ask(shifted.address(), {"--auto"}), pass);
  check_answer(ask(shifted.address(), {"-e", rule}),
               {1, "fail", {{"wrong-address", 0, 8 * page, bar.start, bar.start + 4 * page}}});
}

TEST_CASE("mapcheck: a BAR through UIO") {
  if (!in_guest() || guest_machine() == "fast") return;
  const Module reader("vmem");
  const Bar bar = shared_memory();
  const BoundDevice device(bar.device, "hilscher", "uio_cif");
  if (!device.bound()) return skip_or_fail("vm", "this kernel has no uio_cif");
  const std::string uio = fs::directory_iterator(bar.device + "/uio")->path().filename();
  const MappedFile mapping = map_device("/dev/" + uio, page, bar.bytes);
  REQUIRE(mapping.error() == 0);
  check_answer(ask(mapping.address(), {"--auto"}), pass);
  check_answer(ask(mapping.address(), {"-e", "/dev/uio*=" + uio + "/map1,cache=uc"}), pass);
  CHECK(ask(mapping.address(), {"-e", "/dev/uio*=" + uio + "/map0"}).status == 1);
}

TEST_CASE("mapcheck: /dev/mem") {
  if (!in_guest() || guest_machine() == "fast") return;
  const Module reader("vmem");
  const Bar bar = shared_memory();
  const auto map = [](std::uint64_t at, std::uint64_t bytes) {
    return MappedFile("/dev/mem", at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, O_SYNC);
  };
  {
    const MappedFile mapping = map(base, 16 * page);
    REQUIRE(mapping.error() == 0);
    check_answer(ask(mapping.address(), {"--auto"}), pass);
  }
  {
    const MappedFile mapping = map(bar.start, bar.bytes);
    REQUIRE(mapping.error() == 0);
    check_answer(ask(mapping.address(), {"--auto"}), pass);
    check_answer(ask(mapping.address(), {"-e", "/dev/mem=pci:" + bar.name + "/bar2,cache=uc"}),
                 pass);
  }
  // A page too far: it ends in what is not the device's.
  const MappedFile wrong = map(bar.start + page, bar.bytes);
  REQUIRE(wrong.error() == 0);
  const Answer wanted{
      1, "fail", {{"outside-window", bar.bytes - page, page, 0, bar.start + bar.bytes}}};
  check_answer(ask(wrong.address(), {"--auto"}), wanted);
  check_answer(ask(wrong.address(), {"-e", "/dev/mem=pci:" + bar.name + "/bar2"}), wanted);
}

TEST_CASE("mapcheck: a BAR through VFIO") {
  if (!in_guest() || guest_machine() != "iommu") return;
  const Module reader("vmem");
  REQUIRE(std::system("modprobe vfio_iommu_type1") == 0);
  const Bar bar = shared_memory();
  const BoundDevice device(bar.device, "vfio-pci", "vfio-pci");
  REQUIRE(device.bound());
  const std::string group_name = fs::read_symlink(bar.device + "/iommu_group").filename();
  const int container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  const int group = open(("/dev/vfio/" + group_name).c_str(), O_RDWR | O_CLOEXEC);
  REQUIRE(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
  REQUIRE(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
  const int fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, bar.name.c_str());
  REQUIRE(fd >= 0);
  vfio_region_info region{};
  region.argsz = sizeof region;
  region.index = VFIO_PCI_BAR2_REGION_INDEX;
  REQUIRE(ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
  // As aligned as the BAR: a huge leaf fits.
  void* const room = mmap(nullptr, bar.bytes + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(room != MAP_FAILED);
  const std::uint64_t before = huge - reinterpret_cast<std::uintptr_t>(room) % huge;
  void* const at = mmap(static_cast<char*>(room) + before, bar.bytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_FIXED, fd, static_cast<off_t>(region.offset));
  REQUIRE(at != MAP_FAILED);
  const auto address = reinterpret_cast<std::uintptr_t>(at);
  // No page of it is there yet.
  CHECK(ask(address, {"--auto"}).verdict == "unverified");
  for (std::uint64_t offset = 0; offset < bar.bytes; offset += page)
    (void)*static_cast<volatile std::uint32_t*>(
        static_cast<void*>(static_cast<char*>(at) + offset));
  check_answer(ask(address, {"--auto"}), pass);
  const std::string rule = hex(address) + "=pci:" + bar.name + "/bar2,cache=uc";
  check_answer(ask(address, {"-e", rule}), pass);
  CHECK(ask(address, {"-e", hex(address) + "=pci:" + bar.name + "/bar0"}).status == 1);
  // Since 6.12 the driver maps as much as fits one leaf at each fault.
  const bool by_pages = guest_kernel() == "5.10" || guest_kernel() == "6.1";
  check_answer(ask(address, {"-e", rule + (by_pages ? ",leaf=4K" : ",leaf=2M")}), pass);
  check_answer(ask(address, {"-e", rule + (by_pages ? ",leaf=2M" : ",leaf=4K")}),
               {1, "fail", {{"wrong-leaf", 0, bar.bytes, bar.start, bar.start}}});
  munmap(room, bar.bytes + huge);
  // The wrong offset: a rule tells.
  void* const shifted = mmap(nullptr, 16 * page, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                             static_cast<off_t>(region.offset + page));
  REQUIRE(shifted != MAP_FAILED);
  for (std::uint64_t offset = 0; offset < 16 * page; offset += page)
    (void)*static_cast<volatile std::uint32_t*>(
        static_cast<void*>(static_cast<char*>(shifted) + offset));
  const auto wrong = reinterpret_cast<std::uintptr_t>(shifted);
  check_answer(ask(wrong, {"-e", hex(wrong) + "=pci:" + bar.name + "/bar2,offset=0"}),
               {1, "fail", {{"wrong-address", 0, 16 * page, bar.start, bar.start + page}}});
  munmap(shifted, 16 * page);
  close(fd);
  close(group);
  close(container);
}

TEST_CASE("explain says of each region whether /dev/mem maps it, as the kernel does") {
  const int memory = open("/dev/mem", O_RDONLY | O_CLOEXEC);
  REQUIRE(memory >= 0);
  std::ifstream regions("/proc/iomem");
  int allowed = 0, refused = 0;
  for (std::string line; std::getline(regions, line);) {
    std::uint64_t start = 0, last = 0;
    char dash = 0;
    std::istringstream in(line);
    in >> std::hex >> start >> dash >> last;
    // Whole pages, and not the first: the kernel has a rule of its own for what lies below 1 MiB.
    if (!in || start % page != 0 || last - start + 1 < page || start < 0x100000) continue;
    void* const at = mmap(nullptr, page, PROT_NONE, MAP_SHARED, memory, static_cast<off_t>(start));
    const bool mapped = at != MAP_FAILED;
    if (mapped) munmap(at, page);
    const RunResult told = mapcheck({"explain", window_at(start, page)});
    INFO(line << "\n" << told.out << told.err);
    CHECK(told.status == (mapped ? 0 : 1));
    CHECK(told.out.find(mapped ? " allowed " : " refused ") != std::string::npos);
    if (!mapped && line.find("System RAM") != std::string::npos)
      CHECK(told.out.find("STRICT_DEVMEM") != std::string::npos);
    ++(mapped ? allowed : refused);
  }
  close(memory);
  CHECK(allowed > 0);
  CHECK(refused > 0);
}
