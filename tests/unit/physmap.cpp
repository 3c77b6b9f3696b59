// SPDX-License-Identifier: MIT
#include "vmem/physmap.hpp"

#include <algorithm>
#include <random>
#include <sstream>

#include "support/catch.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

std::string name_at(const Iomem& iomem, std::uint64_t address) {
  const IomemRegion* const region = iomem.find({address});
  return region == nullptr ? "-" : region->name;
}

SystemModel files(std::map<std::string, std::string> all) {
  SystemModel system;
  system.files = std::move(all);
  return system;
}

}  // namespace

TEST_CASE("iomem: bounds are inclusive in the file and half-open here") {
  const auto iomem = Iomem::parse("00001000-0009fbff : System RAM\n000a0000-000a0000 : one byte\n");
  REQUIRE(iomem);
  REQUIRE(iomem->regions().size() == 2);
  CHECK(iomem->regions()[0].range == PaRange{{0x1000}, {0x9fc00}});
  CHECK(iomem->regions()[1].range.bytes() == 1);
  CHECK(name_at(*iomem, 0x9fbff) == "System RAM");
  CHECK(name_at(*iomem, 0x9fc00) == "-");
  CHECK(name_at(*iomem, 0xa0000) == "one byte");
  CHECK(name_at(*iomem, 0xfff) == "-");
}

TEST_CASE("iomem: the innermost region wins, repeated names and ranges too") {
  const auto iomem = Iomem::parse(
      "00000000-00000fff : Reserved\n"
      "00100000-bfffffff : System RAM\n"
      "  01000000-02209987 : Kernel code\n"
      "  03000000-0327c0ff : Kernel data\n"
      "eec00000-febfffff : Reserved\n"
      "  eec00000-eecfffff : PCI ECAM 0000 [bus 00-00]\n"
      "    eec00000-eecfffff : PCI Bus 0000:00\n"
      "      eec00000-eec00fff : 0000:00:01.0\n"
      "100000000-63fffffff : System RAM\n"
      "4000000000-7fffffffff : PCI Bus 0000:00 : with a colon\n");
  REQUIRE(iomem);
  CHECK(iomem->regions()[7].depth == 3);
  CHECK(name_at(*iomem, 0) == "Reserved");
  CHECK(name_at(*iomem, 0x1000) == "-");
  CHECK(name_at(*iomem, 0x1000000) == "Kernel code");
  CHECK(name_at(*iomem, 0x2209988) == "System RAM");
  CHECK(name_at(*iomem, 0x3000000) == "Kernel data");
  CHECK(name_at(*iomem, 0xeec00000) == "0000:00:01.0");
  CHECK(name_at(*iomem, 0xeec01000) == "PCI Bus 0000:00");
  CHECK(name_at(*iomem, 0xeed00000) == "Reserved");
  CHECK(name_at(*iomem, 0x63fffffff) == "System RAM");
  CHECK(name_at(*iomem, 0x640000000) == "-");
  CHECK(name_at(*iomem, 0x4000000000) == "PCI Bus 0000:00 : with a colon");
}

TEST_CASE("iomem: what is found is what a search of every line finds") {
  // Also as no kernel prints it: children beside their parents, equal and empty regions.
  std::mt19937 random(20261130);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (std::uint64_t line = 0, lines = 1 + below(12); line < lines; ++line) {
      const std::uint64_t start = below(60);
      std::ostringstream out;
      out << std::string(2 * below(4), ' ') << std::hex << start << '-' << start + below(12)
          << " : " << line << '\n';
      text += out.str();
    }
    text += "ffffffffffffffff-ffffffffffffffff : empty\n";
    CAPTURE(text);
    const auto iomem = Iomem::parse(text);
    REQUIRE(iomem);
    for (std::uint64_t at = 0; at < 80; ++at) {
      const IomemRegion* wanted = nullptr;
      std::uint64_t end = UINT64_MAX;
      for (const IomemRegion& region : iomem->regions()) {
        if (region.range.contains({at}) && (wanted == nullptr || region.depth >= wanted->depth))
          wanted = &region;
        for (const PhysAddr border : {region.range.start, region.range.end})
          if (border.value > at) end = std::min(end, border.value);
      }
      CAPTURE(at);
      CHECK(iomem->find({at}) == wanted);
      CHECK(iomem->run_end({at}) == PhysAddr{end});
    }
  }
}

TEST_CASE("iomem: all of the address space, and its last byte") {
  const auto iomem =
      Iomem::parse("00000000-ffffffffffffffff : all\n  ffffffffffff0000-fffffffffffffffe : end\n");
  REQUIRE(iomem);
  CHECK(name_at(*iomem, 0) == "all");
  CHECK(name_at(*iomem, 0xfffffffffffffffd) == "end");
}

