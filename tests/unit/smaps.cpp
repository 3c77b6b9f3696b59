// SPDX-License-Identifier: MIT
#include <string>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "vmem/maps.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

SystemModel with_smaps(const std::string& maps, const std::string& smaps) {
  SystemModel system = one_process(maps);
  system.processes[0].files["smaps"] = smaps;
  return system;
}

const std::string maps =
    "10000-20000 rw-p 00000000 00:00 0 \n"
    "20000-30000 r--p 00000000 00:00 0 [vvar]\n"
    "40000-50000 rw-s 00000000 00:0f 7 /Rss: (deleted)\n";

/// With all the other fields that a kernel prints, and a name that looks like one.
const std::string smaps =
    "10000-20000 rw-p 00000000 00:00 0 \n"
    "Size:                 64 kB\nKernelPageSize:        4 kB\nMMUPageSize:           4 kB\nRss:   "
    "                8 kB\n"
    "THPeligible:           0\nProtectionKey:         0\nVmFlags: rd wr mr mw me ac sd zz ?? \n"
    "20000-30000 r--p 00000000 00:00 0 [vvar]\n"
    "Size:                 64 kB\nKernelPageSize:        4 kB\nVmFlags: rd mr pf io de dd \n"
    "40000-50000 rw-s 00000000 00:0f 7 /Rss: (deleted)\n"
    "Size:                 64 kB\nKernelPageSize:     2048 kB\nVmFlags: rd wr sh mr mw me ms de ht "
    "sd \n";

}  // namespace

TEST_CASE("VmFlags keeps every code, known or not") {
  const VmFlags flags("rd wr mr zz ??");
  for (const char* const code : {"rd", "wr", "mr", "zz", "??"}) CHECK(flags.has(code));
  for (const char* const code : {"ex", "r", "d w", "rd wr", "", " ", "z", "rdwr", "rd "}) {
    CAPTURE(code);
    CHECK_FALSE(flags.has(code));
  }
  CHECK(flags.text() == "rd wr mr zz ??");
  CHECK_FALSE(VmFlags("").has("rd"));
  CHECK(VmFlags("").text().empty());
}

TEST_CASE("an entry of smaps is found by any address in it") {
  const Recorded tree(with_smaps(maps, smaps));
  const Process process = tree.process(1);
  SmapsReader reader(process);
  for (const std::uint64_t address : {0x10000U, 0x1ffffU}) {
    const auto entry = reader.find({address});
    REQUIRE(entry);
    REQUIRE(*entry);
    CHECK((*entry)->range == VaRange{{0x10000}, {0x20000}});
    REQUIRE((*entry)->flags);
    CHECK((*entry)->flags->text() == "rd wr mr mw me ac sd zz ??");
    CHECK((*entry)->kernel_page_size == PageSize{4096});
  }
  const auto huge = reader.find({0x4ffff});
  REQUIRE(huge);
  REQUIRE(*huge);
  CHECK((*huge)->kernel_page_size == PageSize{2 << 20});
  CHECK((*huge)->flags->has("ht"));
}

TEST_CASE("gaps, both ends, and questions in any order") {
  const Recorded tree(with_smaps(maps, smaps));
  const Process process = tree.process(1);
  SmapsReader reader(process);
  const auto found = [&](std::uint64_t address) {
    const auto entry = reader.find({address});
    REQUIRE(entry);
    return *entry ? (*entry)->range.start.value : 0;
  };
  CHECK(found(0x0) == 0);
  CHECK(found(0xffff) == 0);
  CHECK(found(0x30000) == 0);
  CHECK(found(0x2ffff) == 0x20000);
  CHECK(found(0x40000) == 0x40000);
  CHECK(found(0x10000) == 0x10000);
  CHECK(found(0x50000) == 0);
  CHECK(found(~std::uint64_t{0}) == 0);
  CHECK(found(0x40000) == 0x40000);
  CHECK(found(0x20000) == 0x20000);
  CHECK(found(0x20000) == 0x20000);
}

