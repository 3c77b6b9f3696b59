// SPDX-License-Identifier: MIT
/// Every kind of finding, and when a check is unverified, on page tables of the test's making.
#include "vmem/window.hpp"

#include <algorithm>
#include <cctype>
#include <functional>
#include <sstream>

#include "support/catch.hpp"
#include "support/paged_memory.hpp"
#include "support/recorded.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t page = 4096;
constexpr std::uint64_t va = 0x7f0000000000;
constexpr std::uint64_t base = 0x90000000;

/// One process: a device of 16 pages, another of 4, its heap; RAM, two nodes, a reserved hole.
SystemModel machine() {
  SystemModel system = one_process(
      "5000000000-5000008000 rw-p 00000000 00:00 0                          [heap]\n"
      "7f0000000000-7f0000010000 rw-s 00000000 00:05 10                     /dev/window1\n"
      "7f0000100000-7f0000104000 rw-s 00002000 00:05 11                     /dev/window2\n"
      "7f0000200000-7f0000204000 rw-p 00090000 00:05 12                     /dev/private\n");
  system.processes[0].files["smaps"] =
      "5000000000-5000008000 rw-p 00000000 00:00 0                          [heap]\n"
      "VmFlags: rd wr mr mw me ac \n"
      "7f0000000000-7f0000010000 rw-s 00000000 00:05 10                     /dev/window1\n"
      "VmFlags: rd wr sh mr mw me ms pf io dc de dd \n"
      "7f0000100000-7f0000104000 rw-s 00002000 00:05 11                     /dev/window2\n"
      "VmFlags: rd wr sh mr mw me ms pf io dc de dd \n"
      "7f0000200000-7f0000204000 rw-p 00090000 00:05 12                     /dev/private\n"
      "VmFlags: rd wr mr mw me pf io dc de dd \n";
  system.processes[0].files["mountinfo"] = "24 27 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
  system.files["proc/iomem"] =
      "00001000-0009fbff : System RAM\n"
      "00100000-8fffffff : System RAM\n"
      "90000000-93ffffff : Reserved\n";
  system.files["sys/devices/system/memory/block_size_bytes"] = "8000000\n";
  system.files["sys/devices/system/node/node0/memory0"] = "";
  system.files["sys/devices/system/node/node1/memory1"] = "";
  return system;
}

const Recorded& tree() {
  static const Recorded recorded{machine()};
  return recorded;
}

/// Maps `pages` pages from `at` on to frames from `pa` on.
void map(PagedMemory& memory, std::uint64_t at, std::uint64_t pages, std::uint64_t pa,
         CacheAttribute cache = CacheAttribute::uc_minus) {
  for (std::uint64_t i = 0; i < pages; ++i) {
    memory.pages[at + i * page] = {
        .state = PageState::resident, .pfn = pa / page + i, .cache = cache};
  }
}

Check window_check(std::uint64_t pa, std::uint64_t bytes) {
  Check check;
  check.window = Window::literal({{pa}, {pa + bytes}}, PageSize{page});
  return check;
}

std::string text(const Finding& f) {
  std::ostringstream out;
  out << to_string(f.kind) << std::hex << ' ' << f.va.value << '+' << f.bytes;
  if (f.expected) out << " want " << f.expected->value;
  if (f.actual) out << " is " << f.actual->value;
  if (f.descends) out << " descending";
  if (!f.detail.empty()) out << ": " << f.detail;
  return out.str();
}

/// "pass 16/16", then the findings, one per line.
std::string text(const CheckResult& result) {
  std::ostringstream out;
  out << to_string(result.verdict) << ' ' << result.pages_ok << '/' << result.pages_checked;
  for (const Finding& f : result.findings) out << '\n' << text(f);
  return out.str();
}

std::string judge(PagedMemory& memory, const Check& check, std::uint64_t at = va) {
  const Process process = tree().process(1);
  const auto vma = find_vma(process, {at});
  REQUIRE(vma);
  REQUIRE(*vma);
  VmaInspector inspector{process};
  WindowSources sources{tree().root()};
  const MappingCheck one{&check, &**vma};
  const auto results = check_mappings(process, memory, inspector, sources, {&one, 1}, {});
  REQUIRE(results.size() == 1);
  return text(results[0]);
}

