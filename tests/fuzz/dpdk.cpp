// SPDX-License-Identifier: MIT
// The files of a DPDK primary, with bytes of them changed and their ends cut off: the input is a
// list of edits, five bytes each.
#include <algorithm>

#include "fuzz_tree.hpp"
#include "support/dpdk_files.hpp"
#include "vmem/registration.hpp"

using namespace vmem;

namespace {

std::map<std::string, std::string> originals() {
  test::DpdkFiles files = test::dpdk_files(3, 0x40000000, 0x200000);
  files.lists[0].bytes = std::uint64_t{70} * (2 << 20);
  files.zones.push_back({.name = "zone",
                         .iova = 0x40001000,
                         .address = 0x100201000,
                         .bytes = 4096,
                         .flags = 0x100000});
  return files.files();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Tree tree;
  static const auto whole = originals();
  static std::map<std::string, std::string> now;  // as they stand on disk
  auto files = whole;
  for (; size >= 5; data += 5, size -= 5) {
    auto file = files.begin();
    std::advance(file, data[0] % files.size());
    std::string& text = file->second;
    if (text.empty()) continue;
    const std::size_t at =
        (data[1] | std::size_t{data[2]} << 8 | std::size_t{data[3]} << 16) % text.size();
    if ((data[0] & 0x80) != 0)
      text.resize(at);
    else
      text[at] = static_cast<char>(data[4]);
  }
  for (const auto& [name, text] : files) {
    if (now[name] == text) continue;
    tree.write(name.c_str(), text);
    now[name] = text;
  }
  const auto root = SysRoot::open(tree.path());
  fuzz::must(root.has_value(), "opening");
  const auto memory = read_dpdk(*root, "");
  if (!memory) {
    fuzz::must(!to_string(memory.error()).empty(), "an error without words");
    return 0;
  }
  for (const DpdkSegment& s : memory->segments) {
    const DpdkList& list = memory->lists[s.list];
    fuzz::must(
        !s.range.empty() && list.range.start <= s.range.start && s.range.end <= list.range.end,
        "a segment outside of its list");
  }
  for (const Registration& r : registrations_of(*memory)) fuzz::must(!r.range.empty(), "empty");
  for (const Registration& r : memzones_of(*memory)) fuzz::must(!r.range.empty(), "empty zone");
  return 0;
}
