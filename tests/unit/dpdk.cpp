// SPDX-License-Identifier: MIT
// The files of a DPDK primary: right ones, and every way in which they can be wrong.
#include <algorithm>

#include "support/catch.hpp"
#include "support/dpdk_files.hpp"
#include "support/temp_dir.hpp"
#include "vmem/registration.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

using Files = std::map<std::string, std::string>;

Result<DpdkMemory> read(const Files& files) {
  const TempDir directory;
  for (const auto& [name, content] : files) write_file(directory / name, content);
  const auto tree = SysRoot::open(directory.string());
  REQUIRE(tree);
  return read_dpdk(*tree, "");
}

DpdkMemory good(const DpdkFiles& files) {
  auto memory = read(files.files());
  if (!memory) FAIL(to_string(memory.error()));
  return std::move(*memory);
}

/// Why files are refused; fails the test if they are not.
Error refused(const Files& files) {
  const auto memory = read(files);
  REQUIRE_FALSE(memory);
  CHECK_FALSE(to_string(memory.error()).empty());
  return memory.error();
}

void set32(std::string& text, std::size_t at, std::uint32_t value) {
  std::memcpy(text.data() + at, &value, sizeof value);
}
void set64(std::string& text, std::size_t at, std::uint64_t value) {
  std::memcpy(text.data() + at, &value, sizeof value);
}

const std::string array = "fbarray_memseg-2048k-0-0";

}  // namespace

TEST_CASE("dpdk 22.11: lists, segments and zones as they were written") {
  DpdkFiles files = dpdk_files(3, 0x40000000, 0x200000);
  files.lists[0].segments[2].index = 100;
  files.lists[0].segments[2].address = files.lists[0].base + 100ULL * (2 << 20);
  files.lists.push_back({.name = "memseg-1048576k-1-0",
                         .base = 0x4000000000,
                         .page_size = 1 << 30,
                         .bytes = 16ULL << 30,
                         .socket = 1,
                         .segments = {{.index = 2,
                                       .iova = 0x180000000,
                                       .address = 0x4080000000,
                                       .bytes = 1 << 30,
                                       .page_size = 1 << 30,
                                       .socket = 1}}});
  files.zones.push_back({.name = "rte_eth_dev_data",
                         .iova = 0x40001000,
                         .address = 0x100201000,
                         .bytes = 0x35840,
                         .socket = 0,
                         .flags = 0x100000});
  files.dma_mask_bits = 39;
  const DpdkMemory memory = good(files);
  CHECK(memory.version == "22.11.11");
  CHECK(memory.config_address == 0x100000000);
  CHECK(memory.dma_mask_bits == 39);
  CHECK(memory.mode == IovaRule::physical);
  REQUIRE(memory.lists.size() == 2);
  CHECK(memory.lists[1].socket == 1);
  CHECK(memory.lists[1].page_size == 1 << 30);
  REQUIRE(memory.segments.size() == 4);
  CHECK(memory.segments[1].iova == 0x40200000);
  CHECK(memory.segments[2].index == 100);
  CHECK(memory.segments[3].list == 1);
  CHECK(memory.segments[3].range.bytes() == 1 << 30);
  REQUIRE(memory.memzones.size() == 1);
  CHECK(memory.memzones[0].name == "rte_eth_dev_data");
  CHECK(memory.memzones[0].range.bytes() == 0x35840);
  CHECK(memory.memzones[0].iova_contiguous());

  const auto all = registrations_of(memory);
  REQUIRE(all.size() == 4);
  CHECK(all[3].page_size == 1 << 30);
  CHECK(all[3].node == 1U);
  CHECK(all[3].iova_rule == IovaRule::physical);
  CHECK_FALSE(all[3].through_kernel);
  CHECK(all[2].key == "memseg-2048k-0-0/100");
}

TEST_CASE("dpdk: the mode is VA where most IOVAs are the addresses") {
  DpdkFiles files = dpdk_files(8, 0x100200000, 0x200000);
  CHECK(good(files).mode == IovaRule::virt);
  files.lists[0].segments[3].iova += 0x200000;  // one that has gone wrong changes no mode
  CHECK(good(files).mode == IovaRule::virt);
  CHECK(good(dpdk_files(8, 0x40000000, 0x200000)).mode == IovaRule::physical);
}

TEST_CASE("dpdk: memory from outside is told apart, without an IOVA if it has none") {
  DpdkFiles files = dpdk_files(1, 0x40000000, 0);
  files.lists.push_back({.name = "extmem_0",
                         .base = 0x7f0000000000,
                         .page_size = 4096,
                         .bytes = 8192,
                         .socket = 256,
                         .external = 1,
                         .segments = {{.index = 0,
                                       .iova = ~std::uint64_t{0},
                                       .address = 0x7f0000000000,
                                       .bytes = 4096,
                                       .page_size = 4096,
                                       .socket = 256}}});
  const DpdkMemory memory = good(files);
  CHECK(memory.mode == IovaRule::physical);
  const auto all = registrations_of(memory);
  REQUIRE(all.size() == 2);
  CHECK_FALSE(all[1].iova_known);
  CHECK(all[1].iova_rule == IovaRule::none);
  CHECK_FALSE(all[1].node);
}