/// The right mapping of /dev/window1, with something done to it.
std::string with(
    const std::function<void(PagedMemory&)>& change,
    const std::function<void(Check&)>& change_check = [](Check&) {}) {
  PagedMemory memory;
  map(memory, va, 16, base);
  change(memory);
  Check check = window_check(base, 16 * page);
  change_check(check);
  return judge(memory, check);
}

PageModel& at(PagedMemory& memory, std::uint64_t index) { return memory.pages[va + index * page]; }

}  // namespace

TEST_CASE("a mapping in its place passes") {
  CHECK(with([](PagedMemory&) {}) == "pass 16/16");
  CHECK(with([](PagedMemory&) {},
             [](Check& c) {
               c.perms = "rw-s";
               c.cache = *cache_set("uc");
               c.leaf = PageSize{page};
               c.flags = {"pf", "io", "!mm"};
             }) == "pass 16/16");
}

TEST_CASE("frames in the wrong place") {
  CHECK(with([](PagedMemory& m) { map(m, va, 16, base + page); }) ==
        "fail 0/16\n"
        "wrong-address 7f0000000000+f000 want 90000000 is 90001000\n"
        "outside-window 7f000000f000+1000 want 9000f000 is 90010000");
  CHECK(with([](PagedMemory& m) { std::swap(at(m, 1).pfn, at(m, 2).pfn); }) ==
        "fail 14/16\n"
        "wrong-address 7f0000001000+1000 want 90001000 is 90002000\n"
        "wrong-address 7f0000002000+1000 want 90002000 is 90001000");
  CHECK(with([](PagedMemory& m) { map(m, va, 16, 0xa0000000); }) ==
        "fail 0/16\noutside-window 7f0000000000+10000 want 90000000 is a0000000");
  CHECK(with([](PagedMemory& m) { map(m, va + 4 * page, 2, 0x1000000); }) ==
        "fail 14/16\nnot-device 7f0000004000+2000 want 90004000 is 1000000");
  CHECK(with([](PagedMemory& m) {
          for (std::uint64_t i = 0; i < 16; ++i) at(m, i).pfn = base / page + 15 - i;
        }) == "fail 0/16\nwrong-address 7f0000000000+10000 want 90000000 is 9000f000 descending");
  // Frame 0 is a frame.
  CHECK(with([](PagedMemory& m) { at(m, 3).pfn = 0; }) ==
        "fail 15/16\noutside-window 7f0000003000+1000 want 90003000 is 0");
}

TEST_CASE("a run that begins inside and ends outside is cut at the border") {
  PagedMemory memory;
  map(memory, va, 16, base + 8 * page);
  Check check = window_check(base, 16 * page);
  check.scatter = true;
  CHECK(judge(memory, check) == "fail 8/16\noutside-window 7f0000008000+8000 is 90010000");
  map(memory, va, 16, 0x90000000 - 8 * page);
  CHECK(judge(memory, check) == "fail 8/16\nnot-device 7f0000000000+8000 is 8fff8000");
}

TEST_CASE("a window that ends before the mapping does") {
  PagedMemory memory;
  map(memory, va, 16, base);
  CHECK(judge(memory, window_check(base, 12 * page)) ==
        "fail 12/16\noutside-window 7f000000c000+4000 is 9000c000: beyond the window's end");
}

TEST_CASE("holes") {
  const auto hole = [](PagedMemory& m) { m.pages.erase(va + page); };
  CHECK(with(hole) == "fail 15/16\nhole 7f0000001000+1000 want 90001000");
  CHECK(with(hole, [](Check& c) { c.sparse = true; }) == "pass 15/15");
  CHECK(with([](PagedMemory& m) {
          at(m, 2).state = PageState::swapped;
          at(m, 3).state = PageState::guard;
        }) ==
        "fail 14/16\n"
        "hole 7f0000002000+1000 want 90002000: swapped\n"
        "hole 7f0000003000+1000 want 90003000: guard");
  // Nothing was seen in its place: that is no proof of anything.
  CHECK(with([](PagedMemory& m) { m.pages.clear(); }, [](Check& c) { c.sparse = true; }) ==
        "unverified 0/0\nunseen 7f0000000000+10000: no page of it is in memory");
  const auto anywhere = [](Check& c) { c.window = {}, c.sparse = true; };
  CHECK(with([](PagedMemory& m) { m.pages.clear(); }, anywhere) ==
        "unverified 0/0\nunseen 7f0000000000+10000: no page of it is in memory");
  CHECK(with([](PagedMemory& m) { m.pages.clear(); },
             [](Check& c) { c.window = {}, c.sparse = true, c.perms = "rw-s"; }) == "pass 0/0");
  CHECK(with([](PagedMemory& m) { m.pages.clear(); }) ==
        "fail 0/16\nhole 7f0000000000+10000 want 90000000");
}

