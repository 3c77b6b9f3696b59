// SPDX-License-Identifier: MIT
/// What a DPDK primary tells of its memory by its telemetry socket.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "vmem/registration.hpp"
#include "vmem/sysroot.hpp"

namespace vmem::tools {

/// Asks the primary behind `socket` (dpdk_telemetry.v2 in its runtime directory; DPDK 23.07 and
/// newer know the questions, lib/eal/common/eal_common_memory.c), which must be `primary` itself.
/// Errors: not_found (no such socket, or somebody else behind it), not_supported (it does not serve
/// memory segments), malformed, io (no answer in time: 20 seconds for all calls of a run).
Result<DpdkMemory> read_telemetry(const std::string& socket, pid_t primary);

/// Paths of the telemetry sockets that somebody listens on: those of the network namespace that
/// `unix_sockets` ("proc/net/unix") tells of, as their owners named them.
Result<std::vector<std::string>> telemetry_sockets(const SysRoot& root, const char* unix_sockets);

/// Who listens on `socket`; 0: a process that this PID namespace does not show. Errors: as
/// read_telemetry(), and permission.
Result<pid_t> telemetry_owner(const std::string& socket);

}  // namespace vmem::tools