TEST_CASE("dpdk: other magic, other versions, other programs' files are refused by name") {
  const DpdkFiles files = dpdk_files(2, 0x40000000, 0x200000);
  Files foreign = files.files();
  set32(foreign["config"], 0, 1);
  CHECK(refused(foreign).code == Errc::malformed);
  foreign["config"] = "ELF";
  CHECK(refused(foreign).code == Errc::malformed);
  foreign["config"].clear();
  CHECK(refused(foreign).code == Errc::malformed);
  foreign.erase("config");
  CHECK(refused(foreign).code == Errc::not_found);
  for (const std::uint32_t version : {0x130b0063U, 0x14080000U, 0x17030000U, 0x63630063U, 0U}) {
    DpdkFiles other = files;
    other.version = version;
    const Error error = refused(other.files());
    CHECK(error.code == Errc::not_supported);
    CHECK(error.path.find("config") != std::string::npos);
  }
  DpdkFiles starting = files;
  starting.magic = 0;
  CHECK(refused(starting.files()).hint != nullptr);
}

TEST_CASE("dpdk: truncated files, at every length that cuts something off") {
  const Files whole = dpdk_files(2, 0x40000000, 0x200000).files();
  for (const auto& [name, content] : whole) {
    for (const std::size_t left : {std::size_t{0}, std::size_t{7}, std::size_t{100},
                                   content.size() / 2, content.size() - 1}) {
      Files files = whole;
      files[name].resize(left);
      INFO(name << " " << left);
      CHECK(refused(files).code == Errc::malformed);
    }
    if (name == "config") continue;
    Files files = whole;
    files.erase(name);
    INFO(name);
    CHECK(refused(files).code == Errc::not_found);
  }
}

TEST_CASE("dpdk: files that lie") {
  const Files whole = dpdk_files(2, 0x40000000, 0x200000).files();
  const auto with = [&](const std::string& name, const auto& change) {
    Files files = whole;
    change(files[name]);
    return refused(files).code;
  };
  const std::size_t list = 136, fbarray = list + 40;
  // A length beyond the file, or so large that sums wrap.
  CHECK(with("config", [&](std::string& c) { set32(c, fbarray + 68, 0xffffffff); }) ==
        Errc::malformed);
  CHECK(with("config", [&](std::string& c) { set32(c, fbarray + 72, 0); }) == Errc::malformed);
  CHECK(with("config", [&](std::string& c) { set64(c, list + 24, ~std::uint64_t{0}); }) ==
        Errc::malformed);
  CHECK(with("config", [&](std::string& c) { set64(c, list + 8, 3000); }) == Errc::malformed);
  // A name that leads elsewhere, or has no end.
  CHECK(with("config", [&](std::string& c) { std::memcpy(c.data() + fbarray, "../../etc", 10); }) ==
        Errc::malformed);
  CHECK(with("config", [&](std::string& c) { std::memset(c.data() + fbarray, 'a', 64); }) ==
        Errc::malformed);
  CHECK(with(array, [&](std::string& a) { set32(a, 512 * 48, 7); }) == Errc::malformed);
  CHECK(with(array, [&](std::string& a) { set64(a, 8, 0x5000); }) == Errc::malformed);
  CHECK(with(array, [&](std::string& a) { set64(a, 16, ~std::uint64_t{0}); }) == Errc::malformed);
  CHECK(with(array, [&](std::string& a) { set64(a, 24, 0); }) == Errc::malformed);
  CHECK(with(array, [&](std::string& a) { set64(a, 24, 0x1000); }) == Errc::malformed);
  CHECK(with("fbarray_memzone", [&](std::string& a) { a[2560 * 72 + 8] = 1; }) == Errc::malformed);
}

TEST_CASE("dpdk: a bit in use beyond the length is refused") {
  DpdkFiles files = dpdk_files(2, 0x40000000, 0x200000);
  files.lists[0].bytes = 10 * (2 << 20);
  Files all = files.files();
  CHECK(read(all));
  all[array][10 * 48 + 8 + 1] = 4;  // bit 10
  CHECK(refused(all).code == Errc::malformed);
}

TEST_CASE("dpdk: files that would take all memory are refused in a line") {
  // A mark costs a bit of the file, and an element in use some hundred bytes here.
  DpdkFiles files = dpdk_files(0, 0, 0);
  DpdkFiles::List& list = files.lists[0];
  list.page_size = 4096;
  list.bytes = ((1ULL << 20) + 64) * 4096;
  Files all = files.files();
  std::string& marked = all[array];
  const std::size_t mask = std::size_t{list.length()} * 48 + 8;
  std::fill(marked.begin() + static_cast<std::ptrdiff_t>(mask), marked.end(), '\xff');
  const Error many = refused(all);
  CHECK(many.code == Errc::malformed);
  CHECK(to_string(many).find("more than 1048576 elements") != std::string::npos);
  // As many as that are read: all of these are marks without an address.
  std::fill(marked.end() - 8, marked.end(), '\0');
  CHECK(read(all));
  // An array may claim any length, and be a file without blocks.
  Files sparse = dpdk_files(1, 0, 0x200000).files();
  set32(sparse["config"], 136 + 40 + 68, (1 << 24) + 1);
  CHECK(to_string(refused(sparse)).find("more than 16777216 elements") != std::string::npos);
}

