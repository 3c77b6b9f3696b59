// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <random>

#include "support/naive_twin.hpp"
#include "support/system_model.hpp"

namespace vmem::test {

struct RandomOptions {
  std::uint64_t page_size = 4096;
  std::size_t vmas = 8;                ///< at most
  std::uint64_t pages_per_vma = 600;   ///< at most
  std::uint64_t pages_per_run = 40;    ///< at most, but for runs that imitate huge leaves
  std::uint64_t largest_gap = 9000;    ///< pages between VMAs, at most
};

/// A machine with one process whose VMAs, gaps and entries are random, and what its twin
/// has to know of it. Equal seeds give equal systems.
struct RandomSystem {
  SystemModel system;
  TwinProcess twin;
};
RandomSystem random_system(std::mt19937_64& random, const RandomOptions& options);

}  // namespace vmem::test
