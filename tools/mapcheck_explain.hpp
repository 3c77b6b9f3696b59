// SPDX-License-Identifier: MIT
/// mapcheck explain: whether mmap() of physical addresses through /dev/mem succeeds, and why not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli.hpp"
#include "vmem/physmap.hpp"
#include "vmem/sysroot.hpp"

namespace vmem::tools {

enum class Mappable : std::uint8_t { allowed, refused, unknown };
std::string_view to_string(Mappable);

/// Physical addresses of which the same is to be said.
struct Explanation {
  PaRange range;
  Mappable answer = Mappable::unknown;
  std::string region;  ///< of /proc/iomem, outermost first: "PCI Bus 0000:00/0000:03:00.0"
  std::string why;
  std::string instead;  ///< another way to this memory; empty: none is known
};

/// What the system, as far as it tells, would do for a reader with CAP_SYS_RAWIO. On the live one
/// that is tried, too: pages are mapped without access (PROT_NONE), and unmapped at once.
/// Errors: as Iomem::read().
Result<std::vector<Explanation>> explain(const SysRoot& root, PaRange asked);

/// `words`: PA, PA+LEN or PA-END each. Prints a line (or with options.json a document) and returns
/// the exit status: 0 all are allowed, 1 one is refused, 2 one is not known.
int explain_command(const CommonOptions& options, const std::vector<std::string>& words,
                    const Messages& messages);

}  // namespace vmem::tools