TEST_CASE("dpdk: links and FIFOs in a copy are refused") {
  const TempDir directory;
  for (const auto& [name, content] : dpdk_files(1, 0x40000000, 0).files())
    write_file(directory / name, content);
  std::filesystem::remove(directory / array);
  std::filesystem::create_symlink("/proc/self/mem", directory / array);
  const auto tree = SysRoot::open(directory.string());
  REQUIRE(tree);
  CHECK_FALSE(read_dpdk(*tree, ""));
}

TEST_CASE("dpdk: every version whose layout is known, and no other") {
  DpdkFiles files = dpdk_files(3, 0x40000000, 0x200000);
  files.zones.push_back({.name = "zone", .iova = 0x40000000, .address = 0x100200000, .bytes = 64});
  for (const auto& [version, name] :
       {std::pair{0x140b0a63U, "20.11.10"}, {0x160b0b63U, "22.11.11"}}) {
    files.version = version;
    const DpdkMemory memory = good(files);
    CHECK(memory.version == name);
    CHECK(memory.segments.size() == 3);
    CHECK(memory.memzones.size() == 1);
    CHECK(memory.config_address == 0x100000000);
  }
  for (const std::uint32_t version : {0x140a0000U, 0x15050000U, 0x17030000U, 0x180b0000U}) {
    files.version = version;
    CHECK(refused(files.files()).code == Errc::not_supported);
  }
}

TEST_CASE("dpdk: all of a memzone is asked about; its IOVA holds for its first page or for all") {
  DpdkFiles files = dpdk_files(4, 0x40000000, 0x200000);
  files.zones.push_back(
      {.name = "pool", .iova = 0x40100000, .address = 0x100300000, .bytes = 4 << 20});
  files.zones.push_back({.name = "ring",
                         .iova = 0x40100000,
                         .address = 0x100300000,
                         .bytes = 4 << 20,
                         .flags = 0x100000});
  const auto zones = memzones_of(good(files));
  REQUIRE(zones.size() == 2);
  CHECK(zones[0].range.bytes() == 4 << 20);
  CHECK(zones[0].iova_bytes == 1 << 20);
  CHECK(zones[1].range.bytes() == 4 << 20);
  CHECK(zones[1].iova_bytes == 0);
}

TEST_CASE("dpdk: a memzone outside of all lists is refused, however it comes to be there") {
  const auto zone = [](std::uint64_t address, std::uint64_t bytes) {
    DpdkFiles files = dpdk_files(2, 0x40000000, 0x200000);
    files.zones.push_back({.name = "zone", .iova = 0x40000000, .address = address, .bytes = bytes});
    return files.files();
  };
  CHECK(read(zone(0x100200000, 1 << 30)));
  for (const auto& [address, bytes] :
       {std::pair{0x100200000ULL, 1ULL << 40}, std::pair{0x100200000ULL, (1ULL << 30) + 1},
        std::pair{0x1001ff000ULL, 8192ULL}, std::pair{0x7f0000000000ULL, 4096ULL}}) {
    const Error error = refused(zone(address, bytes));
    CHECK(error.code == Errc::malformed);
    CHECK(error.path.find("fbarray_memzone") != std::string::npos);
  }
}

TEST_CASE("dpdk: two lists of one name, or of the same addresses, are refused") {
  DpdkFiles twice = dpdk_files(2, 0x40000000, 0x200000);
  twice.lists.push_back(twice.lists[0]);
  twice.lists[1].base += 1 << 30;
  twice.lists[1].segments.clear();
  Files files = twice.files();
  files[array] = dpdk_files(2, 0x40000000, 0x200000).files()[array];
  CHECK(to_string(refused(files)).find("of one name") != std::string::npos);
  DpdkFiles overlap = dpdk_files(2, 0x40000000, 0x200000);
  overlap.lists.push_back(overlap.lists[0]);
  overlap.lists[1].name = "memseg-2048k-0-1";
  overlap.lists[1].base += 4 << 20;
  overlap.lists[1].segments.clear();
  CHECK(to_string(refused(overlap.files())).find("overlap") != std::string::npos);
}

TEST_CASE("dpdk: memory without an IOVA is a finding, as bad as the memory is close to a device") {
  const auto none = [](const std::string& name, std::uint32_t external) {
    DpdkFiles files = dpdk_files(2, ~std::uint64_t{0}, 0);
    files.lists[0].name = name;
    files.lists[0].external = external;
    const auto all = registrations_of(good(files));
    REQUIRE(all.size() == 2);
    CHECK_FALSE(all[1].iova_known);
    return all[1].no_iova;
  };
  CHECK(none("memseg-2048k-0-0", 0) == Severity::error);
  CHECK(none("nohugemem", 0) == Severity::warning);
  CHECK(none("memseg-2048k-0-0", 1) == Severity::info);
}