TEST_CASE("attributes") {
  CHECK(with([](PagedMemory& m) { at(m, 5).cache = CacheAttribute::wb; },
             [](Check& c) { c.cache = *cache_set("uc"); }) ==
        "fail 15/16\n"
        "wrong-cache 7f0000005000+1000 want 90005000 is 90005000: wb, not uc or uc-");
  CHECK(with([](PagedMemory&) {}, [](Check& c) { c.cache = *cache_set("wc"); }) ==
        "fail 0/16\n"
        "wrong-cache 7f0000000000+10000 want 90000000 is 90000000: uc-, not wc");
  CHECK(with([](PagedMemory& m) { at(m, 0).leaf_shift = 21; },
             [](Check& c) { c.leaf = PageSize{page}; }) ==
        "fail 15/16\n"
        "wrong-leaf 7f0000000000+1000 want 90000000 is 90000000: 2M, not 4K");
  CHECK(with([](PagedMemory&) {}, [](Check& c) { c.perms = "r--s"; }) ==
        "fail 16/16\nwrong-perms 7f0000000000+10000: rw-s, not r--s");
  CHECK(with([](PagedMemory&) {}, [](Check& c) { c.perms = "r?-s"; }) == "pass 16/16");
  CHECK(with([](PagedMemory&) {}, [](Check& c) { c.flags = {"mm", "lo", "!pf"}; }) ==
        "fail 16/16\n"
        "wrong-flags 7f0000000000+10000: missing: mm lo\n"
        "wrong-flags 7f0000000000+10000: unwanted: pf");
}

TEST_CASE("cache attributes: every printed word is a rule's, and a failure names both") {
  using enum CacheAttribute;
  const auto bit = [](CacheAttribute a) { return 1U << static_cast<unsigned>(a); };
  for (const CacheAttribute a : {uc, uc_minus, wc, wt, wp, wb, device_ngnrne, device_ngnre,
                                 normal_nc, normal, normal_tagged}) {
    std::string word(to_string(a));
    CAPTURE(word);
    for (const auto change : {+[](char c) { return static_cast<char>(std::toupper(c)); },
                              +[](char c) { return static_cast<char>(std::tolower(c)); }}) {
      std::ranges::transform(word, word.begin(), change);
      const auto set = cache_set(word);
      REQUIRE(set);
      CHECK((*set & bit(a)) != 0);
      // arm64's names are exact.
      if (a >= device_ngnrne) CHECK(*set == bit(a));
    }
  }
  CHECK_FALSE(cache_set("unknown"));
  CHECK_FALSE(cache_set("normal-"));

  const auto wrong = [](CacheAttribute is, const std::vector<const char*>& words) {
    const std::string said = with([&](PagedMemory& m) { at(m, 5).cache = is; },
                                  [&](Check& c) {
                                    for (const char* const word : words)
                                      c.cache = static_cast<CacheSet>(c.cache | *cache_set(word));
                                  });
    const std::size_t detail = said.find("90005000: ");
    return detail == std::string::npos
               ? said
               : said.substr(detail + 10, said.find('\n', detail) - detail - 10);
  };
  CHECK(wrong(normal_nc, {"uc"}) == "normal-nc (wc), not uc (device-nGnRnE or device-nGnRE)");
  CHECK(wrong(device_ngnre, {"wc"}) == "device-nGnRE (uc), not wc (normal-nc)");
  CHECK(wrong(normal, {"Device-nGnRE"}) == "normal (wb), not device-nGnRE");
  CHECK(wrong(device_ngnre, {"device-ngnrne", "wb"}) ==
        "device-nGnRE (uc), not wb (normal or normal-tagged) or device-nGnRnE");
  CHECK(wrong(normal, {"wt"}) == "normal (wb), not wt (this architecture has no such attribute)");
  CHECK(wrong(wb, {"uc"}) == "wb, not uc or uc-");
  CHECK(wrong(wb, {"normal-nc"}) == "wb, not normal-nc (this architecture has no such attribute)");
}

