// SPDX-License-Identifier: MIT
// The reference driver itself. What it maps is told by three that do not know of each other: its
// truth file, the kernel's own record of what it asked for, and the memory, in which every page
// holds its own address.
//
// vmtest: machines=fast
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/guest.hpp"
#include "support/subprocess.hpp"
#include "support/tool.hpp"

using namespace vmem::test;

namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t base = 0x90000000;
constexpr std::uint64_t length = 0x4000000;
constexpr std::uint64_t pages = length / page;
const std::vector<std::string> devices{"/dev/mem_mmap1", "/dev/mem_mmap2"};

#ifdef __x86_64__
const std::string uc = "uc-", wc = "wc", wb = "wb";
#else
const std::string uc = "device-nGnRnE", wc = "normal-nc", wb = "normal";
#endif

Run mapped(std::uint64_t offset, std::uint64_t bytes, std::uint64_t physical,
           const std::string& cache = uc) {
  return {offset, bytes, physical, cache};
}

/// Reads every page of a mapping, and says what lies below, in the form of truth().
std::vector<Run> by_content(const MappedFile& mapping, std::uint64_t salt) {
  std::vector<Run> runs;
  for (std::uint64_t offset = 0; offset < mapping.bytes(); offset += page) {
    Run run{offset, page, {}, ""};
    if (const auto word = mapping.word(offset)) {
      run.physical = *word ^ PhysicalMemory::stamp_of(0, salt);
    }
    if (!runs.empty()) {
      Run& last = runs.back();
      const bool follows = run.physical && last.physical
                               ? *run.physical == *last.physical + last.bytes
                               : !run.physical && !last.physical;
      if (follows) {
        last.bytes += page;
        continue;
      }
    }
    runs.push_back(run);
  }
  return runs;
}

std::vector<Run> without_cache(std::vector<Run> runs) {
  for (Run& run : runs) run.cache.clear();
  return runs;
}

/// Maps a part of a window and holds the three against each other.
void check_part(const std::string& device, const std::vector<Run>& expected, std::uint64_t offset,
                std::uint64_t bytes, std::uint64_t salt, RemapRecord& record) {
  INFO(device << " offset " << offset << " bytes " << bytes);
  record.take();
  const MappedFile mapping = map_device(device, offset, bytes);
  REQUIRE(mapping.error() == 0);
  const std::vector<Run> shown = part(expected, offset, bytes);
  {
    const auto calls = record.take();
    INFO("remap_pfn_range was called with\n" << describe(calls));
    CHECK(calls == calls_of(shown));
  }
  const auto content = by_content(mapping, salt);
  INFO("the pages hold\n" << describe(content));
  CHECK(content == without_cache(shown));
}

std::uint64_t stamp_windows() {
  static std::uint64_t salt = 0;
  PhysicalMemory(base, 2 * length).stamp(++salt);
  return salt;
}

/// Loads the driver with these parameters and checks both windows, whole and in parts, against the
/// truth that the test's author knows.
void check_fault(const std::string& parameters, const std::vector<std::vector<Run>>& expected) {
  const std::uint64_t salt = stamp_windows();
  const Module module("mem_mmap", parameters);
  RemapRecord record;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const auto said = truth(static_cast<int>(i) + 1);
    INFO("truth says\n" << describe(said) << "and should say\n" << describe(expected[i]));
    REQUIRE(said == expected[i]);
    for (const auto& [offset, bytes] :
         {std::pair{std::uint64_t{0}, length}, std::pair{std::uint64_t{0}, page},
          std::pair{page, 3 * page}, std::pair{length - 3 * page, 3 * page},
          std::pair{length / 2 - page, 2 * page}}) {
      check_part(devices[i], expected[i], offset, bytes, salt, record);
    }
    for (const Run& run : expected[i]) {
      if (!run.physical || &run - expected[i].data() > 4) continue;
#ifdef __x86_64__
      const auto caches = reserved_caches(*run.physical);
      REQUIRE_FALSE(caches.empty());
      CHECK(std::all_of(caches.begin(), caches.end(),
                        [&](const std::string& cache) { return cache == run.cache; }));
#endif
    }
  }
}

/// The errno of loading the driver; it is unloaded again if that worked.
int load_error(const std::string& parameters) {
  const int error = Module::load("mem_mmap", parameters);
  if (error == 0) REQUIRE(Module::unload("mem_mmap") == 0);
  return error;
}

int map_error(const std::string& device, std::uint64_t offset, std::size_t bytes) {
  return map_device(device, offset, bytes).error();
}

