// SPDX-License-Identifier: MIT
#include "targets.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "callers_rights.hpp"

namespace vmem::tools {
namespace {

/// What somebody who typed `word` in place of a PID may have meant.
std::string meant(const SysRoot& root, std::string_view word) {
  if (word.starts_with("0x") || word.starts_with("0X") ||
      (word.size() > 7 &&
       word.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos)) {
    return "TARGET stands before the addresses; whose a physical address is, this version cannot "
           "look up: search the PA column of \"vtop -o pa,size,va,name PID\" of the processes that "
           "may have it";
  }
  if (const auto pids = root.find_by_comm(word); pids && !pids->empty())
    return fmt::format("a command of that name is running: use -n {}", word);
  return "TARGET is a PID, 'self', or -n NAME";
}

std::optional<pid_t> parse_pid(const SysRoot& root, std::string_view word,
                               const Messages& messages) {
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), pid);
  if (error == std::errc{} && end == word.data() + word.size() && pid > 0) return pid;
  messages.error(fmt::format("{}: not a PID", word), meant(root, word));
  return std::nullopt;
}

/// Why not everybody's name is seen; empty: all are.
std::optional<std::string_view> names_hidden(const SysRoot& root) {
  if (const auto hidden = root.hidden_processes()) return hidden;
  // Under hidepid=noaccess others are listed, and do not tell their names.
  const auto shut = [&](pid_t pid) {
    const auto name = root.read_file(fmt::format("proc/{}/comm", pid).c_str(), 4096);
    return !name && name.error().code == Errc::permission;
  };
  const auto all = root.processes();
  if (all && std::ranges::any_of(*all, shut))
    return "proc is mounted with hidepid: other users' names are not seen";
  return {};
}

/// The PIDs whose comm is the options' name; empty (and said) where there are none.
std::vector<pid_t> named(const SysRoot& root, const std::string& comm, const Messages& messages) {
  auto pids = root.find_by_comm(comm);
  if (!pids) {
    messages.error(pids.error());
    return {};
  }
  if (pids->empty()) {
    const auto hidden = names_hidden(root);
    messages.error(
        fmt::format("no process is named {}{}", comm, hidden ? ", or it is hidden by hidepid" : ""),
        hidden.value_or(""));
  }
  return std::move(*pids);
}

}  // namespace

std::optional<SysRoot> open_root(const CommonOptions& options, const Messages& messages) {
  if (!options.sysroot.empty()) {
    // Nothing of this system will be read.
    CallersRights rights;
    rights.keep();
    if (!rights.had()) {
      messages.error(Error{.os_errno = errno, .what = "taking the caller's rights", .path = {}});
      return std::nullopt;
    }
  }
  auto root = options.sysroot.empty() ? SysRoot::live() : SysRoot::open(options.sysroot);
  if (root) return std::move(*root);
  messages.error(root.error());
  return std::nullopt;
}

std::optional<Process> open_target(const CommonOptions& options, const std::string& target,
                                   const Messages& messages) {
  const auto root = open_root(options, messages);
  if (!root) return std::nullopt;
  const auto opened = [&](Result<Process> process) -> std::optional<Process> {
    if (process) return std::move(*process);
    messages.error(process.error());
    return std::nullopt;
  };
  if (options.comm.empty()) {
    if (target == "self") return opened(root->self());
    const auto pid = parse_pid(*root, target, messages);
    return pid ? opened(root->process(*pid)) : std::nullopt;
  }
  const std::vector<pid_t> pids = named(*root, options.comm, messages);
  if (pids.empty()) return std::nullopt;
  if (pids.size() == 1) return opened(root->process(pids.front()));
  std::string list;
  for (const pid_t found : pids) list += fmt::format(" {}", found);
  messages.error(fmt::format("{} processes are named {}:{}", pids.size(), options.comm, list),
                 "give one of these PIDs");
  return std::nullopt;
}

std::optional<std::vector<pid_t>> find_targets(const SysRoot& root, const CommonOptions& options,
                                               const std::vector<std::string>& words,
                                               const Messages& messages,
                                               std::optional<std::string_view>& partial) {
  std::vector<pid_t> pids;
  const auto add = [&](pid_t pid) {
    if (std::ranges::find(pids, pid) == pids.end()) pids.push_back(pid);
  };
  if (!options.comm.empty()) {
    const std::vector<pid_t> found = named(root, options.comm, messages);
    if (found.empty()) return std::nullopt;
    std::ranges::for_each(found, add);
    partial = names_hidden(root);
    if (partial)
      messages.error(
          fmt::format("there may be more processes named {}: {}", options.comm, *partial));
  }
  for (const std::string& word : words) {
    if (word == "self") {
      const auto self = root.self();
      if (!self) {
        messages.error(self.error());
        return std::nullopt;
      }
      add(self->pid());
      continue;
    }
    const auto pid = parse_pid(root, word, messages);
    if (!pid) return std::nullopt;
    add(*pid);
  }
  if (!pids.empty()) return pids;
  messages.error("TARGET is missing", "give a PID, 'self', or -n NAME; see --help");
  return std::nullopt;
}

}  // namespace vmem::tools
