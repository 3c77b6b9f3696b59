// SPDX-License-Identifier: MIT
/// Each state and each error of translate() and walk(), on recorded systems.
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

std::vector<std::string> shown(const std::vector<VmaExtent>& extents,
                               PageSize page_size = PageSize{4096}) {
  std::vector<std::string> lines;
  for (const VmaExtent& e : extents) {
    Extent without_leaf = e.extent;
    without_leaf.leaf_shift = 0;
    lines.push_back(describe(without_leaf, page_size));
  }
  return lines;
}

using Lines = std::vector<std::string>;

Result<void> walk(const Process& process, VaRange range, const WalkOptions& options = {}) {
  auto translator = open_translator(process);
  if (!translator) return std::unexpected(translator.error());
  return (*translator)->walk(range, options, [](const Extent&) { return true; });
}

Result<Translation> one(const Process& process, std::uint64_t address) {
  auto translator = open_translator(process);
  if (!translator) return std::unexpected(translator.error());
  VmaInspector inspector(process);
  return translate(process, **translator, inspector, VirtAddr{address});
}

std::string state_of(const Process& process, std::uint64_t address) {
  const auto found = one(process, address);
  if (!found) return to_string(found.error());
  return std::string(to_string(found->extent.state)) +
         (found->extent.reason == Reason::none
              ? ""
              : " " + std::to_string(static_cast<int>(found->extent.reason)));
}

std::string unseen(Reason reason) { return "unseen " + std::to_string(static_cast<int>(reason)); }

}  // namespace

TEST_CASE("a swapped process: swap, guards, and what only looks like swap") {
  const Recorded tree("swapped");
  const Process process = tree.process(77);
  CHECK(shown(translate_range(process, {{0x560000400000}, {0x560000421000}})) ==
        Lines{"560000400000 +4 swapped type=0 offset=256",
              "560000404000 +2 swapped type=0 offset=512",
              "560000406000 +2 swapped type=1 offset=514",
              "560000408000 +3 resident pfn=5000 exclusive",
              "56000040b000 +1 swapped type=0 offset=0", "56000040c000 +21 absent"});
  CHECK(shown(translate_range(process, {{0x7f5500000000}, {0x7f5500040000}})) ==
        Lines{"7f5500000000 +8 swapped type=1 offset=768 soft-dirty", "7f5500008000 +7 guard",
              "7f550000f000 +1 special reason=5 uffd-wp", "7f5500010000 +1 special reason=6",
              "7f5500011000 +1 special reason=7",
              "7f5500012000 +1 special frame=5000 type=28 reason=8",
              "7f5500013000 +1 special frame=5000 type=28 reason=8",
              "7f5500014000 +1 special frame=501 type=23 reason=8",
              "7f5500015000 +1 swapped type=22 offset=7", "7f5500016000 +42 absent"});
  CHECK(static_cast<int>(Reason::uffd_wp_marker) == 5);
  CHECK(static_cast<int>(Reason::migration_or_device) == 8);
}

TEST_CASE("hidden PFNs are hidden, never frame 0") {
  const Recorded tree("hidden");
  const Process process = tree.process(300);
  const auto all = translate_whole(process);
  CHECK(shown(all) == Lines{"55d0c0a00000 +4 hidden file", "55d0c1f3a000 +2 hidden exclusive",
                            "55d0c1f3c000 +31 absent", "7f2c40000000 +3 hidden exclusive",
                            "7f2c40003000 +2 swapped type=0 offset=0 reason=4",
                            "7f2c40005000 +1 swapped type=0 offset=0 reason=4 soft-dirty",
                            "7f2c40006000 +2 absent", "7f2c40008000 +1 guard",
                            "7f2c40009000 +7 absent", "7ffe80000000 +4 unseen reason=1",
                            "7ffe80004000 +1 hidden file", "7ffe80005000 +1 absent",
                            "7ffe80fde000 +31 absent", "7ffe80ffd000 +2 hidden exclusive"});
  auto translator = open_translator(process);
  REQUIRE(translator);
  CHECK(pfn_access(process, **translator) == PfnAccess::hidden);
}