TEST_CASE("a kernel without VmFlags, or without KernelPageSize") {
  const Recorded tree(with_smaps(maps,
                                 "10000-20000 rw-p 00000000 00:00 0 \nRss: 8 kB\n20000-30000 r--p "
                                 "00000000 00:00 0 [vvar]\nVmFlags:\n"));
  const Process process = tree.process(1);
  SmapsReader reader(process);
  auto entry = reader.find({0x10000});
  REQUIRE(entry);
  REQUIRE(*entry);
  CHECK_FALSE((*entry)->flags);
  CHECK_FALSE((*entry)->kernel_page_size);
  entry = reader.find({0x20000});
  REQUIRE(entry);
  REQUIRE(*entry);
  // qemu-user prints such a line: no VMA is without flags, so nothing is told.
  CHECK_FALSE((*entry)->flags);
}

TEST_CASE("a page size that cannot be is not known") {
  for (const char* const size :
       {"0", "3", "18446744073709551615", "99999999999999999999", "-4", "junk", ""}) {
    CAPTURE(size);
    const Recorded tree(with_smaps(
        maps,
        std::string("10000-20000 rw-p 00000000 00:00 0 \nKernelPageSize: ") + size + " kB\n"));
    const Process process = tree.process(1);
    SmapsReader reader(process);
    const auto entry = reader.find({0x10000});
    if (entry && *entry) CHECK_FALSE((*entry)->kernel_page_size);
  }
}

TEST_CASE("smaps that is missing or malformed is an error, not an empty answer") {
  SECTION("missing") {
    const Recorded tree(one_process(maps));
    const Process process = tree.process(1);
    SmapsReader reader(process);
    const auto entry = reader.find({0x10000});
    REQUIRE_FALSE(entry);
    CHECK(entry.error().code == Errc::not_found);
  }
  SECTION("junk") {
    const Recorded tree(with_smaps(maps, "10000-20000 rw-p 00000000 00:00 0 \nRss: 1 kB\njunk\n"));
    const Process process = tree.process(1);
    SmapsReader reader(process);
    const auto entry = reader.find({0x40000});
    REQUIRE(entry);
    CHECK_FALSE(*entry);
    REQUIRE(reader.odd_line() != nullptr);
    CHECK(reader.odd_line()->code == Errc::malformed);
    CHECK(to_string(*reader.odd_line()).ends_with("smaps: line 3: neither a mapping nor a field"));
  }
}

TEST_CASE("one odd line of smaps takes its own entry with it, and no other") {
  const std::string first = "10000-20000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd wr mr\n";
  const std::string last = "50000-60000 rw-p 00000000 00:00 0 \nRss: 12 kB\nVmFlags: rd wr zz\n";
  const auto rss = [](SmapsReader& reader, std::uint64_t at) -> std::optional<std::uint64_t> {
    const auto entry = reader.find({at});
    REQUIRE(entry);
    return *entry ? (*entry)->rss : std::nullopt;
  };
  for (const char* const middle :
       {"30000-30000 rw-p 00000000 00:00 0 \nRss: 8 kB\nVmFlags: io\n", "junk\nRss: 8 kB\n",
        // Half of a sum would be told as all of it.
        "30000-40000 rw-p 00000000 00:00 0 \nPrivate_Clean: 4 kB\nPrivate_Dirty: x kB\n",
        "30000-40000 rw-p 00000000 00:00 0 \nPrivate_Clean: 4 kB\njunk\nPrivate_Dirty: 4 kB\n",
        "30000-40000 rw-p 00000000 00:00 0 \nRss: 8 kB\nJUNK\nVmFlags: rd\n",
        // The header of the entry that follows is lost: these are that one's fields.
        "30000-40000 rw-p 00000000 00:00 0 \nRss: 4 kB\nX40000-50000 rw-p 0 00:00 0 \nSwap: 4 kB\n",
        "30000-40000 rw-p 00000000 00:00 0 \nRss: 4 kB\nRss: 8 kB\nVmFlags: rd\n",
        "30000-40000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd\nSize: 8 kB\n",
        "30000-40000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd 40000-50000 rw-p\n"}) {
    CAPTURE(middle);
    const Recorded tree(with_smaps(maps, first + middle + last));
    const Process process = tree.process(1);
    SmapsReader reader(process);
    CHECK(rss(reader, 0x10000) == 4096);
    CHECK_FALSE(rss(reader, 0x30000));
    CHECK(rss(reader, 0x50000) == 12288);
    CHECK(reader.odd_line() != nullptr);
  }
}

