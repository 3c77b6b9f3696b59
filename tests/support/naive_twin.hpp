// SPDX-License-Identifier: MIT
/// The oracle of the fast path: decodes a recorded pagemap one entry at a time, straight
/// from the table in Documentation/admin-guide/mm/pagemap.rst. It shares no decoding, no
/// merging and no parsing with the library, only the names of states.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "support/recorded.hpp"
#include "vmem/pages.hpp"

namespace vmem::test {

/// What a test knows of a VMA that it made.
struct TwinVma {
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  enum class Sight : std::uint8_t {
    ordinary,     ///< memory that pagemap shows
    pfnmap,       ///< smaps says `pf`
    maybe_blind,  ///< looks like a device, and there is no smaps
    gate,         ///< [vsyscall]
  } sight = Sight::ordinary;
};

struct TwinProcess {
  int pid = 1;
  std::uint64_t page_size = 4096;
  bool proven = true;  ///< the manifest says pfn_access full
  std::vector<TwinVma> vmas;
};

/// One page as the twin sees it.
struct TwinPage {
  PageState state = PageState::absent;
  Reason reason = Reason::none;
  std::uint64_t number = 0;  ///< PFN or swap offset
  std::uint8_t swap_type = 0;
  std::uint8_t bits = 0;
};

/// The table, for one entry.
TwinPage twin_decode(std::uint64_t entry, bool proven);

class NaiveTwin {
 public:
  NaiveTwin(const std::filesystem::path& tree, TwinProcess process);
  ~NaiveTwin();
  NaiveTwin(const NaiveTwin&) = delete;
  NaiveTwin& operator=(const NaiveTwin&) = delete;

  /// Empty if `extents` is exactly what Translator::walk() must deliver for `range` (page
  /// aligned): they tile it, each page is as the twin sees it, and none could be longer.
  std::string check_walk(VaRange range, const std::vector<Extent>& extents);

  /// The same for translate() over `range`, aligned or not. Without `gaps`, for
  /// translate_all().
  std::string check_translate(VaRange range, const std::vector<VmaExtent>& extents,
                              bool gaps = true);

  /// The same for one address.
  std::string check_one(VirtAddr address, const Translation& translation);

 private:
  std::optional<std::uint64_t> entry_of(std::uint64_t index);
  std::uint64_t entry(std::uint64_t va);
  const TwinVma* vma_at(std::uint64_t va) const;
  const TwinVma* vma_after(std::uint64_t va) const;
  bool shows_nothing(std::uint64_t from, std::uint64_t to);
  bool may_be_huge_leaf(std::uint64_t va);
  TwinPage in_vma(const TwinVma& vma, std::uint64_t va, bool vma_part_empty);
  std::string compare(const Extent& extent, std::uint64_t va, const TwinPage& page);
  std::string check_pages(const Extent& extent, const TwinVma* vma, bool vma_part_empty);

  TwinProcess process_;
  int fd_;
  std::vector<std::uint64_t> buffer_;
  std::uint64_t buffer_first_ = 0;
};

}  // namespace vmem::test