TEST_CASE("a tree that does not say tells by its first page") {
  for (const bool hidden : {true, false}) {
    const std::uint64_t e = entry::present | (hidden ? 0 : 77);
    const Recorded tree(
        one_process("1000-2000 rw-p 00000000 00:00 0 \n3000-4000 rw-p 00000000 00:00 0 \n",
                    {{0x3000, 1, e, 0}}, ""));
    const Process process = tree.process(1);
    auto translator = open_translator(process);
    REQUIRE(translator);
    CHECK(pfn_access(process, **translator) == (hidden ? PfnAccess::hidden : PfnAccess::full));
    CHECK(state_of(process, 0x3000) == (hidden ? "hidden" : "resident"));
  }
  const Recorded empty(one_process("1000-2000 rw-p 00000000 00:00 0 \n", {}, ""));
  const Process process = empty.process(1);
  auto translator = open_translator(process);
  REQUIRE(translator);
  CHECK(pfn_access(process, **translator) == PfnAccess::unknown);
}

TEST_CASE("frame 0 and swap slot 0 are answers where the reader is proven") {
  const Recorded tree(one_process(
      "1000-5000 rw-p 00000000 00:00 0 \n",
      {{0x1000, 2, entry::present, 1}, {0x3000, 2, entry::swapped(0, 0), entry::swap_step}}));
  CHECK(shown(translate_whole(tree.process(1))) ==
        Lines{"1000 +2 resident pfn=0", "3000 +2 swapped type=0 offset=0"});
}

TEST_CASE("VM_PFNMAP is unseen, whether smaps proves it or cannot be read") {
  const Recorded tree("device-window");
  const Process proven = tree.process(500);
  const Process unproven = tree.process(501);
  const auto all = shown(translate_whole(proven));
  CHECK(all == Lines{"7f1000000000 +16384 unseen reason=1", "7f1010000000 +1 unseen reason=1",
                     "7f1020000000 +2 unseen reason=1", "7f1030000000 +2 resident pfn=90000 file",
                     "7f1030002000 +2 absent", "7f1040000000 +1 resident pfn=1234 exclusive",
                     "7f1040001000 +1 absent", "7f1050000000 +4 unseen reason=1",
                     "ffffffffff600000 +1 unseen reason=3"});
  CHECK(shown(translate_whole(unproven)) ==
        Lines{"7f1000000000 +16384 unseen reason=2", "7f1010000000 +1 unseen reason=2",
              "7f1020000000 +2 unseen reason=2", "7f1030000000 +2 resident pfn=90000 file",
              "7f1030002000 +2 absent", "7f1040000000 +1 resident pfn=1234 exclusive",
              "7f1040001000 +1 absent", "7f1050000000 +4 unseen reason=2",
              "ffffffffff600000 +1 unseen reason=3"});
  CHECK(state_of(proven, 0x7f1000001234) == unseen(Reason::pfnmap));
  CHECK(state_of(unproven, 0x7f1000001234) == unseen(Reason::maybe_pfnmap));
  CHECK(state_of(proven, 0x7f1030002000) == "absent");
  CHECK(state_of(proven, 0x7f1040001000) == "absent");
  CHECK(state_of(unproven, 0x7f1040001000) == "absent");
  CHECK(state_of(proven, 0xffffffffff600000) == unseen(Reason::gate_vma));
  // A part of a window is as blind as the whole.
  CHECK(shown(translate_range(proven, {{0x7f1000001000}, {0x7f1000003000}})) ==
        Lines{"7f1000001000 +2 unseen reason=1"});
}

