// SPDX-License-Identifier: MIT
/// Where the kernel maps all of physical memory, and how many levels its page tables have. A wrong
/// base or level does not fail, it just says "not present": so whatever was found is proven on a
/// page of our own.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "bpf_program.hpp"
#include "vmem/sysroot.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// What /proc/kcore says, an ELF core file of the running kernel.
struct Kcore {
  std::vector<std::uint64_t> bases;  ///< p_vaddr - p_paddr of what it maps as RAM; distinct
  std::optional<std::uint64_t> encryption_mask;
};
/// Errors: malformed.
Result<Kcore> read_kcore(const Fd& fd);

/// The bases, aligned as KASLR aligns them, by which every one of `pointers` is a frame of a slab.
/// `flags` is /proc/kpageflags.
std::vector<std::uint64_t> calibrate(const Fd& flags, const std::vector<PaRange>& ram,
                                     const std::vector<std::uint64_t>& pointers);

/// The address of a symbol in the text of /proc/kallsyms; empty if it is not there, or hidden
/// (kptr_restrict).
std::optional<std::uint64_t> find_symbol(std::string_view kallsyms, std::string_view name);

/// The symbol of exactly this address, a module's as "name [module]"; empty if it is not shown.
std::string symbol_at(std::string_view kallsyms, std::uint64_t address);

/// Whether a task that the kernel started at `start_boottime` (nanoseconds) is the one that
/// /proc/PID/stat shows with the start time `ticks`.
bool started_at(const SysRoot& root, std::uint64_t start_boottime, std::uint64_t ticks);

/// Finds it and proves it, and lets `program` use it. Errors say what was missing.
Result<void> prove_direct_map(const SysRoot& root, BpfProgram& program);

/// Whether by `map` the program finds the frame of a page of our own.
Result<bool> proves(const SysRoot& root, BpfProgram& program, const DirectMap& map);

}  // namespace vmem
