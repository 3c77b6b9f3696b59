// SPDX-License-Identifier: MIT
#include "vm_flags.hpp"

#include "support/catch.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t rd = 1, wr = 2, mr = 0x10, mw = 0x20, me = 0x40, ac = 0x100000,
                        sd = 0x8000000, mg = 0x80000000;
constexpr std::uint64_t sealed = std::uint64_t{1} << 42, highest = std::uint64_t{1} << 63;

/// What one learns in a process with the given lines of smaps.
Result<VmFlagNames> learn(const std::string& first, const std::string& second,
                          std::span<const VmaWord> words) {
  SystemModel system = one_process(
      "10000-20000 rw-p 00000000 00:00 0 \n"
      "20000-30000 r--p 00000000 00:00 0 [vdso]\n");
  system.processes[0].files["smaps"] =
      "10000-20000 rw-p 00000000 00:00 0 \nVmFlags: " + first +
      " \n20000-30000 r--p 00000000 00:00 0 [vdso]\nVmFlags: " + second + " \n";
  const Recorded tree(system);
  const Process process = tree.process(1);
  return VmFlagNames::learn(process, words);
}

constexpr VaRange heap{{0x10000}, {0x20000}}, vdso{{0x20000}, {0x30000}};

}  // namespace

TEST_CASE("vm_flags: names of bits, in the kernel's order; what is not certain has none") {
  const VmaWord words[] = {{heap, rd | wr | mr | mw | me | ac | sd}, {vdso, rd | mr | sealed}};
  const auto names = learn("rd wr mr mw me ac sd", "rd mr sl", words);
  REQUIRE(names);
  const auto text = [&](std::uint64_t word) {
    const auto flags = names->of(word);
    return flags ? std::string(flags->text()) : "unknown";
  };
  CHECK(text(rd) == "rd");
  CHECK(text(mg | wr | rd) == "rd wr mg");
  CHECK(text(0).empty());
  CHECK(text(0xffffffff) ==
        "rd wr ex sh mr mw me ms gd um pf gu uw lo io sr rr dc de lf ac nr ht sf ar wf dd sd mm hg "
        "nh "
        "mg");
  CHECK(text(highest) == "unknown");
  // As it was seen, and not one bit else.
  CHECK(text(rd | mr | sealed) == "rd mr sl");
  CHECK(text(rd | sealed) == "unknown");
}

TEST_CASE("vm_flags: a kernel that names a bit otherwise, and smaps that say nothing") {
  const VmaWord words[] = {{heap, rd | wr}, {vdso, rd}};
  CHECK(learn("rd wr", "rd", words));
  CHECK_FALSE(learn("rd ww", "rd", words));
  CHECK_FALSE(learn("rd wr", "rd ex", words));
  // Flags that changed between the word and the line are not learnt for the word.
  const VmaWord changing[] = {{heap, rd | wr}, {vdso, rd | mr | sealed}};
  CHECK(learn("rd wr", "rd mr sl", changing));
  CHECK_FALSE(learn("rd wr", "rd sl", changing));
  CHECK_FALSE(learn("rd wr", "rd mr rr sl", changing));
  // A VMA that is another one by now says nothing.
  const VmaWord moved[] = {{{{0x10000}, {0x21000}}, rd}, {vdso, rd}};
  CHECK(learn("rd wr", "rd", moved));
  CHECK_FALSE(learn("rd wr", "rd", std::span(moved).first(1)));
  CHECK_FALSE(learn("rd wr", "rd", {}));
}

TEST_CASE("vm_flags: what was told before a VMA became another one is asked for again") {
  SystemModel system = one_process("10000-20000 r--p 00000000 00:00 0 \n");
  const Recorded tree(system);
  const Process process = tree.process(1);
  unsigned asked = 0;
  bool changed = false;
  constexpr VaRange other{{0x20000}, {0x30000}};
  VmaInspector inspector(process, [&](VirtAddr from) -> Result<std::vector<FlaggedVma>> {
    ++asked;
    std::vector<FlaggedVma> told{{heap, VmFlags{changed ? "rd" : "rd wr"}}, {other, VmFlags{"rd"}}};
    if (from >= heap.end) told.erase(told.begin());
    return told;
  });
  Vma vma{.range = heap, .readable = true, .writable = true};
  const auto flags = [&] {
    return std::string(inspector.flags(vma).value_or(VmFlags{"?"}).text());
  };
  CHECK(flags() == "rd wr");
  CHECK(flags() == "rd wr");
  CHECK(asked == 1);
  changed = true;
  vma.writable = false;
  CHECK(flags() == "rd");
  CHECK(flags() == "rd");
  CHECK(asked == 2);
  // Of another VMA than this nothing is believed; smaps, which is not there, would be next.
  vma = {.range = {{0x20000}, {0x28000}}, .readable = true};
  CHECK(flags() == "?");
  CHECK(asked == 3);
}