TEST_CASE("flags decide what is unseen, never a name") {
  struct Case {
    const char* line;
    const char* flags;  // null: no smaps
    PageState whole;
    PageState rest;  // of a mapping whose first page was shown
  };
  using enum PageState;
  for (const Case& c : {
           Case{"rw-s 00000000 00:0b 9 /dmabuf:", "rd wr sh pf", unseen, unseen},
           {"rw-s 00000000 00:01 9 /memfd:x (deleted)", "rd wr sh pf io", unseen, unseen},
           {"rw-s 00000000 00:01 9 /drm mm object (deleted)", "rd wr sh pf", unseen, unseen},
           {"rw-p 00000000 00:00 0 ", "rd wr pf", unseen, unseen},
           {"rw-p 00000000 00:00 0 [heap]", "rd wr pf", unseen, unseen},
           {"rw-s 00000000 08:01 9 /usr/lib/x", "rd wr sh pf", unseen, unseen},
           {"rw-s 00000000 00:0b 9 /dmabuf:", "rd wr sh", absent, absent},
           {"rw-s 00000000 00:05 9 /dev/x", "rd wr sh mm", absent, absent},
           {"rw-s 00000000 00:0b 9 /dmabuf:", "", unseen, absent},
           {"rw-s 00000000 00:0b 9 /dmabuf:", nullptr, unseen, absent},
           {"rw-s 00000000 00:05 9 /dev/x", "", unseen, absent},
           {"rw-p 00000000 00:00 0 ", nullptr, absent, absent},
           {"rw-p 00000000 08:01 9 /usr/lib/x", nullptr, absent, absent},
       }) {
    INFO(c.line << ", VmFlags " << (c.flags != nullptr ? c.flags : "unknown"));
    const std::string maps =
        std::string("10000-12000 ") + c.line + "\n20000-22000 " + c.line + "\n";
    SystemModel model = one_process(maps, {{0x20000, 1, entry::present | 7, 1}});
    if (c.flags != nullptr) {
      std::string smaps;
      for (const char* const range : {"10000-12000 ", "20000-22000 "})
        smaps += std::string(range) + c.line + "\nVmFlags: " + c.flags + "\n";
      model.processes[0].files["smaps"] = smaps;
    }
    const Recorded tree(model);
    const Process process = tree.process(1);
    const auto all = translate_whole(process);
    REQUIRE(all.size() == 3);
    CHECK(all[0].extent.state == c.whole);
    CHECK(all[1].extent.state == resident);
    CHECK(all[2].extent.state == c.rest);
  }
}

TEST_CASE("gaps are unmapped, and an address beyond all VMAs too") {
  const Recorded tree(
      one_process("10000-12000 rw-p 00000000 00:00 0 \n12000-13000 r--p 00000000 00:00 0 "
                  "\n20000-21000 rw-p 00000000 00:00 0 \n",
                  {{0x11000, 2, entry::present | 7, 1}}));
  const Process process = tree.process(1);
  const auto all = translate_range(process, {{0}, {0x30000}});
  CHECK(shown(all) == Lines{"0 +16 unmapped", "10000 +1 absent", "11000 +1 resident pfn=7",
                            "12000 +1 resident pfn=8", "13000 +13 unmapped", "20000 +1 absent",
                            "21000 +15 unmapped"});
  CHECK(all[2].vma_start == 0x10000);
  CHECK(all[3].vma_start == 0x12000);
  CHECK(all[0].vma_start == 0);
  CHECK(shown(translate_range(process, {{0x13000}, {0x14000}})) == Lines{"13000 +1 unmapped"});
  CHECK(shown(translate_range(process, {{0x1000000000000}, {0x1000000001000}})) ==
        Lines{"1000000000000 +1 unmapped"});
  for (const std::uint64_t address :
       {std::uint64_t{0}, std::uint64_t{0xffff}, std::uint64_t{0x13000}, std::uint64_t{1} << 47,
        ~std::uint64_t{0}}) {
    CHECK(state_of(process, address) == "unmapped");
  }
}

