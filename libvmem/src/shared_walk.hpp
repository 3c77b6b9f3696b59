// SPDX-License-Identifier: MIT
/// One walk by two readers, whatever they read from.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vmem/function_ref.hpp"
#include "vmem/pages.hpp"

namespace vmem {

/// Yields runs that tile the range in order, until the sink returns false.
using RunReader = FunctionRef<Result<void>(VaRange, ExtentSink)>;

/// How a range is cut into pieces.
struct Pieces {
  std::uint64_t smallest;  ///< bytes; they begin at multiples of it
  std::uint64_t first;     ///< bytes to begin with
  std::size_t runs;  ///< held for a piece: more take another reading
  std::size_t ahead;  ///< pieces read before they are delivered, at most
};

/// Two readers take turns at pieces of `range`, which are delivered in order to `sink`, by the
/// calling thread. `mine` is called by it, `other` by a thread of its own; where no thread is to be
/// had, `mine` reads all.
Result<void> walk_by_two(RunReader mine, RunReader other, VaRange range, const WalkOptions& options,
                         const Pieces& pieces, ExtentSink sink);

/// CPU time that the calling thread has taken: a second thread pays from some work of our own on,
/// not of whoever else is running.
double thread_seconds();

}  // namespace vmem
