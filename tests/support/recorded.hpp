// SPDX-License-Identifier: MIT
/// A SystemModel or a fixture, expanded and opened: a test fails if that does not work.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "support/system_model.hpp"
#include "support/temp_dir.hpp"
#include "vmem/maps.hpp"
#include "vmem/pages.hpp"
#include "vmem/sysroot.hpp"

namespace vmem::test {

class Recorded {
 public:
  explicit Recorded(const SystemModel& system);
  /// A folder under tests/fixtures.
  explicit Recorded(const std::string& fixture);

  const SysRoot& root() const { return *root_; }
  Process process(int pid) const;
  const TempDir& directory() const { return directory_; }

 private:
  TempDir directory_;
  std::optional<SysRoot> root_;
};

/// One process with these maps, entries and files, on a machine as `manifest` says.
SystemModel one_process(std::string maps, std::vector<EntryRun> entries = {},
                        std::string manifest = "vmem-tree 1\npage_size 4096\npfn_access full\n");

/// An extent together with the start of the VMA it was delivered with (0: none).
struct VmaExtent {
  std::uint64_t vma_start = 0;
  Extent extent;
};

/// translate() over a range, collected. Fails the test on an error.
std::vector<VmaExtent> translate_range(const Process& process, VaRange range,
                                       const WalkOptions& options = {});
std::vector<VmaExtent> translate_whole(const Process& process, const WalkOptions& options = {});

/// "7f0000 +2 resident pfn=5 exclusive": for messages and for comparing at a glance.
std::string describe(const Extent& extent, PageSize page_size);

}  // namespace vmem::test