TEST_CASE("NUMA nodes") {
  PagedMemory memory;
  Check check;
  check.node = 0;
  map(memory, va, 16, 0x8000000 - 8 * page);  // nodes 0 and 1, half each
  CHECK(judge(memory, check) ==
        "fail 8/16\nwrong-node 7f0000008000+8000 is 8000000: node 1, not 0");
  map(memory, va, 16, base);
  CHECK(judge(memory, check) ==
        "unverified 0/16\nunseen 7f0000000000+10000 is 90000000: its NUMA node is not known");
}

TEST_CASE("ram and any") {
  PagedMemory memory;
  map(memory, 0x5000000000, 8, 0x200000, CacheAttribute::wb);
  memory.pages[0x5000003000].pfn = 0x9f;  // the last page of RAM that is not all RAM
  const Process process = tree().process(1);
  WindowSources sources{tree().root()};
  const auto ram = sources.ram();
  REQUIRE(ram);
  Check check;
  check.window = *ram;
  CHECK(judge(memory, check, 0x5000000000) == "fail 7/8\noutside-window 5000003000+1000 is 9f000");
  check.window = {};
  CHECK(judge(memory, check, 0x5000000000) == "pass 8/8");
}

TEST_CASE("a page that was lost is a hole, by its frame") {
  const auto lost = [](PagedMemory& m) {
    at(m, 7) = {.state = PageState::special, .pfn = 0x433c, .reason = Reason::poison};
  };
  CAPTURE(with(lost));
  CHECK(with(lost).find("fail") == 0);
  CHECK(with(lost).find("poison: frame 0x433c was lost to a memory error") != std::string::npos);
}

TEST_CASE("what is not seen is unverified") {
  const std::pair<PageState, Reason> states[] = {{PageState::hidden, Reason::none},
                                                 {PageState::unseen, Reason::pfnmap},
                                                 {PageState::special, Reason::migration_or_device},
                                                 {PageState::changed, Reason::vma_changed}};
  for (const auto& [state, reason] : states) {
    const auto change = [&](PagedMemory& m) {
      at(m, 7) = {.state = state, .pfn = 0, .reason = reason};
    };
    CAPTURE(to_string(state));
    const std::string kind = state == PageState::changed ? "changed" : "unseen";
    CHECK(with(change).starts_with("unverified 15/15\n" + kind + " 7f0000007000+1000: "));
    for (const bool any : {false, true}) {
      const std::string said = with(change, [&](Check& c) {
        c.sparse = true;
        if (any) c.window = {};
      });
      CHECK(said.starts_with("unverified"));
    }
    // A page that is wrong is a failure all the same.
    CHECK(with([&](PagedMemory& m) {
            change(m);
            at(m, 1).pfn = 0xffff;
          }).starts_with("fail 14/15"));
  }
}

TEST_CASE("attributes that nobody tells are unverified") {
  const auto untold = [](PagedMemory& m) {
    for (auto& [_, model] : m.pages) {
      model.tells_pte = false;
      model.leaf_shift = 0;
    }
  };
  CHECK(with(untold) == "pass 16/16");
  CHECK(with(untold, [](Check& c) { c.cache = *cache_set("uc"); }).starts_with("unverified 0/16"));
  CHECK(with(untold, [](Check& c) { c.leaf = PageSize{page}; }).starts_with("unverified 0/16"));
}

TEST_CASE("where a mapping begins") {
  PagedMemory memory;
  // By its file offset.
  map(memory, 0x7f0000100000, 4, base + 2 * page);
  CHECK(judge(memory, window_check(base, 16 * page), 0x7f0000100000) == "pass 4/4");
  Check check = window_check(base, 16 * page);
  check.offset = 0;
  CHECK(judge(memory, check, 0x7f0000100000) ==
        "fail 0/4\nwrong-address 7f0000100000+4000 want 90000000 is 90002000");
  check.offset = 2 * page;
  CHECK(judge(memory, check, 0x7f0000100000) == "pass 4/4");
  check.offset = UINT64_MAX - page + 1;
  CHECK(judge(memory, check, 0x7f0000100000).starts_with("fail 0/4"));
  check.offset = 1;
  CHECK(judge(memory, check, 0x7f0000100000).starts_with("unverified 0/0"));
  // The kernel has put the first PFN in place of a private mapping's.
  map(memory, 0x7f0000200000, 4, base);
  CHECK(judge(memory, window_check(base, 4 * page), 0x7f0000200000).starts_with("unverified 0/0"));
  check.offset = 0;
  CHECK(judge(memory, check, 0x7f0000200000) == "pass 4/4");
}