TEST_CASE("a range is widened to whole pages; an empty one is refused") {
  const Recorded tree(
      one_process("10000-14000 rw-p 00000000 00:00 0 \n", {{0x10000, 4, entry::present | 100, 2}}));
  const Process process = tree.process(1);
  CHECK(shown(translate_range(process, {{0x10fff}, {0x11001}})) ==
        Lines{"10000 +1 resident pfn=64", "11000 +1 resident pfn=66"});
  CHECK(shown(translate_range(process, {{0x11001}, {0x11002}})) ==
        Lines{"11000 +1 resident pfn=66"});
  auto translator = open_translator(process);
  REQUIRE(translator);
  VmaInspector inspector(process);
  for (const VaRange range : {VaRange{{0x11000}, {0x11000}}, VaRange{{0x12000}, {0x11000}}}) {
    const auto result = translate(process, **translator, inspector, range, {},
                                  [](const Vma*, const Extent&) { return true; });
    REQUIRE_FALSE(result);
    CHECK(result.error().code == Errc::invalid_argument);
  }
  // Up to the very end of the address space.
  const auto top = translate_range(process, {{~std::uint64_t{0} - 10}, {~std::uint64_t{0}}});
  for (const VmaExtent& e : top) CHECK(e.extent.state == PageState::unmapped);
}

TEST_CASE("a sink that stops gets nothing more, and that is no error") {
  const Recorded tree(one_process("10000-20000 rw-p 00000000 00:00 0 \n",
                                  {{0x10000, 16, entry::present | 100, 2}}));
  const Process process = tree.process(1);
  auto translator = open_translator(process);
  REQUIRE(translator);
  VmaInspector inspector(process);
  for (const unsigned threads : {1U, 2U}) {
    int walked = 0, translated = 0, all = 0;
    CHECK((*translator)->walk({{0x10000}, {0x20000}}, {threads, false}, [&](const Extent&) {
      return ++walked < 3;
    }));
    CHECK(translate(process, **translator, inspector, {{0}, {0x20000}}, {threads, false},
                    [&](const Vma*, const Extent&) { return ++translated < 4; }));
    CHECK(translate_all(process, **translator, inspector, {threads, false},
                        [&](const Vma*, const Extent&) { return ++all < 1; }));
    CHECK(walked == 3);
    CHECK(translated == 4);
    CHECK(all == 1);
  }
}

TEST_CASE("a pagemap that ends too early is an error, not a hole") {
  const Recorded tree("truncated");
  const Process process = tree.process(9);
  for (const unsigned threads : {1U, 2U}) {
    for (const bool every_page : {false, true}) {
      const WalkOptions options{threads, every_page};
      CHECK(walk(process, {{0x10000000}, {0x10018000}}, options));
      for (const VaRange range : {VaRange{{0x10018000}, {0x10019000}},
                                  {{0x10017000}, {0x10019000}},
                                  {{0x10000000}, {0x10020000}},
                                  {{0x20000000}, {0x20001000}},
                                  {{0x7f0000000000}, {0x7f0000001000}},
                                  {{0x10018000}, {0x7f0000000000}}}) {
        CAPTURE(range.start.value, range.end.value);
        const auto result = walk(process, range, options);
        REQUIRE_FALSE(result);
        CHECK(result.error().code == Errc::malformed);
        CHECK(result.error().path.ends_with("/proc/9/pagemap"));
      }
    }
  }
  CHECK(state_of(process, 0x10017fff) == "resident");
  const auto cut = one(process, 0x10018000);
  REQUIRE_FALSE(cut);
  CHECK(cut.error().code == Errc::malformed);
  CHECK_FALSE(one(process, 0x20000000));
  CHECK(state_of(process, 0x30000000) == "unmapped");
  // What was delivered before the error is right.
  auto translator = open_translator(process);
  REQUIRE(translator);
  VmaInspector inspector(process);
  std::uint64_t reached = 0;
  const auto result =
      translate_all(process, **translator, inspector, {}, [&](const Vma*, const Extent& e) {
        CHECK(e.state == PageState::resident);
        reached = e.end().value;
        return true;
      });
  REQUIRE_FALSE(result);
  CHECK(result.error().address == 0x10018000);
  CHECK(reached == 0x10018000);
}

