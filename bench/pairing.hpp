// SPDX-License-Identifier: MIT
/// Times two things in turn, so that what disturbs one disturbs the other.
#pragma once

#include <benchmark/benchmark.h>

#include <string>

#include "vmem/function_ref.hpp"
#include "vmem/pages.hpp"
#include "vmem/sysroot.hpp"
#include "workload.hpp"

namespace vmem::bench {

/// One row: `ours` is the row's time; the counters `plain` (seconds) and `ratio` are medians
/// over the pairs. Each returns an error message, empty if all went well. `agree` is asked
/// after each pair whether both came to the same result.
struct Row {
  FunctionRef<std::string()> ours;
  FunctionRef<std::string()> plain;
  FunctionRef<bool()> agree;
  std::uint64_t operations = 1;  ///< in one call of either: times are given for one
  int warm_up = 0;  ///< calls of `ours`, not timed, before each that is
};
void measure(benchmark::State& state, const Row& row);

/// Pairs to take: VMEM_BENCH_PAIRS, or `usual`.
int pairs(int usual);

/// A target process with all that looks at it. One lives at a time: it is kept for the next
/// row on the same workload.
struct Subject {
  Target target;
  Process process;
  std::unique_ptr<Translator> translator;
  std::string path(const char* name) const {
    return "/proc/" + std::to_string(target.pid()) + "/" + name;
  }
};
/// Null, with the state's error set, where the machine cannot make the workload.
Subject* subject(benchmark::State& state, const std::string& workload);
void end_subject();

void register_walks();
void register_lookups();

}  // namespace vmem::bench
