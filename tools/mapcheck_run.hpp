// SPDX-License-Identifier: MIT
/// One look of mapcheck: rules held against processes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli.hpp"
#include "mapcheck_rules.hpp"
#include "vmem/window.hpp"

namespace vmem::tools {

struct MapcheckOptions : CommonOptions {
  std::vector<std::string> expectations;
  std::string policy;
  bool automatic = false;
  bool all = false;
  bool print_policy = false;
  std::string junit;
  bool tap = false;
  bool openmetrics = false;
  std::optional<double> watch;  ///< seconds
  std::uint64_t count = 0;      ///< looks; 0: no end
};

/// A check and a mapping that it selected.
struct CheckedMapping {
  const Check* check = nullptr;
  std::string window;       ///< as text; "?" where none could be derived
  pid_t pid = 0;            ///< 0: no process
  std::string comm;
  std::optional<Vma> vma;   ///< empty: no mapping was selected
  Classification what;
  std::optional<VmFlags> flags;
  CheckResult result;
  std::string reason;  ///< why nothing could be judged; empty if something was
  std::string hint;    ///< to that
};

/// A process that could not be looked at, or not at all of it.
struct Unchecked {
  pid_t pid = 0;
  std::string comm;
  std::string reason;
  std::string hint;
};

struct Report {
  std::vector<CheckedMapping> rows;  ///< in the order of the rules, then of processes and addresses
  std::vector<std::string> skipped;  ///< optional checks that selected nothing
  std::vector<Unchecked> unchecked;
  PfnAccess access = PfnAccess::unknown;
  Backend backend = Backend::pagemap;
  std::string_view flags_from;  ///< as json_prologue() says it
  std::deque<Check> derived;  ///< the checks of --auto
  std::uint64_t pass = 0, fail = 0, unverified = 0;
  std::string why;  ///< of the first that is unverified
  std::string hint;

  Status status() const;
};

/// What to look at: one process, or those that rules name, or all.
struct Subjects {
  SysRoot root;
  std::optional<Process> one;  ///< empty: every process that a rule names, or with `all` every one
  bool all = false;
};

Report look(const Subjects& subjects, const MapcheckOptions& options, std::vector<Rule>& rules);

/// What a mapping is now, as a check that it passes: for a mapping of which --auto can derive
/// nothing. Empty: its pages cannot be seen.
std::optional<Check> describe(const Process& process, Translator& translator,
                              VmaInspector& inspector, WindowSources& sources, const Vma& vma,
                              Classification what);
/// "0x90000000+0x4000000,perms=rw-s,cache=uc-": all but what it selects.
std::string expectation(const Check& check);

struct PrintedPolicy {
  std::string text;  ///< TOML; what is left out is named in comments
  std::string lacks;  ///< a message, where a mapping should have been described and is not
  std::string hint;  ///< to that
  bool changed = false;
};

/// A policy that the process passes as it is now, and that the next run of its program passes.
Result<PrintedPolicy> describe_policy(const Process& process, Translator& translator);

}  // namespace vmem::tools