TEST_CASE("iomem: zeros are what a reader without privilege is shown, not an empty machine") {
  const auto zeros = Iomem::parse(
      "00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n  00000000-00000000 : Kernel "
      "code\n");
  REQUIRE_FALSE(zeros);
  CHECK(zeros.error().code == Errc::permission);
  const Recorded hidden("hidden");
  const auto read = Iomem::read(hidden.root());
  REQUIRE_FALSE(read);
  CHECK(read.error().code == Errc::permission);
}

TEST_CASE("iomem: missing, empty, malformed") {
  const Recorded none(one_process(""));
  const auto missing = Iomem::read(none.root());
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == Errc::not_found);
  for (const char* const bad :
       {"junk\n", "\n", "1000 : x\n", "1000-2000\n", "1000-2000 x\n", "2000-1000 : backwards\n",
        "-1000 : x\n", "10000000000000000-20000000000000000 : too many digits\n",
        "1000-2000 : ok\nbroken", "1000-2000:x\n", "\t1000-2000 : tab\n"}) {
    CAPTURE(bad);
    const auto iomem = Iomem::parse(bad);
    REQUIRE_FALSE(iomem);
    CHECK(iomem.error().code == Errc::malformed);
  }
  CHECK_FALSE(Iomem::parse(""));
  CHECK(Iomem::parse("1000-2000 : no newline")->regions().size() == 1);
  CHECK(Iomem::parse("1000-2000 : \n")->regions()[0].name.empty());
}

TEST_CASE("NUMA: memory blocks of two nodes") {
  const Recorded tree("arm64-64k");
  const auto numa = NumaMap::read(tree.root());
  REQUIRE(numa);
  CHECK(numa->node({0x80000000}) == 0U);
  CHECK(numa->node({0x1ffffffff}) == 0U);
  CHECK(numa->node({0x200000000}) == 1U);
  CHECK(numa->node({0x3bfffffff}) == 1U);
  CHECK_FALSE(numa->node({0x7fffffff}));
  CHECK_FALSE(numa->node({0x3c0000000}));
  CHECK_FALSE(numa->node({0}));
  CHECK(numa->run_end({0x80000000}) == PhysAddr{0x200000000});
  CHECK(numa->run_end({0}) == PhysAddr{0x80000000});
  CHECK(numa->run_end({0x3c0000000}) > PhysAddr{0x3c0000000});
}

TEST_CASE("NUMA: interleaved blocks") {
  SystemModel system = files({{"sys/devices/system/memory/block_size_bytes", "8000000\n"},
                              {"sys/devices/system/node/online", "0,3\n"}});
  for (unsigned block = 0; block < 12; ++block) {
    system.files["sys/devices/system/node/node" + std::to_string(block % 2 * 3) + "/memory" +
                 std::to_string(block) + "/state"] = "online\n";
  }
  system.files["sys/devices/system/node/node0/memory_failure/total"] = "0\n";
  system.files["sys/devices/system/node/node0/memory99x/state"] = "online\n";
  const Recorded tree(system);
  const auto numa = NumaMap::read(tree.root());
  REQUIRE(numa);
  for (std::uint64_t block = 0; block < 12; ++block) {
    CHECK(numa->node({block << 27}) == block % 2 * 3);
    CHECK(numa->node({(block << 27) + 0x7ffffff}) == block % 2 * 3);
    CHECK(numa->run_end({(block << 27) + 5}) == PhysAddr{(block + 1) << 27});
  }
  CHECK_FALSE(numa->node({12ULL << 27}));
  CHECK_FALSE(numa->node({99ULL << 27}));
}

TEST_CASE("NUMA: one node without blocks owns the RAM, and nothing else") {
  const Recorded tree("x86-64");
  const auto numa = NumaMap::read(tree.root());
  REQUIRE(numa);
  CHECK(numa->node({0x161143000}) == 0U);
  CHECK(numa->node({0x1000}) == 0U);
  CHECK_FALSE(numa->node({0xfec00000}));
  CHECK_FALSE(numa->node({0x4000000000}));
}

TEST_CASE("RAM that a driver has added is RAM, and has its node") {
  const Recorded tree(files({{"proc/iomem",
                              "00001000-7fffffff : System RAM\n"
                              "100000000-1ffffffff : Persistent Memory\n"
                              "  100000000-1ffffffff : dax0.0\n"
                              "    100000000-17fffffff : System RAM (kmem)\n"
                              "    180000000-1ffffffff : System RAMs\n"
                              "200000000-27fffffff : System RAM (virtio_mem)\n"},
                             {"sys/devices/system/node/node0/cpumap", "1\n"}}));
  const auto numa = NumaMap::read(tree.root());
  REQUIRE(numa);
  CHECK(numa->node({0x1000}) == 0U);
  CHECK(numa->node({0x100000000}) == 0U);
  CHECK(numa->node({0x27fffffff}) == 0U);
  CHECK_FALSE(numa->node({0x180000000}));
}

