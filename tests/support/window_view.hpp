// SPDX-License-Identifier: MIT
/// What the backends say of a mapping, in the form in which a guest's oracles say it (Run): through
/// the library, and through the real vtop.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/guest.hpp"
#include "support/subprocess.hpp"
#include "vmem/pages.hpp"

namespace vmem::test {

/// Whether `backend` works for this process. Fails the test where it must (VMEM_REQUIRE) and does
/// not, or where it refuses without a reason and a hint.
bool works(Backend backend);

/// [start, start + bytes) of process `pid` as `backend` shows it: resident pages with their
/// attribute, absent ones as holes with "-". Any other state fails the test, and so does an extent
/// of another backend.
std::vector<Run> seen_by(Backend backend, pid_t pid, std::uint64_t start, std::uint64_t bytes);

/// The same through `vtop -J --backend NAME`. `backend` is what must have answered: with "auto" for
/// a name any other than that fails the test.
std::vector<Run> seen_by_vtop(const std::string& name, const std::string& backend, pid_t pid,
                              std::uint64_t start, std::uint64_t bytes);

/// The sizes of the leaves that map it, as log2, in rising order: of `backend`'s extents, and of
/// vtop's.
std::vector<unsigned> leaves_seen_by(Backend backend, pid_t pid, std::uint64_t start,
                                     std::uint64_t bytes);

/// vtop in the root directory of the guest, as root or as `uid`.
RunResult guest_vtop(const std::vector<std::string>& arguments, std::optional<uid_t> uid = {});

}  // namespace vmem::test
