// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>

#include "fuzz_tree.hpp"
#include "support/page_table_twin.hpp"

using namespace vmem;
using namespace vmem::page_table;

/// Any 64 bits as entries of any level, in every format: what is said of each is bounded, and whole
/// tables say what their entries do.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 8) return 0;
  Format format;
  if ((data[0] & 1) != 0) {
    format.levels = (data[0] & 2) != 0 ? 5 : 4;
    format.saved_dirty = (data[0] & 4) != 0;
  } else {
    constexpr std::uint8_t page_shifts[] = {12, 14, 16, 12};
    constexpr std::uint8_t swap_type_shifts[] = {0, 2, 3, 6};
    format.architecture = Architecture::arm64;
    format.page_shift = page_shifts[data[0] >> 1 & 3];
    format.swap_type_shift = swap_type_shifts[data[0] >> 3 & 3];
    format.levels =
        static_cast<std::uint8_t>(std::min(2 + (data[1] & 3), format.page_shift == 12   ? 5
                                                              : format.page_shift == 14 ? 4
                                                                                        : 3));
    format.lpa2 = (data[0] & 32) != 0;
    if ((data[0] & 64) != 0) format.mair = 0x000000040044f0ff;
  }
  if ((data[0] & 128) != 0) format.encryption_mask = std::uint64_t{1} << (20 + data[2] % 32);
  const unsigned level = data[3] % format.levels;
  const Limits above{(data[4] & 1) != 0, (data[4] & 2) != 0, (data[4] & 4) != 0};

  std::vector<std::uint64_t> entries((size - 8) / 8);
  if (!entries.empty()) std::memcpy(entries.data(), data + 8, entries.size() * 8);
  if (entries.size() > format.entries()) entries.resize(format.entries());
  const auto agree = [](const std::string& complaint) {
    fuzz::must(complaint.empty(), complaint.c_str());
  };
  for (const std::uint64_t raw : entries) agree(test::complaint(format, level, raw));
  const VirtAddr va{std::uint64_t{data[5]} << format.shift(level)};
  agree(test::complaint(format, level, va, entries, above));
  const std::size_t calls = 1 + data[6];
  for (const test::Into into : {test::Into::builder, test::Into::sink}) {
    const auto stopped = test::decode_all(format, level, va, entries, above, into, calls);
    fuzz::must(stopped.calls.size() <= calls, "called after it had enough");
    fuzz::must(stopped.calls.size() < calls || !stopped.finished, "finished, it says");
    agree(test::complaint(format, level, va, entries, above, stopped));
  }
  return 0;
}
