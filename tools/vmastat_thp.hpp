// SPDX-License-Identifier: MIT
/// Why a range of memory is not on huge pages: what the kernel's settings, the process, the mapping
/// and its place say. Source: thp_vma_allowable_orders() in mm/huge_memory.c and
/// Documentation/admin-guide/mm/transhuge.rst.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "render.hpp"
#include "vmem/stats.hpp"

namespace vmem::tools {

/// What holds for the whole machine; what is not there is empty.
struct ThpMachine {
  using Numbers = std::vector<std::pair<std::string, std::uint64_t>>;
  struct Size {
    std::uint64_t bytes = 0;
    std::string enabled, shmem_enabled;  ///< "always", "inherit", "madvise", ...
    Numbers stats;  ///< by the kernel's names
  };
  std::string enabled, shmem_enabled, defrag, use_zero_page;
  std::vector<std::pair<std::string, std::string>> khugepaged;
  std::vector<Size> sizes;  ///< ascending
  Numbers counters;  ///< of /proc/vmstat, since boot
  std::optional<Error> error;  ///< of the first file that is there and could not be read

  static ThpMachine read(const SysRoot& root);
  bool told() const { return !enabled.empty(); }
};

/// Whether prctl(PR_SET_THP_DISABLE) lets the process have huge pages; empty: the system does not
/// say it.
Result<std::optional<bool>> thp_allowed(const Process& process);

/// What is asked of one mapping.
struct ThpQuestion {
  const Vma& vma;
  Classification classification;
  const MemorySums& sums;
  std::optional<VmFlags> flags;
  std::optional<bool> eligible;  ///< smaps' THPeligible
  std::optional<bool> allowed;  ///< thp_allowed()
  bool kernel_file = false;  ///< a file of the kernel's own shmem mount: memfd, SysV, shared
  PageSize page_size;
};

struct ThpAnswer {
  std::string_view why;  ///< one of thp_words(); empty: not known
  std::uint64_t room = 0;  ///< bytes that aligned huge pages could hold
};

ThpAnswer thp_of(const ThpMachine& machine, const ThpQuestion& question);

/// What a word of `why` means.
std::string_view thp_meaning(std::string_view why);

/// Lines for people, each of the form "name=value ...".
void append_thp_text(Output& out, const ThpMachine& machine);
/// {"enabled":...}, or null where the system does not tell.
void append_thp_json(Output& out, const ThpMachine& machine);

}  // namespace vmem::tools
