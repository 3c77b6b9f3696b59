// SPDX-License-Identifier: MIT
/// What regaudit's parts share: options, what was audited, and how it is shown.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
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

/// A message and its hint.
struct Missing {
  std::string text, hint;
  friend bool operator==(const Missing&, const Missing&) = default;
};

struct Report {
  const char* mode = "";  ///< "dpdk", "rdma", "ranges", "plan"
  PfnAccess access = PfnAccess::unknown;
  Backend backend = Backend::pagemap;
  std::string_view flags_from;  ///< as json_prologue() says it
  std::vector<AuditGroup> groups;
  /// What could not be read, and so the answer is weaker: each raises the status.
  std::vector<Missing> missing;
  /// Further members of the JSON document, each with a comma before it.
  std::string json;
  /// Lines for people after the table.
  std::string text;
  bool negative = false;     ///< besides what the audits say
  bool unanswered = false;
};

/// Audits `registrations` of `process` with what `source` tells and adds the group.
/// `pinned_before`: pinned_bytes() of the parts before this one. False: it could not be done, and
/// the reason has been said.
bool audit_with(Report& report, Translator& source, const Process& process, std::string label,
                std::vector<Registration> registrations, bool planned, std::uint64_t pinned_before,
                const Messages& messages);

/// A process to be audited: odd lines of its maps are left out. audit_with() says which.
Result<Process> open_audited(const SysRoot& root, pid_t pid);

/// Takes over where the facts of `part` came from, and what it could not read.
void take_sources(Report& report, Report& part);

/// Opens the source of page facts, audits `registrations` of `process` and adds the group.
/// False: it could not be done, and the reason has been said.
bool audit_into(Report& report, const RegauditOptions& options, const Process& process,
                std::string label, std::vector<Registration> registrations, bool planned,
                const Messages& messages);

/// Who asks, and of what: what is to be done about a finding depends on it.
struct Asked {
  std::string_view mode = "dpdk";  ///< Report::mode
  bool recorded = false;
  bool root = false;  ///< the user ID is 0
  const Registration* registration = nullptr;
  const Audit* audit = nullptr;  ///< all that was found of it
};
Asked asked_in(const Report& report, const SysRoot& root);
/// One sentence, without a full stop.
std::string advice_for(const AuditFinding& finding, const Asked& asked);

/// {"severity":…}: one finding; its detail in words.
std::string finding_json(const AuditFinding& finding, const Asked& asked = {});
std::string detail_of(const AuditFinding& finding, bool bytes);
/// "clean", "warning", "error" or "unknown".
std::string_view verdict_of(const Audit& audit);

/// Shows a report, or a long one in parts as they come: the first with all that is not of a
/// registration. What a part holds may be forgotten once it was shown.
class Presenter {
 public:
  Presenter(const RegauditOptions& options, const SysRoot& root, const Messages& messages);

  /// False: the columns asked for are none, and it has been said.
  bool valid() const { return valid_; }
  /// False once nobody reads what is printed any more.
  bool part(const Report& report);
  /// What ends the output. `stopped`: why not all was audited, and what to do about it; empty: all
  /// was. Writes --junit, and returns the exit status.
  int end(const Report& report, std::string_view stopped = {}, std::string_view hint = {});

 private:
  struct Summary {
    std::uint64_t registrations = 0, bytes = 0, clean = 0, warning = 0, error = 0, unknown = 0;
  };
  void begin(const Report& report);
  void text_part(const Report& report);
  void json_part(const Report& report);
  void junit_part(const Report& report);
  void count(const Report& report);
  bool write_junit(const Report& report) const;

  const RegauditOptions& options_;
  const SysRoot& root_;
  const Messages& messages_;
  Output out_;
  std::vector<std::size_t> columns_;
  bool valid_ = false;
  bool begun_ = false, any_row_ = false, any_json_ = false;
  bool hidden_ = false, limits_missing_ = false;
  std::uint64_t with_unknown_ = 0;  ///< registrations of which something is not known
  std::set<std::string_view> unknown_kinds_;
  std::set<std::string, std::less<>> advised_;  ///< once is enough
  std::set<std::string_view> not_told_;
  Summary summary_;
  std::string junit_;
};

/// Shows a report whole, and returns the exit status.
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