TEST_CASE("a window of several ranges counts through them") {
  Check check;
  check.window.kind = Window::Kind::physical;
  check.window.ranges = {{{0xa0000000}, {0xa0002000}}, {{0xb0000000}, {0xb0010000}}};
  PagedMemory memory;
  map(memory, va, 2, 0xa0000000);
  map(memory, va + 2 * page, 14, 0xb0000000);
  CHECK(judge(memory, check) == "pass 16/16");
  map(memory, va, 16, 0xa0000000);
  CHECK(judge(memory, check) ==
        "fail 2/16\noutside-window 7f0000002000+e000 want b0000000 is a0002000");
}

TEST_CASE("a mismatch is read again before it is reported") {
  const auto judged = [](void (*before)(PagedMemory&, unsigned)) {
    PagedMemory memory;
    map(memory, va, 16, base);
    memory.before_walk = before;
    return judge(memory, window_check(base, 16 * page));
  };
  // Wrong once, right then: it moved.
  CHECK(judged([](PagedMemory& m, unsigned walk) {
          at(m, 1).pfn = base / page + (walk == 0 ? 5 : 1);
        }) ==
        "unverified 16/16\nchanged 7f0000001000+1000 want 90001000 is 90005000: "
        "was not the same when it was read again: wrong-address before");
  // A page that came meanwhile is no contradiction.
  CHECK(judged([](PagedMemory& m, unsigned walk) {
          at(m, 1).state = walk == 0 ? PageState::absent : PageState::resident;
        }) == "pass 16/16");
  // Wrong in another way each time.
  CHECK(judged([](PagedMemory& m, unsigned walk) {
          at(m, 1).pfn = 0x100000 + walk;
        }).starts_with("fail 15/16"));
  // Right mappings are read once.
  PagedMemory memory;
  map(memory, va, 16, base);
  judge(memory, window_check(base, 16 * page));
  CHECK(memory.walks == 1);
  at(memory, 1).pfn = 7;
  judge(memory, window_check(base, 16 * page));
  CHECK(memory.walks == 3);
}

TEST_CASE("a mapping that is another one by now") {
  const Process process = tree().process(1);
  VmaInspector inspector{process};
  WindowSources sources{tree().root()};
  auto vma = find_vma(process, {va});
  REQUIRE(vma);
  Vma before = **vma;
  before.inode = 99;
  PagedMemory memory;
  map(memory, va, 16, base);
  const Check check = window_check(base, 16 * page);
  MappingCheck one{&check, &before};
  auto results = check_mappings(process, memory, inspector, sources, {&one, 1}, {});
  CHECK(text(results[0]) ==
        "unverified 0/0\nchanged 7f0000000000+10000: the mapping changed while it was read");
  // Gone, in part or in whole.
  before = **vma;
  before.range = {{va + 0x8000}, {va + 0x18000}};
  results = check_mappings(process, memory, inspector, sources, {&one, 1}, {});
  CHECK(results[0].verdict == Verdict::unverified);
  before.range = {{0x1000}, {0x5000}};
  results = check_mappings(process, memory, inspector, sources, {&one, 1}, {});
  CHECK(text(results[0]) ==
        "unverified 0/0\nchanged 1000+4000: the mapping changed while it was read");
}

TEST_CASE("an error of the source is unverified") {
  class Failing : public PagedMemory {
   public:
    explicit Failing(Errc errc) : code(errc) {}
    Result<void> walk(VaRange range, const WalkOptions&, ExtentSink sink) override {
      Extent first{.va = range.start, .bytes = page, .state = PageState::resident};
      first.pfn = {base / page};
      sink(first);
      return std::unexpected(Error{.code = code, .what = "reading", .path = {}});
    }
    Errc code;
  };
  for (const auto& [code, kind] :
       {std::pair{Errc::process_changed, "changed"}, std::pair{Errc::io, "unseen"},
        std::pair{Errc::malformed, "unseen"}}) {
    Failing memory{code};
    const std::string said = judge(memory, window_check(base, 16 * page));
    CAPTURE(said);
    CHECK(said.starts_with("unverified"));
    CHECK(said.find(kind) != std::string::npos);
  }
}