TEST_CASE("an empty pagemap and a missing one are errors") {
  SystemModel system = one_process("10000-20000 rw-p 00000000 00:00 0 \n");
  system.processes[0].pagemap_bytes = 0;
  const Recorded empty(system);
  CHECK_FALSE(walk(empty.process(1), {{0x10000}, {0x20000}}));
  system.processes[0].has_pagemap = false;
  const Recorded missing(system);
  const auto translator = open_translator(missing.process(1));
  REQUIRE_FALSE(translator);
  CHECK(translator.error().code == Errc::not_found);
}

TEST_CASE("backends that this build lacks are refused by name") {
  const Recorded tree("x86-64");
  const Process process = tree.process(1042);
  for (const Backend backend : {Backend::bpf, Backend::kmod}) {
    const auto translator = open_translator(process, backend);
    REQUIRE_FALSE(translator);
    CHECK(translator.error().code == Errc::not_supported);
    CHECK(to_string(translator.error()).find(to_string(backend)) != std::string::npos);
  }
}

TEST_CASE("16 TiB with a few clusters") {
  const Recorded tree("sparse-16t");
  const Process process = tree.process(16);
  for (const unsigned threads : {1U, 2U}) {
    const auto all = translate_whole(process, {threads, false});
    std::uint64_t resident = 0, absent = 0, at = 0x200000000000;
    for (const VmaExtent& e : all) {
      if (e.extent.va.value >= 0x7ffc00000000) break;
      CHECK(e.extent.va.value == at);
      at = e.extent.end().value;
      (e.extent.state == PageState::resident ? resident : absent) += e.extent.bytes / 4096;
    }
    CHECK(at == 0x300000200000);
    CHECK(resident == 1 + 10 * 3 + 5 * 256 + 2);
    CHECK(resident + absent == ((16ULL << 40) + 0x200000) / 4096);
    // Frames go on across the border of two VMAs: still two extents.
    CHECK(all[all.size() - 5].extent.pfn == Pfn{0x777000});
    CHECK(all[all.size() - 4].extent.pfn == Pfn{0x777001});
  }
}

TEST_CASE("64 KiB pages") {
  const Recorded tree("arm64-64k");
  const Process process = tree.process(2001);
  const PageSize p{65536};
  CHECK(shown(translate_range(process, {{0xfffd60000000}, {0xfffd80080000}}), p) ==
        Lines{"fffd60000000 +8192 resident pfn=1e000 exclusive",
              "fffd80000000 +5 resident pfn=95b3 exclusive",
              "fffd80050000 +1 resident pfn=95c0 soft-dirty exclusive", "fffd80060000 +2 absent"});
  const auto huge = one(process, 0xffff40123456);
  REQUIRE(huge);
  CHECK(huge->extent.va == VirtAddr{0xffff40120000});
  CHECK(huge->extent.bytes == 65536);
  CHECK(huge->extent.pfn == Pfn{0x20012});
  CHECK(huge->extent.leaf_shift == 29);  // hugetlb, of 512 MiB as smaps says
  // Base pages for certain: their frames do not lie as those of a leaf.
  const auto small = one(process, 0xaaaac5a00000);
  REQUIRE(small);
  CHECK(small->extent.leaf_shift == 16);
}

TEST_CASE("names of states, backends and reasons") {
  const std::pair<PageState, const char*> states[] = {
      {PageState::resident, "resident"}, {PageState::absent, "absent"},
      {PageState::swapped, "swapped"},   {PageState::guard, "guard"},
      {PageState::special, "special"},   {PageState::hidden, "hidden"},
      {PageState::unseen, "unseen"},     {PageState::unmapped, "unmapped"},
      {PageState::changed, "changed"}};
  for (const auto& [state, name] : states) CHECK(to_string(state) == name);
  CHECK(to_string(Backend::pagemap) == "pagemap");
  CHECK(to_string(Reason::none).empty());
  CHECK(to_string(Reason::pfnmap).find("VM_PFNMAP") != std::string_view::npos);
  CHECK(to_string(Reason::maybe_pfnmap).find("VM_PFNMAP") != std::string_view::npos);
  for (int reason = 1; reason <= static_cast<int>(Reason::unknown_entry); ++reason)
    CHECK_FALSE(to_string(static_cast<Reason>(reason)).empty());
}