/// Lines of /proc/iomem that name the driver.
std::string claimed() {
  std::ifstream in("/proc/iomem");
  std::string line, found;
  while (std::getline(in, line)) {
    if (line.find("mem_mmap") != std::string::npos)
      found += line.substr(line.find_first_not_of(' ')) + "\n";
  }
  return found;
}

/// A range of ordinary RAM of this machine.
std::uint64_t ram(std::uint64_t bytes) {
  std::ifstream in("/proc/iomem");
  std::string line;
  while (std::getline(in, line)) {
    if (line.find(": System RAM") == std::string::npos) continue;
    const std::uint64_t start = std::stoull(line, nullptr, 16);
    const std::uint64_t end = std::stoull(line.substr(line.find('-') + 1), nullptr, 16) + 1;
    const std::uint64_t aligned = (start + 0xffffff) & ~std::uint64_t{0xffffff};
    if (aligned >= 0x1000000 && aligned + bytes <= end) return aligned;
  }
  FAIL("no RAM in /proc/iomem");
  return 0;
}

}  // namespace

TEST_CASE("mem_mmap: what truth says is what is asked of the kernel and what the pages hold") {
  if (!in_guest()) return;
  SECTION("no fault") {
    check_fault("", {{mapped(0, length, base)}, {mapped(0, length, base + length)}});
  }
  SECTION("wrong-base") {
    check_fault("fault=wrong-base",
                {{mapped(0, length, base + length)}, {mapped(0, length, base)}});
  }
  SECTION("shifted") {
    std::vector<std::vector<Run>> both;
    for (const std::uint64_t start : {base, base + length}) {
      both.push_back({mapped(0, length - page, start + page), mapped(length - page, page, start)});
    }
    check_fault("fault=shifted", both);
  }
  SECTION("hole") {
    std::vector<std::vector<Run>> both;
    for (const std::uint64_t start : {base, base + length}) {
      both.push_back({mapped(0, page, start),
                      {page, page, {}, "-"},
                      mapped(2 * page, length - 2 * page, start + 2 * page)});
    }
    check_fault("fault=hole", both);
  }
  SECTION("swapped-pages") {
    std::vector<std::vector<Run>> both;
    for (const std::uint64_t start : {base, base + length}) {
      both.push_back({mapped(0, page, start), mapped(page, page, start + 2 * page),
                      mapped(2 * page, page, start + page),
                      mapped(3 * page, length - 3 * page, start + 3 * page)});
    }
    check_fault("fault=swapped-pages", both);
  }
  SECTION("cached") {
    check_fault("fault=cached",
                {{mapped(0, length, base, wb)}, {mapped(0, length, base + length, wb)}});
  }
  SECTION("short") {
    std::vector<std::vector<Run>> both;
    for (const std::uint64_t start : {base, base + length}) {
      both.push_back({mapped(0, length / 2, start), {length / 2, length / 2, {}, "-"}});
    }
    check_fault("fault=short", both);
  }
  SECTION("reversed") {
    std::vector<std::vector<Run>> both(2);
    for (std::uint64_t i = 0; i < pages; ++i) {
      both[0].push_back(mapped(i * page, page, base + length - (i + 1) * page));
      both[1].push_back(mapped(i * page, page, base + 2 * length - (i + 1) * page));
    }
    check_fault("fault=reversed", both);
  }
}

TEST_CASE("mem_mmap: each cache attribute is the one that the kernel has noted") {
  if (!in_guest()) return;
  SECTION("wc") {
    check_fault("cache=wc",
                {{mapped(0, length, base, wc)}, {mapped(0, length, base + length, wc)}});
  }
  SECTION("wb") {
    check_fault("cache=wb",
                {{mapped(0, length, base, wb)}, {mapped(0, length, base + length, wb)}});
  }
  SECTION("a fault in several pieces keeps the attribute") {
    std::vector<std::vector<Run>> both;
    for (const std::uint64_t start : {base, base + length}) {
      both.push_back(
          {mapped(0, length - page, start + page, wc), mapped(length - page, page, start, wc)});
    }
    check_fault("cache=wc fault=shifted", both);
  }
}

