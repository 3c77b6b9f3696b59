// SPDX-License-Identifier: MIT
/// A right mapping, 100,000 times with one thing changed, and 100,000 times with nothing changed.
/// What must be found follows from the change alone.
#include <algorithm>
#include <random>
#include <sstream>

#include "support/catch.hpp"
#include "support/paged_memory.hpp"
#include "support/recorded.hpp"
#include "vmem/window.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

constexpr std::uint64_t page = 4096;
constexpr int systems = 100;
constexpr int rounds = 1000;  // mutations of each system, and as many times none

using Random = std::mt19937_64;

std::uint64_t below(Random& random, std::uint64_t bound) { return random() % bound; }

/// One device mapping of a window, on a machine with RAM of two nodes below the window.
struct Model {
  std::uint64_t va = 0, pages = 0, offset = 0;  ///< offset: of the mapping in the window, in pages
  std::uint64_t window = 0, window_pages = 0;  ///< the window's first frame
  CacheAttribute cache = CacheAttribute::uc_minus;
  std::uint8_t leaf = 12;
  bool in_ram = false;
};

constexpr std::uint64_t ram_end = 0x40000;  // frames; node 0 below the half, node 1 above

Model random_model(Random& random) {
  constexpr CacheAttribute caches[] = {CacheAttribute::uc_minus, CacheAttribute::wc,
                                       CacheAttribute::wb, CacheAttribute::uc};
  Model m;
  m.va = 0x7f0000000000 + below(random, 1 << 20) * page;
  m.pages = 4 + below(random, 200);
  m.offset = below(random, 100);
  m.window_pages = m.offset + m.pages + below(random, 100);
  m.in_ram = below(random, 4) == 0;
  // Within one node where it is RAM.
  m.window =
      m.in_ram ? 0x1000 + below(random, ram_end / 2 - 0x2000) : 0x90000 + below(random, 0x10000);
  m.cache = caches[below(random, 4)];
  return m;
}

SystemModel machine(const Model& m) {
  std::ostringstream line;
  line << std::hex << m.va << '-' << m.va + m.pages * page << " rw-s " << m.offset * page
       << " 00:05 10                     /dev/window\n";
  SystemModel system = one_process(line.str());
  system.processes[0].files["smaps"] =
      line.str() + "VmFlags: rd wr sh mr mw me ms pf io dc de dd \n";
  system.processes[0].files["mountinfo"] = "24 27 0:5 / /dev rw - devtmpfs devtmpfs rw\n";
  system.files["proc/iomem"] = "00000000-3fffffff : System RAM\n";
  system.files["sys/devices/system/memory/block_size_bytes"] = "20000000\n";
  system.files["sys/devices/system/node/node0/memory0"] = "";
  system.files["sys/devices/system/node/node1/memory1"] = "";
  return system;
}

void fill(PagedMemory& memory, const Model& m) {
  memory.pages.clear();
  for (std::uint64_t i = 0; i < m.pages; ++i) {
    memory.pages[m.va + i * page] = {.state = PageState::resident,
                                     .pfn = m.window + m.offset + i,
                                     .cache = m.cache,
                                     .leaf_shift = m.leaf};
  }
}

Check right_check(const Model& m, Random& random) {
  Check check;
  check.window =
      Window::literal({{m.window * page}, {(m.window + m.window_pages) * page}}, PageSize{page});
  // As much as happens to be asked for: what is right passes under any of it.
  if (below(random, 2) != 0)
    check.cache = static_cast<CacheSet>(1U << static_cast<unsigned>(m.cache));
  if (below(random, 2) != 0) check.leaf = PageSize{page};
  if (below(random, 2) != 0) check.perms = "rw-s";
  if (below(random, 2) != 0) check.flags = {"pf", "io"};
  if (below(random, 2) != 0) check.offset = m.offset * page;
  if (m.in_ram && below(random, 2) != 0) check.node = 0;
  return check;
}

struct Expected {
  FindingKind kind;
  std::uint64_t first, count;  ///< pages of the mapping
  friend auto operator<=>(const Expected&, const Expected&) = default;
};

