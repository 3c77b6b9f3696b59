// SPDX-License-Identifier: MIT
/// What names of mappings will be in the next run of a program; for --print-policy.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "vmem/maps.hpp"
#include "vmem/sysroot.hpp"

namespace vmem::tools {

/// A name as a selector.
struct StableName {
  std::string glob;     ///< printable ASCII
  std::string literal;  ///< the name that it stands for; empty: more than one
};

/// Knows which parts of names are this run's: numbers of its processes, and what looks as if it
/// was drawn at random, in what the kernel numbers and in files that this run has made. A wildcard
/// stands in their place.
class NextRun {
 public:
  explicit NextRun(const Process& process);

  StableName mapping(const Vma& vma);
  /// A glob over comm.
  std::string comm(std::string_view comm) const;

 private:
  class Glob;
  void vary(Glob& glob, std::string_view text, bool file) const;
  bool numbered(std::string_view word) const;
  bool is_id(std::string_view digits) const;
  /// Whether this run has made the file of that path, or may have.
  bool made(const std::string& path, bool deleted);

  std::set<std::uint64_t> ids_;
  std::string root_;  ///< of the process, as a path of ours; empty: not to be looked at
  std::optional<double> start_;  ///< of the program, in seconds of the epoch
  std::map<std::string, bool> made_;
};

}  // namespace vmem::tools
