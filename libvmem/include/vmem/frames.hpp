// SPDX-License-Identifier: MIT
/// What the kernel says of page frames: /proc/kpageflags, kpagecount, kpagecgroup.
/// Source: Documentation/admin-guide/mm/pagemap.rst, fs/proc/page.c.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/function_ref.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// The facts of one frame. What a file did not tell is absent from `known`.
struct FrameFacts {
  std::uint64_t flags = 0;      ///< kpageflags bits, but for those of the last two members
  std::uint64_t mapcount = 0;   ///< kpagecount; a folio average under CONFIG_NO_PAGE_MAPCOUNT
  std::uint64_t memcg_inode = 0;///< kpagecgroup; 0: charged to no memory cgroup

  static constexpr std::uint8_t has_flags = 1, has_mapcount = 2, has_memcg = 4, has_all = 7;
  std::uint8_t known = 0;

  /// Bits that the kernel set and that are not true: "anon" and "ksm" of slab memory, and "ksm" of
  /// what is never merged.
  std::uint64_t disproved = 0;
  /// Bits that the kernel set and that say nothing: on a kernel that says "ksm" of all anonymous
  /// memory, of pages that may be merged. They are not known, rather than clear.
  std::uint64_t doubtful = 0;

  /// The kernel's word.
  constexpr std::uint64_t raw() const { return flags | disproved | doubtful; }

  friend bool operator==(const FrameFacts&, const FrameFacts&) = default;
};

/// Whether the flag "ksm" (bit 21) means that on a kernel of this release: from 6.10 to 6.16 all
/// anonymous memory has it (stable_page_flags() in fs/proc/page.c compared a mask of two bits, of
/// which one is set on all). Of a release that is not known: yes. FrameReader goes by it for
/// recorded systems; of a living kernel it tries a page of its own.
VMEM_EXPORT bool tells_ksm(std::string_view kernel_release);

/// The kernel's name of a kpageflags bit in lower case ("lru", "compound_head"), or
/// "bitN" for one without a name. 0 <= bit < 64.
VMEM_EXPORT std::string frame_flag_name(unsigned bit);

/// The names of all bits set, ascending.
VMEM_EXPORT std::vector<std::string> frame_flag_names(std::uint64_t flags);

/// Reads frame facts in batches: the kernel takes 65-100 ns per frame and file, so ask
/// only for what is shown, and for whole runs.
class VMEM_EXPORT FrameReader {
 public:
  /// Opens those files of the facts `wanted` (FrameFacts::has_*) that `root` has. A file that
  /// is missing or refused leaves its fact unknown; it is an error only if none can be opened
  /// (permission or not_found).
  static Result<FrameReader> open(const SysRoot& root, std::uint8_t wanted = FrameFacts::has_all);
  FrameReader(FrameReader&&) noexcept;
  FrameReader& operator=(FrameReader&&) noexcept;
  ~FrameReader();

  /// Why a file that is there could not be opened, the first one; null if all could. What a kernel
  /// or a recording does not have is no failure.
  const Error* missing() const;

  /// Calls `sink(first, frames, facts)` for runs of frames with equal facts, which tile
  /// [first, first + frames) in order, until it returns false. Frames past the end of the
  /// kernel's files have nothing known.
  Result<void> read(Pfn first, std::uint64_t frames,
                    FunctionRef<bool(Pfn, std::uint64_t, const FrameFacts&)> sink);

 private:
  struct State;
  explicit FrameReader(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace vmem