TEST_CASE("several mappings and checks at once") {
  const Process process = tree().process(1);
  VmaInspector inspector{process};
  WindowSources sources{tree().root()};
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  PagedMemory memory;
  map(memory, va, 16, base);
  map(memory, 0x7f0000100000, 4, base + 2 * page, CacheAttribute::wc);
  const Check right = window_check(base, 16 * page);
  const Check wrong = window_check(base + page, 16 * page);
  Check any;
  any.sparse = true;
  any.perms = "rw-p";
  const std::vector<MappingCheck> all{
      {&any, &(*vmas)[0]}, {&right, &(*vmas)[1]}, {&wrong, &(*vmas)[1]}, {&right, &(*vmas)[2]}};
  auto results = check_mappings(process, memory, inspector, sources, all, {});
  REQUIRE(results.size() == 4);
  CHECK(text(results[0]) == "pass 0/0");
  CHECK(text(results[1]) == "pass 16/16");
  CHECK(text(results[2]) ==
        "fail 0/16\n"
        "outside-window 7f0000000000+1000 want 90001000 is 90000000\n"
        "wrong-address 7f0000001000+f000 want 90002000 is 90001000");
  CHECK(text(results[3]) == "pass 4/4");
  // Two of them give the same frames different attributes.
  std::vector<ResultOf> of;
  for (std::size_t i = 0; i < all.size(); ++i) of.push_back({&results[i], 7, all[i].vma->range});
  find_overlaps(of);
  CHECK(text(results[1]) ==
        "fail 16/16\noverlap 7f0000002000+4000 is 90002000: uc-, but wc in process 7 at "
        "0x7f0000100000");
  CHECK(text(results[3]) ==
        "fail 4/4\noverlap 7f0000100000+4000 is 90002000: wc, but uc- in process 7 at "
        "0x7f0000002000");
  CHECK(text(results[0]) == "pass 0/0");
}

TEST_CASE("overlaps: uncached kinds agree, and each of many mappings is told") {
  std::vector<CheckResult> results(4);
  for (CheckResult& r : results) r.verdict = Verdict::pass;
  results[0].cached = {{{{0x1000}, {0x9000}}, {0x100000}, CacheAttribute::uc}};
  results[1].cached = {{{{0x1000}, {0x2000}}, {0x200000}, CacheAttribute::uc_minus}};
  results[2].cached = {{{{0x9000}, {0xa000}}, {0x300000}, CacheAttribute::wb}};
  results[3].cached = {{{{0x0000}, {0x1000}}, {0x400000}, CacheAttribute::wb}};
  std::vector<ResultOf> of;
  for (CheckResult& r : results) of.push_back({&r, 1, {}});
  find_overlaps(of);
  for (const CheckResult& r : results) CHECK(r.verdict == Verdict::pass);
  // One page of write-back in the middle meets both of those below.
  results[1].cached[0].range = {{0x1000}, {0x8000}};
  results[2].cached[0].range = {{0x4000}, {0x5000}};
  find_overlaps(of);
  CHECK(text(results[0]) ==
        "fail 0/0\noverlap 103000+1000 is 4000: uc, but wb in process 1 at 0x300000");
  CHECK(text(results[1]) ==
        "fail 0/0\noverlap 203000+1000 is 4000: uc-, but wb in process 1 at 0x300000");
  CHECK(text(results[2]) ==
        "fail 0/0\noverlap 300000+1000 is 4000: wb, but uc in process 1 at 0x103000");
  CHECK(results[3].verdict == Verdict::pass);
}