TEST_CASE("a sum of smaps of which a part is missing is none") {
  const std::string header = "10000-20000 rw-p 00000000 00:00 0 \n";
  const auto uss = [&](const std::string& fields) {
    const Recorded tree(with_smaps(maps, header + fields));
    const Process process = tree.process(1);
    SmapsReader reader(process);
    const auto entry = reader.find({0x10000});
    REQUIRE(entry);
    REQUIRE(*entry);
    return (*entry)->uss;
  };
  CHECK(uss("Private_Clean: 4 kB\nPrivate_Dirty: 8 kB\nVmFlags: rd\n") == 12288);
  CHECK_FALSE(uss("Private_Clean: 4 kB\nVmFlags: rd\n"));
  CHECK_FALSE(uss("Private_Clean: 4 kB\n20000-30000 rw-p 00000000 00:00 0 \nVmFlags: rd\n"));
  CHECK_FALSE(uss("Private_Clean: 4 kB\n"));
}

TEST_CASE("a mount that mountinfo does not show is no reason to take a file for an ordinary one") {
  const std::string memory = "10000-20000 rw-s 00000000 00:4d 7                  /dev/mem\n";
  const std::string huge = "200000-400000 rw-s 00000000 00:4e 8                  /mnt/huge/x\n";
  SystemModel system = with_smaps(
      memory + huge, memory + "KernelPageSize: 4 kB\nVmFlags: rd wr sh mr mw me ms pf io dd\n" +
                         huge + "KernelPageSize: 2048 kB\nVmFlags: rd wr sh mr mw me ms de ht\n");
  system.processes[0].files["mountinfo"] = "20 1 254:0 / / rw - ext4 /dev/root rw\n";
  const Recorded tree(system);
  const Process process = tree.process(1);
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  VmaInspector inspector(process);
  CHECK(inspector.classify(vmas->at(0)).vma_class == VmaClass::device);
  CHECK(inspector.classify(vmas->at(1)) == Classification{VmaClass::hugepage, VmaKind::hugetlb});
  CHECK_FALSE(inspector.filesystem(vmas->at(0)));
}

TEST_CASE("the inspector says which odd line leaves an answer open, where one does") {
  const std::string file = "10000-20000 rw-s 00000000 00:2a 7                  /mnt/x\n";
  SystemModel system = one_process(file);
  system.processes[0].files["mountinfo"] =
      "30 1 0:43 / /other rw - tmpfs none rw\n31 1 0:42 / /mnt\n";
  const Recorded tree(system);
  const Process process = tree.process(1);
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  VmaInspector inspector(process);
  Vma known = vmas->at(0);
  known.dev_minor = 0x2b;
  CHECK(inspector.filesystem(known) == "tmpfs");
  CHECK(inspector.missing() == nullptr);
  // Not "", which is the kernel's own mount.
  CHECK_FALSE(inspector.filesystem(vmas->at(0)));
  REQUIRE(inspector.missing() != nullptr);
  CHECK(to_string(*inspector.missing()).ends_with("/proc/1/mountinfo: line 2: not a mount"));
}

TEST_CASE("the inspector asks smaps and tells blindness") {
  const Recorded tree(with_smaps(maps, smaps));
  const Process process = tree.process(1);
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  VmaInspector inspector(process);
  CHECK(inspector.flags(vmas->at(0))->has("zz"));
  CHECK(inspector.blindness(vmas->at(0)) == VmaInspector::Blindness::sighted);
  CHECK(inspector.blindness(vmas->at(1)) == VmaInspector::Blindness::pfnmap);
  CHECK(inspector.hugetlb_page_size(vmas->at(2)) == PageSize{2 << 20});
  CHECK_FALSE(inspector.hugetlb_page_size(vmas->at(0)));
  CHECK(inspector.classify(vmas->at(2)) == Classification{VmaClass::hugepage, VmaKind::hugetlb});
}