TEST_CASE("mem_mmap: nothing beyond the window") {
  if (!in_guest()) return;
  const Module module("mem_mmap");
  for (const std::string& device : devices) {
    INFO(device);
    CHECK(map_error(device, 0, length) == 0);
    CHECK(map_error(device, length - page, page) == 0);
    CHECK(map_error(device, 0, length - page + 1) == 0);  // mmap() rounds up to whole pages
    CHECK(map_error(device, 0, length + page) == ENXIO);
    CHECK(map_error(device, 0, length + 1) == ENXIO);
    CHECK(map_error(device, page, length) == ENXIO);
    CHECK(map_error(device, length, page) == ENXIO);
    CHECK(map_error(device, length - page, 2 * page) == ENXIO);
    CHECK(map_error(device, length * 1000, page) == ENXIO);
    CHECK(map_error(device, 0x7ffffffffffff000, page) != 0);
    CHECK(map_error(device, ~std::uint64_t{0} - 4 * page + 1, page) != 0);
    CHECK(map_error(device, 1, page) == EINVAL);
    CHECK(map_error(device, page + 8, page) == EINVAL);
  }
}

TEST_CASE("mem_mmap: private mappings") {
  if (!in_guest()) return;
  const std::uint64_t salt = stamp_windows();
  SECTION("what is written goes to a copy") {
    const Module module("mem_mmap");
    MappedFile mine(devices[0], 0, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    REQUIRE(mine.error() == 0);
    CHECK(mine.word(page) == PhysicalMemory::stamp_of(base + page, salt));
    mine.set_word(page, 1);
    CHECK(mine.word(page) == 1U);
    const MappedFile shared = map_device(devices[0], 0, 4 * page);
    CHECK(shared.word(page) == PhysicalMemory::stamp_of(base + page, salt));
  }
  SECTION("in several pieces they are refused") {
    const Module module("mem_mmap", "fault=shifted");
    for (const int protection : {PROT_READ, PROT_READ | PROT_WRITE}) {
      CHECK(MappedFile(devices[0], 0, length, protection, MAP_PRIVATE).error() == EINVAL);
    }
    CHECK(MappedFile(devices[0], 0, length - page, PROT_READ, MAP_PRIVATE).error() == 0);
  }
}

TEST_CASE("mem_mmap: a mapping is shared, and written through to the memory") {
  if (!in_guest()) return;
  const std::uint64_t salt = stamp_windows();
  const Module module("mem_mmap");
  MappedFile one = map_device(devices[0], 0, length), other = map_device(devices[0], page, page);
  one.set_word(page, 0x1234567);
  CHECK(other.word(0) == 0x1234567U);
  other.set_word(0, PhysicalMemory::stamp_of(base + page, salt));
  CHECK(one.word(page) == PhysicalMemory::stamp_of(base + page, salt));
  const std::string line = maps_line(one.address());
  INFO(line);
  for (const char* const flag : {" pf ", " io ", " de ", " dd "}) {
    CHECK(line.find(flag) != std::string::npos);
  }
}

TEST_CASE("mem_mmap: parameters") {
  if (!in_guest()) return;
  for (const char* const bad :
       {"base=0x90000800", "len=0", "len=0x800", "len=0x1001", "windows=0", "windows=17",
        "windows=-1", "cache=fast", "cache=", "fault=yes", "fault=", "base=0xfffffffffffff000",
        "len=0x8000000000000000", "base=0xffffffff90000000 len=0x40000000 windows=4",
        "fault=wrong-base windows=1", "fault=cached cache=wb", "fault=hole len=0x2000"}) {
    INFO(bad);
    CHECK(load_error(bad) == EINVAL);
    CHECK(claimed().empty());
    CHECK(access("/dev/mem_mmap1", F_OK) != 0);
  }
  CHECK(load_error("base=nonsense") == EINVAL);

  SECTION("another place, size and number") {
    const std::uint64_t salt = stamp_windows();
    const Module module("mem_mmap", "base=0x92000000 len=0x8000 windows=3");
    for (int i = 0; i < 3; ++i) {
      const std::uint64_t start = 0x92000000 + static_cast<std::uint64_t>(i) * 0x8000;
      CHECK(truth(i + 1) == std::vector<Run>{mapped(0, 0x8000, start)});
      const std::string device = "/dev/mem_mmap" + std::to_string(i + 1);
      const MappedFile mapping = map_device(device, 0x1000, 0x7000);
      REQUIRE(mapping.error() == 0);
      CHECK(mapping.word(0) == PhysicalMemory::stamp_of(start + 0x1000, salt));
      CHECK(map_error(device, 0x1000, 0x8000) == ENXIO);
    }
    CHECK(access("/dev/mem_mmap4", F_OK) != 0);
    CHECK(claimed() ==
          "92000000-92007fff : mem_mmap1\n92008000-9200ffff : mem_mmap2\n"
          "92010000-92017fff : mem_mmap3\n");
  }
  SECTION("sixteen windows") {
    const Module module("mem_mmap", "windows=16 len=0x1000");
    CHECK(truth(16) == std::vector<Run>{mapped(0, page, base + 15 * page)});
  }
}

TEST_CASE("mem_mmap: RAM in use is refused unless told otherwise") {
  if (!in_guest()) return;
  const std::uint64_t start = ram(0x10000);
  std::ostringstream place;
  place << "base=0x" << std::hex << start << " len=0x8000";
  INFO(place.str());
  CHECK(load_error(place.str()) == EBUSY);
  CHECK(claimed().empty());

#ifdef __x86_64__
  // The last reserved page and the first one behind it.
  CHECK(load_error("base=0x97fff000 len=0x2000 windows=1 allow_ram=1") == EINVAL);
#else
  // The last page of RAM and nothing: to region_intersects() that is RAM.
  CHECK(load_error("base=0x8ffff000 len=0x2000 windows=1") == EBUSY);
#endif

  const Module module("mem_mmap", place.str() + " allow_ram=1");
#ifdef __x86_64__
  CHECK(truth(1) == std::vector<Run>{mapped(0, 0x8000, start, "wb")});
#else
  CHECK(truth(1) == std::vector<Run>{mapped(0, 0x8000, start, uc)});
#endif
  RemapRecord record;
  const MappedFile mapping(devices[0], 0, 0x8000, PROT_READ, MAP_SHARED);
  REQUIRE(mapping.error() == 0);
  CHECK(record.take() == std::vector<Run>{{0, 0x8000, start, ""}});
  CHECK(mapping.word(0));
}

TEST_CASE("mem_mmap: the nodes are root's, and the module goes when the last mapping has gone") {
  if (!in_guest()) return;
  REQUIRE(Module::load("mem_mmap") == 0);
  for (const std::string& device : devices) {
    struct stat node{};
    REQUIRE(stat(device.c_str(), &node) == 0);
    CHECK(S_ISCHR(node.st_mode));
    CHECK((node.st_mode & 07777) == 0600);
    CHECK(major(node.st_rdev) == 10U);
    RunOptions nobody;
    nobody.uid = 65534;
    CHECK(run({"/bin/busybox", "head", "-c", "1", device}, nobody).err.find("ermission denied") !=
          std::string::npos);
  }
  CHECK(claimed() == "90000000-93ffffff : mem_mmap1\n94000000-97ffffff : mem_mmap2\n");
  {
    const MappedFile mapping = map_device(devices[1], 0, page);
    CHECK(Module::unload("mem_mmap") == EAGAIN);
  }
  {
    const int fd = open(devices[0].c_str(), O_RDWR | O_CLOEXEC);
    CHECK(Module::unload("mem_mmap") == EAGAIN);
    close(fd);
  }
  CHECK(Module::unload("mem_mmap") == 0);
  CHECK(claimed().empty());
  CHECK(access(devices[0].c_str(), F_OK) != 0);
  CHECK(access("/sys/kernel/debug/mem_mmap", F_OK) != 0);
#ifdef __x86_64__
  CHECK(reserved_caches(base).empty());
#endif
  for (int i = 0; i < 20; ++i) CHECK(load_error("") == 0);
}

TEST_CASE("mem_mmap: pagemap sees nothing of a window, and vtop says that") {
  if (!in_guest()) return;
  const Module module("mem_mmap");
  for (const std::string& device : devices) {
    INFO(device);
    const MappedFile mapping = map_device(device, 0, length);
    REQUIRE(mapping.error() == 0);
    std::ostringstream middle, all;
    middle << "0x" << std::hex << mapping.address() + 5 * page + 8;
    all << "0x" << std::hex << mapping.address() << "+64M";
    // What cannot be seen is no answer for an address; of a range the states are the answer.
    for (const auto& [question, status] : {std::pair{middle.str(), 2}, std::pair{all.str(), 0}}) {
      RunOptions options;
      options.directory = "/";
      const RunResult result = run_tool(
          "vtop", {"-J", "--backend", "pagemap", std::to_string(getpid()), question}, options);
      INFO(question << "\n" << result.out << result.err);
      CHECK(result.status == status);
      const auto document = nlohmann::json::parse(result.out);
      for (const auto& group : document["results"]) {
        CHECK(group["vma"]["path"] == device);
        for (const auto& extent : group["extents"]) {
          CHECK(extent["state"] == "unseen");
          CHECK(extent["pa"].is_null());
          CHECK(extent["pfn"].is_null());
        }
      }
    }
  }
}