namespace {

constexpr std::uint64_t big = 0x100000000000;

/// A mapping from `big` on that begins with `runs`; the rest of its 16 TiB is `rest`. It must lie
/// at `base`.
CheckResult judge_big(std::vector<Extent> runs, PageState rest) {
  const VirtAddr end = runs.back().end(), last{big + (std::uint64_t{1} << 44)};
  const Recorded recorded{one_process(
      "100000000000-200000000000 rw-s 00000000 00:05 10                     /dev/big\n")};
  const Process process = recorded.process(1);
  VmaInspector inspector{process};
  WindowSources sources{recorded.root()};
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  PagedMemory memory;
  memory.runs = std::move(runs);
  memory.runs.push_back({.va = end, .bytes = last - end, .state = rest});
  const Check check = window_check(base, std::uint64_t{1} << 44);
  const MappingCheck one{&check, &(*vmas)[0]};
  return check_mappings(process, memory, inspector, sources, {&one, 1}, {}).at(0);
}

/// Of `pages` pages every other one is where it must be, the others are in `state`.
std::vector<Extent> every_other(std::uint64_t pages, PageState state) {
  std::vector<Extent> runs;
  for (std::uint64_t i = 0; i < pages; ++i) {
    runs.push_back({.va = {big + i * page}, .bytes = page, .state = state});
    if (i % 2 != 0) continue;
    runs.back().state = PageState::resident;
    runs.back().pfn = {base / page + i};
  }
  return runs;
}

}  // namespace

TEST_CASE("findings have a bound, and what is beyond it is counted") {
  const CheckResult result =
      judge_big(every_other(3 * most_findings, PageState::absent), PageState::absent);
  CHECK(result.findings.size() == most_findings);
  CHECK(result.more_findings == most_findings / 2 + 1);  // and the rest of the mapping
  CHECK(result.pages_ok == 3 * most_findings / 2);
}

TEST_CASE("a failure beyond more findings than are kept still fails the check") {
  auto runs = every_other(2 * most_findings + 2, PageState::hidden);
  const VirtAddr hole = runs.back().end();
  runs.push_back({.va = hole, .bytes = page, .state = PageState::absent});
  const CheckResult result = judge_big(std::move(runs), PageState::hidden);
  CHECK(result.verdict == Verdict::fail);
  CHECK(result.findings.size() == most_findings);
  CHECK(result.more_findings == 3);
  CHECK(result.findings.back().kind == FindingKind::hole);
  CHECK(result.findings.back().va == hole);

  CheckResult full;
  for (std::size_t i = 0; i < most_findings + 1; ++i) full.add({.kind = FindingKind::unseen});
  CHECK(full.verdict == Verdict::unverified);
  full.add({.kind = FindingKind::overlap});
  CHECK(full.verdict == Verdict::fail);
  CHECK(full.findings.size() == most_findings);
  CHECK(full.more_findings == 2);
  CHECK(std::ranges::count(full.findings, FindingKind::overlap, &Finding::kind) == 1);
}

TEST_CASE("a frame whose address 64 bits do not hold is not one of the window") {
  // Frames of 1 MiB: this one's address, cut to 64 bits, is the window's.
  SystemModel system = one_process(
      "7f0000000000-7f0001000000 rw-s 00000000 00:05 10                     /dev/window1\n");
  system.manifest = "vmem-tree 1\npage_size 1048576\npfn_access full\n";
  system.processes[0].has_pagemap = false;
  const auto verdict = [&](const char* pfn) {
    system.processes[0].files["extents"] =
        std::string("vmem-extents 1 kmod\n7f0000000000 16 pfn=") + pfn + "\nend\n";
    const Recorded recorded{system};
    const Process process = recorded.process(1);
    const auto vma = find_vma(process, {va});
    REQUIRE(vma);
    REQUIRE(*vma);
    const auto translator = open_translator(process);
    REQUIRE(translator);
    VmaInspector inspector{process};
    WindowSources sources{recorded.root()};
    Check check;
    check.window = Window::literal({{base}, {base + (16 << 20)}}, PageSize{1 << 20});
    const MappingCheck one{&check, &**vma};
    const auto results = check_mappings(process, **translator, inspector, sources, {&one, 1}, {});
    REQUIRE(results.size() == 1);
    return text(results[0]);
  };
  CHECK(verdict("0x900") == "pass 16/16");
  CHECK(verdict("0x100000000900").starts_with("unverified 0/0\nunseen"));
}

TEST_CASE("a leaf that is said to map more than the mapping does not pass") {
  PagedMemory memory;
  map(memory, va, 16, base);
  for (std::uint64_t i = 0; i < 16; ++i) memory.pages[va + i * page].leaf_shift = 21;
  Check check = window_check(base, 16 * page);
  check.leaf = PageSize{2 << 20};
  CHECK(judge(memory, check) ==
        "unverified 0/16\n"
        "unseen 7f0000000000+10000 want 90000000 is 90000000: 2M leaves that the mapping does not "
        "hold");
}
