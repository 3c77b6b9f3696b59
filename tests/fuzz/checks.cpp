// SPDX-License-Identifier: MIT
// Checks of a recorded system of which one file is the input. Nothing may crash or hang, a pass
// must have seen every page, and one of a window in order is held against a plain look at pagemap.
#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "fuzz_tree.hpp"
#include "vmem/window.hpp"

using namespace vmem;

namespace {

constexpr std::uint64_t present = std::uint64_t{1} << 63;

std::string pagemap_of(std::initializer_list<std::uint64_t> entries) {
  std::string bytes(entries.size() * 8, '\0');
  std::memcpy(bytes.data(), std::data(entries), bytes.size());
  return bytes;
}

const std::array<std::pair<const char*, std::string>, 8>& originals() {
  static const std::array<std::pair<const char*, std::string>, 8> files{{
      {"proc/1/maps",
       "1000-4000 rw-s fe000000 00:05 10 /dev/mem\n"
       "4000-5000 rw-s 00000000 00:05 11 /dev/uio0\n"
       "5000-6000 rw-s 00000000 00:06 12 /sys/devices/pci0000:00/0000:00:03.0/resource0\n"
       "6000-7000 rw-p 00000000 00:00 0 [heap]\n"},
      {"proc/1/pagemap", pagemap_of({0, present | 0xfe000, present | 0xfe001, present | 0xfe002,
                                     present | 0xfe000, present | 0xfe000, present | 0x123})},
      {"proc/1/smaps", "1000-4000 rw-s fe000000 00:05 10 /dev/mem\nVmFlags: rd wr sh io\n"},
      {"proc/1/mountinfo",
       "24 27 0:5 / /dev rw - devtmpfs d rw\n25 27 0:6 / /sys rw - sysfs s rw\n"},
      {"proc/iomem",
       "00001000-7fffffff : System RAM\nfe000000-fe7fffff : PCI Bus 0000:00\n"
       "  fe000000-fe002fff : 0000:00:03.0\n"},
      {"sys/bus/pci/devices/0000:00:03.0/resource",
       "0x00000000fe000000 0x00000000fe002fff 0x0000000000040200\n"},
      {"sys/class/uio/uio0/maps/map0/addr", "0xfe000000\n"},
      {"sys/class/uio/uio0/maps/map0/size", "0x1000\n"},
  }};
  return files;
}

struct System {
  fuzz::Tree tree;
  System() {
    for (const char* const folder :
         {"sys/bus/pci/devices/0000:00:03.0", "sys/class/uio/uio0/maps/map0"})
      std::filesystem::create_directories(tree.path() + "/" + folder);
    tree.write("manifest", "vmem-tree 1\npage_size 4096\npfn_access full\n");
    tree.write("proc/1/stat", "1 (one) S 0 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0\n");
    for (const auto& [name, content] : originals()) tree.write(name, content);
  }
};

/// Every page of `vma` is there, the first one at `pa`, the others behind it.
bool lies_at(const std::string& pagemap, const Vma& vma, std::uint64_t pa) {
  for (std::uint64_t va = vma.range.start.value; va < vma.range.end.value; va += 4096, pa += 4096) {
    std::uint64_t entry = 0;
    if (va / 4096 * 8 + 8 > pagemap.size()) return false;
    std::memcpy(&entry, pagemap.data() + va / 4096 * 8, 8);
    if ((entry & present) == 0 || (entry & ((std::uint64_t{1} << 55) - 1)) != pa / 4096)
      return false;
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const System system;
  static std::size_t changed = 0;
  if (size == 0) return 0;
  const auto& original = originals()[changed];
  system.tree.write(original.first, original.second);
  changed = data[0] % originals().size();
  const std::string input(fuzz::text(data + 1, size - 1));
  system.tree.write(originals()[changed].first, input);
  const bool of_pagemap = changed == 1;

  const auto root = SysRoot::open(system.tree.path());
  fuzz::must(root.has_value(), "opening");
  const auto process = root->process(1);
  if (!process) return 0;
  const auto vmas = read_vmas(*process);
  if (!vmas) return 0;
  auto translator = open_translator(*process);
  if (!translator) return 0;
  VmaInspector inspector{*process};
  WindowSources sources{*root};

  std::vector<Check> checks;
  const std::size_t asked = std::min<std::size_t>(vmas->size(), 8);
  checks.reserve(4 * asked);
  std::vector<MappingCheck> list;
  for (std::size_t i = 0; i < asked; ++i) {
    const Vma& vma = (*vmas)[i];
    Check literal;
    literal.window = Window::literal({{0xfe000000}, {0xfe100000}}, root->page_size());
    literal.offset = 0;
    checks.push_back(literal);
    list.push_back({&checks.back(), &vma});
    if (auto ram = sources.ram()) {
      Check in_ram;
      in_ram.window = std::move(*ram);
      in_ram.sparse = true;
      in_ram.flags = {"wr", "!io"};
      checks.push_back(in_ram);
      list.push_back({&checks.back(), &vma});
    }
    if (auto derived = sources.derive(*process, vma, inspector.classify(vma))) {
      checks.push_back(std::move(*derived));
      list.push_back({&checks.back(), &vma});
    }
    Check cached;
    cached.cache = *cache_set("uc");
    checks.push_back(cached);
    list.push_back({&checks.back(), &vma});
  }
  auto results = check_mappings(*process, **translator, inspector, sources, list, {});
  fuzz::must(results.size() == list.size(), "one result for each");
  std::vector<ResultOf> of;
  for (std::size_t i = 0; i < results.size(); ++i)
    of.push_back({&results[i], 1, list[i].vma->range});
  find_overlaps(of);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const CheckResult& result = results[i];
    const Check& check = *list[i].check;
    bool failed = false;
    for (const Finding& finding : result.findings) failed = failed || is_failure(finding.kind);
    fuzz::must(failed == (result.verdict == Verdict::fail), "fails by its findings");
    if (result.verdict != Verdict::pass) continue;
    fuzz::must(result.findings.empty() && result.pages_ok == result.pages_checked, "a pass");
    fuzz::must(check.cache == 0, "pagemap tells of no caches");
    const std::uint64_t pages = list[i].vma->range.bytes() / 4096;
    fuzz::must(result.pages_checked != 0 && (check.sparse || result.pages_checked == pages),
               "all seen");
    if (check.offset)
      fuzz::must(lies_at(of_pagemap ? input : originals()[1].second, *list[i].vma, 0xfe000000),
                 "lies there");
  }
  return 0;
}
