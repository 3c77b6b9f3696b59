// SPDX-License-Identifier: MIT
/// What the mappings of a process tell of DPDK: the config that it shares, or, where it shares none
/// (--in-memory, --no-shconf), its huge pages by their names.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/registration.hpp"
#include "vmem/sysroot.hpp"

namespace vmem::tools {

/// Segments of one list that follow each other in the address space.
struct SegmentRun {
  std::string list;  ///< "seg_2", "rtemap", "nohuge", "anon_hugepage"
  std::uint64_t first = 0, last = 0;  ///< indexes within the list, as the names or offsets say
  VaRange range;
  std::uint64_t page_size = 0;  ///< 0: it could not be told
  std::string path;  ///< of the first one, as maps names it
  friend bool operator==(const SegmentRun&, const SegmentRun&) = default;
};

struct DpdkMaps {
  pid_t pid = 0;
  std::string comm;
  // The first `config` of a runtime directory; empty: none.
  std::string directory;
  std::uint64_t config_address = 0;
  bool config_deleted = false;
  std::string config_file;  ///< device and inode, as /proc/locks writes them
  std::string library;  ///< "librte_eal.so.23.0"; empty: not mapped
  std::vector<SegmentRun> runs;
  std::string socket;  ///< of telemetry, where that gave it away; empty: not looked for

  std::uint64_t bytes() const;
  bool looks_like_dpdk() const { return !runs.empty() || !library.empty() || !socket.empty(); }
  /// "64.0M of huge pages, /memfd:seg_2-*"
  std::string evidence(bool plain_bytes) const;
};

/// With `any_huge` huge pages count whatever they are called: somebody says that it is DPDK.
/// Errors: as VmaReader; none of the result can be had by halves.
Result<DpdkMaps> read_dpdk_maps(const Process& process, bool any_huge);

/// What to ask about each run. Its IOVA and socket are not known.
std::vector<Registration> registrations_of(const DpdkMaps& maps);

}  // namespace vmem::tools