TEST_CASE("NUMA: a system that does not say") {
  const Recorded none(one_process(""));
  const auto numa = NumaMap::read(none.root());
  REQUIRE_FALSE(numa);
  CHECK(numa.error().code == Errc::not_found);
  const Recorded odd(files({{"sys/devices/system/node/node0/memory1/state", "x"},
                            {"sys/devices/system/node/node1/memory2/state", "x"},
                            {"sys/devices/system/memory/block_size_bytes", "0\n"}}));
  const auto unknown = NumaMap::read(odd.root());
  if (unknown) CHECK_FALSE(unknown->node({0x1000}));
}

TEST_CASE("PCI: assigned BARs, 64-bit ones too, by device and line") {
  SystemModel system = load_fixture(fixtures_folder() / "device-window");
  system.files["sys/bus/pci/devices/0000:00:01.0/resource"] =
      "0x0000000080000000 0x0000000080000fff 0x0000000020040200\n"   // IORESOURCE_UNSET
      "0x0000000000000000 0x0000000000000fff 0x0000000000040200\n"   // at 0, assigned
      "0x000000000000c040 0x000000000000c05f 0x0000000000040101\n"
      "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
  const Recorded tree(system);
  const auto bars = read_pci_bars(tree.root());
  REQUIRE(bars);
  REQUIRE(bars->size() == 5);
  CHECK(bars->at(0).device == "0000:00:01.0");
  CHECK(bars->at(0).index == 1);
  CHECK(bars->at(0).range == PaRange{{0}, {0x1000}});
  CHECK_FALSE(bars->at(1).is_memory());
  CHECK(bars->at(2).device == "0000:00:03.0");
  CHECK(bars->at(2).index == 0);
  CHECK(bars->at(2).range == PaRange{{0xfe000000}, {0xfe001000}});
  CHECK(bars->at(2).is_memory());
  CHECK(bars->at(4).index == 4);
  CHECK(bars->at(4).range == PaRange{{0x380000000000}, {0x380080000000}});
  CHECK(bars->at(4).flags == 0x14220c);
}

TEST_CASE("PCI: none, and malformed") {
  CHECK_FALSE(read_pci_bars(Recorded(one_process("")).root()));
  for (const char* const bad :
       {"junk\n", "0x1 0x2\n", "1 2 3\n", "0x1 0x2 0x\n", "0x10000000000000000 0x0 0x0\n"}) {
    CAPTURE(bad);
    const Recorded tree(files({{"sys/bus/pci/devices/0000:00:01.0/resource", bad}}));
    const auto bars = read_pci_bars(tree.root());
    REQUIRE_FALSE(bars);
    CHECK(bars.error().code == Errc::malformed);
  }
  const Recorded backwards(files({{"sys/bus/pci/devices/0000:00:01.0/resource",
                                   "0x2000 0x1000 0x40200\n0x0 0xffffffffffffffff 0x40200\n"}}));
  const auto bars = read_pci_bars(backwards.root());
  if (bars) CHECK(bars->empty());
}

TEST_CASE("UIO: maps in order, with name and offset") {
  SystemModel system = load_fixture(fixtures_folder() / "device-window");
  for (const unsigned device : {10U, 2U}) {
    const std::string map = "sys/class/uio/uio" + std::to_string(device) + "/maps/map0/";
    system.files[map + "addr"] = "0xf0000000\n";
    system.files[map + "size"] = "0x1000\n";
  }
  system.files["sys/class/uio/uio7/name"] = "without maps\n";
  const Recorded tree(system);
  const auto maps = read_uio_maps(tree.root());
  REQUIRE(maps);
  REQUIRE(maps->size() == 4);
  CHECK(maps->at(0).name == "regs");
  CHECK(maps->at(0).range == PaRange{{0xfe000000}, {0xfe001000}});
  CHECK(maps->at(1).index == 1);
  CHECK(maps->at(1).offset == 0x400);
  CHECK(maps->at(1).range == PaRange{{0x123400}, {0x125400}});
  CHECK(maps->at(2).device == 2);
  CHECK(maps->at(3).device == 10);
  CHECK(maps->at(3).name.empty());
}

TEST_CASE("UIO: none, and malformed") {
  CHECK_FALSE(read_uio_maps(Recorded(one_process("")).root()));
  for (const auto& [address, size] : {std::pair{"junk", "0x1000"},
                                      {"0x1000", ""},
                                      {"0xffffffffffffffff", "0x1000"},
                                      {"0x1000", "-1"}}) {
    CAPTURE(address, size);
    const Recorded tree(files({{"sys/class/uio/uio0/maps/map0/addr", address},
                               {"sys/class/uio/uio0/maps/map0/size", size}}));
    CHECK_FALSE(read_uio_maps(tree.root()));
  }
}