/// Changes one thing, and says what must be found.
std::vector<Expected> mutate(Random& random, const Model& m, PagedMemory& memory, Check& check) {
  const std::uint64_t i = below(random, m.pages);
  PageModel& at = memory.pages[m.va + i * page];
  const auto kind_of_place = [&](std::uint64_t pfn) {
    if (pfn >= m.window && pfn < m.window + m.window_pages) return FindingKind::wrong_address;
    return pfn < ram_end && !m.in_ram ? FindingKind::not_device : FindingKind::outside_window;
  };
  const auto move_to = [&](std::uint64_t pfn) {
    at.pfn = pfn;
    check.node.reset();
    return std::vector<Expected>{{kind_of_place(pfn), i, 1}};
  };
  const auto all = [&](FindingKind kind) { return std::vector<Expected>{{kind, 0, m.pages}}; };
  const auto another = [&](std::uint64_t bound, std::uint64_t than) {
    std::uint64_t other;
    do other = below(random, bound);
    while (other == than);
    return other;
  };
  switch (below(random, 15)) {
    case 0:
      return move_to(m.window + another(m.window_pages, m.offset + i));
    case 1:
      return move_to(m.window + m.window_pages + below(random, 1000));
    case 2: {
      std::uint64_t pfn;  // somewhere in memory
      do pfn = below(random, ram_end);
      while (m.in_ram && pfn == m.window + m.offset + i);
      return move_to(pfn);
    }
    case 3:
      return move_to(0x10000000 + below(random, 0x1000000));
    case 4: {
      const std::uint64_t j = another(m.pages, i);
      std::swap(at.pfn, memory.pages[m.va + j * page].pfn);
      std::vector<Expected> both{{FindingKind::wrong_address, i, 1},
                                 {FindingKind::wrong_address, j, 1}};
      std::ranges::sort(both);
      return both;
    }
    case 5: {  // a page off, all of it
      check.node.reset();
      for (auto& [_, p] : memory.pages) ++p.pfn;
      const bool over = m.offset + m.pages == m.window_pages;
      if (!over) return all(FindingKind::wrong_address);
      const FindingKind beyond = kind_of_place(m.window + m.window_pages);
      return {{FindingKind::wrong_address, 0, m.pages - 1}, {beyond, m.pages - 1, 1}};
    }
    case 6:
      memory.pages.erase(m.va + i * page);
      return {{FindingKind::hole, i, 1}};
    case 7: {
      constexpr PageState states[] = {PageState::swapped, PageState::guard, PageState::absent};
      at = {.state = states[below(random, 3)]};
      return {{FindingKind::hole, i, 1}};
    }
    case 8: {
      check.cache = static_cast<CacheSet>(1U << static_cast<unsigned>(m.cache));
      do at.cache = static_cast<CacheAttribute>(1 + below(random, 6));
      while (at.cache == m.cache);
      return {{FindingKind::wrong_cache, i, 1}};
    }
    case 9:
      check.leaf = PageSize{page};
      at.leaf_shift = below(random, 2) != 0 ? 21 : 30;
      return {{FindingKind::wrong_leaf, i, 1}};
    case 10: {
      constexpr const char* wrong[] = {"r--s", "rw-p", "-w-s", "rwxs", "???p", "r-??"};
      check.perms = wrong[below(random, 6)];
      return all(FindingKind::wrong_perms);
    }
    case 11: {
      constexpr const char* wrong[] = {"mm", "!pf", "lo", "!io", "ht"};
      check.flags = {wrong[below(random, 5)]};
      return all(FindingKind::wrong_flags);
    }
    case 12: {
      if (!m.in_ram) return move_to(0);
      check.node = 1;
      return all(FindingKind::wrong_node);
    }
    case 13: {
      constexpr std::pair<PageState, FindingKind> unseen[] = {
          {PageState::hidden, FindingKind::unseen},
          {PageState::unseen, FindingKind::unseen},
          {PageState::special, FindingKind::unseen},
          {PageState::changed, FindingKind::changed}};
      const auto& [state, kind] = unseen[below(random, 4)];
      at = {.state = state};
      return {{kind, i, 1}};
    }
    default: {  // the window ends before the mapping does
      const std::uint64_t missing = 1 + below(random, m.pages - 1);
      const std::uint64_t end = m.window + m.offset + m.pages - missing;
      check.window = Window::literal({{m.window * page}, {end * page}}, PageSize{page});
      return {{FindingKind::outside_window, m.pages - missing, missing}};
    }
  }
}

std::vector<Expected> found(const CheckResult& result, const Model& m) {
  std::vector<Expected> all;
  for (const Finding& f : result.findings)
    all.push_back({f.kind, (f.va.value - m.va) / page, f.bytes / page});
  return all;
}

std::string text(const std::vector<Expected>& all) {
  std::string out;
  for (const Expected& e : all)
    out += std::string(to_string(e.kind)) + " " + std::to_string(e.first) + "+" +
           std::to_string(e.count) + "; ";
  return out;
}

}  // namespace

TEST_CASE("one thing changed is found as what it is, and what is right passes") {
  std::size_t changed = 0, unchanged = 0;
  for (int seed = 0; seed < systems; ++seed) {
    Random random(static_cast<std::uint64_t>(seed));
    const Model model = random_model(random);
    const Recorded tree{machine(model)};
    const Process process = tree.process(1);
    const auto vmas = read_vmas(process);
    REQUIRE(vmas);
    REQUIRE(vmas->size() == 1);
    VmaInspector inspector{process};
    WindowSources sources{tree.root()};
    PagedMemory memory;
    for (int round = 0; round < rounds; ++round) {
      Check check = right_check(model, random);
      const MappingCheck one{&check, &vmas->front()};
      fill(memory, model);
      const auto right = check_mappings(process, memory, inspector, sources, {&one, 1}, {});
      if (right[0].verdict != Verdict::pass || right[0].pages_ok != model.pages ||
          !right[0].findings.empty()) {
        FAIL("false alarm: seed " << seed << " round " << round << ": "
                                  << text(found(right[0], model)));
      }
      ++unchanged;
      const auto expected = mutate(random, model, memory, check);
      const auto wrong = check_mappings(process, memory, inspector, sources, {&one, 1}, {});
      const bool fails =
          std::ranges::any_of(expected, [](const Expected& e) { return is_failure(e.kind); });
      if (wrong[0].verdict != (fails ? Verdict::fail : Verdict::unverified) ||
          found(wrong[0], model) != expected) {
        FAIL("seed " << seed << " round " << round << ": found " << text(found(wrong[0], model))
                     << "instead of " << text(expected) << to_string(wrong[0].verdict));
      }
      ++changed;
    }
  }
  CHECK(changed == 100000);
  CHECK(unchanged == 100000);
}
