// SPDX-License-Identifier: MIT
/// proc/PID/extents of a recorded system: what a process's page tables, or its pagemap, said, by
/// runs of pages. It stands in the place of pagemap, takes a line where that takes gigabytes, and
/// can hold what pagemap cannot: the leaves of VM_PFNMAP mappings with their size and cache
/// attribute.
///
///     vmem-extents 1 SOURCE
///     VA PAGES WHAT [bits=NAME,…] [leaf=BYTES] [pte=NAME,…] [cache=NAME]
///     …
///     end
///
/// SOURCE is a Backend. VA is hexadecimal and page aligned, all other numbers are decimal or, with
/// 0x, hexadecimal. WHAT is `pfn=N`, which grows by one for each page; `entry=N`, a pagemap entry,
/// whose PFN, swap offset or frame that it names grows so; `hidden`; `guard`. `bits` are page_bit's
/// names, `pte` pte_bit's; where a line has pte= or cache=, what its pte= does not name is not set.
/// Lines ascend; pages of no line are empty; of a leaf all pages are there. What SOURCE cannot have
/// told is refused. A file without `end` has been cut off.
#pragma once

#include <cstddef>
#include <string_view>
#include <vector>

#include "vmem/pages.hpp"

namespace vmem {

/// Reads lines one by one.
class ExtentsParser {
 public:
  /// `proven`: see pagemap::decode().
  ExtentsParser(PageSize page_size, bool proven) : page_size_(page_size), proven_(proven) {}

  void reserve(std::size_t extents) { extents_.reserve(extents); }

  /// Null, or what is wrong with this line, without its newline.
  const char* line(std::string_view text);
  /// Null, or what is wrong if this was all.
  const char* finish() const;

  Backend source() const { return source_; }
  /// Ascending, not overlapping, below the last page there is.
  std::vector<Extent>& extents() { return extents_; }

 private:
  const char* header(std::string_view text);
  const char* run(std::string_view text);

  PageSize page_size_;
  bool proven_;
  bool begun_ = false;
  bool ended_ = false;
  Backend source_ = Backend::pagemap;
  std::vector<Extent> extents_;
};

}  // namespace vmem
