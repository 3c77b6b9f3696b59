// SPDX-License-Identifier: MIT
/// What regaudit's parts share: options, what was audited, and how it is shown.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli.hpp"
#include "vmem/registration.hpp"

namespace vmem::tools {

struct RegauditOptions : CommonOptions {
  std::string prefix;
  std::string directory;
  std::string pid;
  std::string access = "rw";
  std::string log;
  std::string junit;
  bool all = false;
};

/// A registration whose memory is not known: it cannot be judged.
struct Unlocated {
  std::uint64_t bytes = 0;
  std::string key, device;
  const char* reason = "";
  std::string members;  ///< of JSON, each with a comma before it
  bool dmabuf = false;  ///< there is no memory of the process to judge
};

/// The registrations of one process, judged.
struct AuditGroup {
  std::string label;  ///< for people: "rte", "rxe0"; may be empty
  pid_t pid = 0;
  std::string comm;
  std::optional<std::uint64_t> start_time;
  std::vector<Registration> registrations;
  std::vector<Audit> audits;
  std::vector<std::string> members;  ///< further members of JSON, for each registration, or none
  std::vector<Unlocated> unlocated;
  std::string json;                  ///< further members of the process
  LockLimits limits;
};

struct Report {
  const char* mode = "";  ///< "dpdk", "rdma", "ranges", "plan"
  PfnAccess access = PfnAccess::unknown;
  Backend backend = Backend::pagemap;
  std::vector<AuditGroup> groups;
  /// Further members of the JSON document, each with a comma before it.
  std::string json;
  /// Lines for people after the table.
  std::string text;
  bool negative = false;     ///< besides what the audits say
  bool unanswered = false;
};

/// Opens the source of page facts, audits `registrations` of `process` and adds the group.
/// False: it could not be done, and the reason has been said.
bool audit_into(Report& report, const RegauditOptions& options, const Process& process,
                std::string label, std::vector<Registration> registrations, bool planned,
                const Messages& messages);

/// {"severity":…}: one finding; its detail in words.
std::string finding_json(const AuditFinding& finding);
std::string detail_of(const AuditFinding& finding, bool bytes);
/// "clean", "warning", "error" or "unknown".
std::string_view verdict_of(const Audit& audit);

/// Prints table or JSON, writes --junit, and returns the exit status.
int show(const Report& report, const RegauditOptions& options, const SysRoot& root,
         const Messages& messages);
std::string regaudit_columns();

int run_dpdk(const RegauditOptions& given, const Messages& messages);
int run_rdma(const RegauditOptions& options, const std::vector<std::string>& words,
             const Messages& messages);
int run_ranges(const RegauditOptions& options, std::vector<std::string> words,
               const Messages& messages);
int run_plan(const RegauditOptions& options, std::vector<std::string> words,
             const Messages& messages);
int run_trace(int argc, char** argv, const Messages& messages);

}  // namespace vmem::tools
