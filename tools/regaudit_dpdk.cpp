// SPDX-License-Identifier: MIT
/// regaudit dpdk: which DPDK primaries there are, whose files are whose, and their audit.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "callers_rights.hpp"
#include "regaudit.hpp"
#include "regaudit_segments.hpp"
#include "regaudit_telemetry.hpp"
#include "targets.hpp"

namespace vmem::tools {
namespace {

/// A process that maps a `config` of DPDK.
struct User {
  pid_t pid = 0;
  std::string directory;  ///< as its maps name it
  std::uint64_t config_address = 0;
  bool deleted = false;  ///< config has no name any more
  std::string file;       ///< device and inode, as /proc/locks writes them
  bool holds_lock = false;
};

std::string prefix_of(const std::string& directory) {
  return directory.substr(directory.rfind('/') + 1);
}

/// The files on which some process holds a write lock, as "08:01:1234", with that process. A
/// primary holds one on its config for as long as it lives (eal_proc_type_detect()).
std::map<std::string, pid_t> write_locks(const SysRoot& root) {
  std::map<std::string, pid_t> locks;
  const auto text = root.read_file("proc/locks", 16 << 20);
  if (!text) return locks;
  std::string_view rest = *text;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view line = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    std::vector<std::string_view> words;
    while (!line.empty()) {
      const std::size_t space = std::min(line.find(' '), line.size());
      if (space != 0) words.push_back(line.substr(0, space));
      line.remove_prefix(std::min(space + 1, line.size()));
    }
    // "1: POSIX ADVISORY WRITE 18092 00:1a:533 136 17543"
    if (words.size() < 8 || words[1] != "POSIX" || words[3] != "WRITE") continue;
    pid_t pid = 0;
    std::from_chars(words[4].data(), words[4].data() + words[4].size(), pid);
    locks.emplace(words[5], pid);
  }
  return locks;
}

/// What a look at every process found, and where it could not look.
struct Search {
  std::size_t processes = 0;  ///< with user memory, read or not
  std::vector<User> users;     ///< of DPDK's shared files, ascending by PID
  std::vector<DpdkMaps> others;  ///< look like DPDK and share no files
  std::vector<std::pair<pid_t, std::string>> refused;  ///< PID and comm
  std::vector<std::string> foreign_sockets;  ///< of telemetry; who listens is not shown
  bool made = false;             ///< every process was looked at, as far as possible
  bool listed = true;            ///< the list of processes could be read
  std::optional<std::string_view> hidden;  ///< why the list does not have all of them

  bool complete() const { return listed && !hidden && refused.empty() && foreign_sockets.empty(); }
};

void look_at(const SysRoot& root, pid_t pid, Search& search) {
  const auto gone = [](const Error& error) {
    return error.code == Errc::no_process || error.code == Errc::no_user_memory ||
           error.code == Errc::process_changed;
  };
  const auto process = open_audited(root, pid);
  if (!process) {
    if (gone(process.error())) return;
    ++search.processes;
    search.refused.emplace_back(pid, "");
    return;
  }
  auto maps = read_dpdk_maps(*process, false);
  if (!maps && gone(maps.error())) return;
  ++search.processes;
  if (!maps) {
    // A recorded tree need not have the maps of everybody.
    if (!root.recorded() || maps.error().code != Errc::not_found)
      search.refused.emplace_back(pid, process->comm());
    return;
  }
  if (!maps->directory.empty()) {
    search.users.push_back({.pid = process->pid(),
                            .directory = maps->directory,
                            .config_address = maps->config_address,
                            .deleted = maps->config_deleted,
                            .file = maps->config_file});
  } else if (maps->looks_like_dpdk()) {
    search.others.push_back(std::move(*maps));
  } else if (!process->odd_lines().empty()) {
    search.refused.emplace_back(pid, process->comm());  // what was left out may be DPDK's
  }
}

/// Primaries that nothing but a telemetry socket gives away.
void look_at_sockets(const SysRoot& root, Search& search) {
  const auto sockets = telemetry_sockets(root, "proc/net/unix");
  if (!sockets) return;
  for (const std::string& path : *sockets) {
    const auto owner = telemetry_owner(path);
    if (!owner && owner.error().code == Errc::not_found) continue;  // of another mount namespace
    if (!owner || *owner == 0) {
      search.foreign_sockets.push_back(path);
      continue;
    }
    const auto known = [&](const auto& one) { return one.pid == *owner; };
    if (std::ranges::any_of(search.users, known) || std::ranges::any_of(search.others, known) ||
        std::ranges::any_of(search.refused, [&](const auto& r) { return r.first == *owner; }))
      continue;
    const auto process = open_audited(root, *owner);
    if (!process) continue;
    if (auto maps = read_dpdk_maps(*process, true)) {
      maps->socket = path;
      search.others.push_back(std::move(*maps));
    }
  }
}

void add_locks(const SysRoot& root, Search& search) {
  const auto locks = write_locks(root);
  for (User& user : search.users) {
    const auto lock = locks.find(user.file);
    user.holds_lock = lock != locks.end() && lock->second == user.pid;
  }
}

Search look_for_dpdk(const SysRoot& root) {
  Search search{.made = true};
  const auto pids = root.processes();
  if (!pids) {
    search.listed = false;
    return search;
  }
  search.hidden = root.hidden_processes();
  for (const pid_t pid : *pids) {
    if (interrupted()) return search;
    look_at(root, pid, search);
  }
  if (!root.recorded()) look_at_sockets(root, search);
  add_locks(root, search);
  return search;
}

/// "12 (sshd), 15 (agetty) and 7 more"
std::string names_of(const std::vector<std::pair<pid_t, std::string>>& processes) {
  constexpr std::size_t most = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(most, processes.size()); ++i) {
    const auto& [pid, comm] = processes[i];
    text += fmt::format("{}{}{}", i == 0 ? "" : ", ", pid,
                        comm.empty() ? "" : fmt::format(" ({})", comm));
  }
  if (processes.size() > most) text += fmt::format(" and {} more", processes.size() - most);
  return text;
}

std::string search_json(const Search& search) {
  if (!search.made) return R"(,"search":null)";
  std::string text =
      fmt::format(R"(,"search":{{"processes":{},"complete":{},"hidden":{},"refused":[)",
                  search.listed ? std::to_string(search.processes) : "null", search.complete(),
                  search.hidden ? json_string(*search.hidden) : "null");
  for (const auto& [pid, comm] : search.refused) {
    if (&pid != &search.refused.front().first) text += ',';
    text += fmt::format(R"({{"pid":{},{}}})", pid,
                        comm.empty() ? "\"comm\":null" : json_name("comm", comm));
  }
  text += R"(],"sockets":[)";
  for (const std::string& path : search.foreign_sockets) {
    if (&path != &search.foreign_sockets.front()) text += ',';
    text += json_string(path);
  }
  return text + "]}";
}

/// One set of runtime files, and who uses them.
struct Instance {
  std::string directory;    ///< for people
  std::optional<SysRoot> tree;
  std::string path;         ///< within the tree
  std::vector<User> users;
  std::string telemetry;  ///< the socket that tells all; empty: the files do
  bool by_caller = false;  ///< named on the command line, and no running process's
};

pid_t primary_of(const Instance& instance) {
  for (const User& user : instance.users) {
    if (user.holds_lock) return user.pid;
  }
  // Without locks to go by: the primary was there first.
  return instance.users.front().pid;
}

/// What the files say; an error names the whole path. Of a version whose files are not known a
/// live primary is asked itself.
Result<DpdkMemory> read_files(const Instance& instance) {
  if (!instance.telemetry.empty())
    return read_telemetry(instance.telemetry, instance.users.front().pid);
  const auto read = [&] {
    std::optional<CallersRights> rights;
    if (instance.by_caller) rights.emplace();
    return read_dpdk(*instance.tree, instance.path);
  };
  auto memory = read();
  if (memory || !instance.path.empty()) return memory;
  if (memory.error().code == Errc::not_supported && !instance.users.empty()) {
    const pid_t primary = primary_of(instance);
    const std::string name = instance.directory + "/dpdk_telemetry.v2";
    auto told = read_telemetry(fmt::format("/proc/{}/root{}", primary, name), primary);
    if (!told && told.error().code == Errc::permission) told = read_telemetry(name, primary);
    if (told || told.error().code == Errc::malformed) return told;
    memory.error().hint =
        told.error().code == Errc::not_supported
            ? "known are 20.11 and 22.11; telemetry serves memory segments from 23.07 on"
        : told.error().code == Errc::not_found
            ? "known are 20.11 and 22.11, and the primary has no telemetry socket of its own"
            : "known are 20.11 and 22.11, and the primary's telemetry socket does not answer";
  }
  memory.error().path = instance.directory + "/" + memory.error().path;
  return memory;
}

/// Says why they could not be read; a version that is not known, by its name.
void say_unreadable(const Instance& instance, const Error& error, const Messages& messages) {
  const auto version = error.code == Errc::not_supported && instance.tree
                           ? read_dpdk_version(*instance.tree, instance.path)
                           : std::unexpected(Error{});
  if (!version) return messages.error(error);
  messages.error(fmt::format("{}: {}: DPDK {}", error.what, error.path, printable(*version)),
                 error.hint != nullptr ? error.hint : "");
}

std::vector<std::string> runtime_folders() {
  std::vector<std::string> folders;
  const auto environment = [&](const char* name) {
    if (const char* value = std::getenv(name); value != nullptr && *value == '/')
      folders.push_back(std::string(value) + "/dpdk");
  };
  environment("RUNTIME_DIRECTORY");
  folders.emplace_back("/var/run/dpdk");
  environment("XDG_RUNTIME_DIR");
  folders.emplace_back("/tmp/dpdk");
  return folders;
}

/// The process that holds a primary's lock on `config`; 0: nobody does; -1: one that this PID
/// namespace does not show. Empty: it cannot be told.
std::optional<pid_t> lock_holder(const SysRoot& tree, const std::string& config) {
  if (tree.recorded() && config.find('/') != std::string::npos) return {};
  const auto file = tree.open_file(config.c_str());
  if (!file) return {};
  struct flock lock{};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_len = 1;
  if (fcntl(file->get(), F_GETLK, &lock) != 0) return {};
  if (lock.l_type == F_UNLCK) return 0;
  return lock.l_pid > 0 ? lock.l_pid : -1;
}

class Finder {
 public:
  Finder(const SysRoot& root, const RegauditOptions& options, const Messages& messages)
      : root_(root), options_(options), messages_(messages) {}

  /// Whether a primary was found whose files could not be opened; it has been said.
  bool missed() const { return said_; }
  const Search& search() const { return search_; }
  /// Processes whose mappings are all there is to go by.
  const std::vector<DpdkMaps>& others() const { return chosen_; }

  /// The instances that the options name. None, and no others: it has been said.
  std::vector<Instance> find() {
    if (!options_.directory.empty() && !options_.pid.empty()) {
      // Nobody is looked for.
      look_at(root_, pid_asked(), search_);
      add_locks(root_, search_);
      return one(by_directory());
    }
    search_ = look_for_dpdk(root_);
    if (interrupted()) return {};
    if (!options_.directory.empty()) return one(by_directory());
    if (!options_.prefix.empty()) return one(by_prefix());
    std::vector<Instance> all;
    if (!options_.pid.empty()) {
      by_pid(all);
      return all;
    }
    for (const User& user : search_.users) {
      if (std::ranges::any_of(all,
                              [&](const Instance& i) { return i.users.front().file == user.file; }))
        continue;
      if (auto instance = of_users(user)) all.push_back(std::move(*instance));
    }
    for (const DpdkMaps& maps : search_.others) add_other(maps, all);
    say_what_was_seen(all.empty() && !said_);
    return all;
  }

 private:
  static std::vector<Instance> one(std::optional<Instance> instance) {
    std::vector<Instance> all;
    if (instance) all.push_back(std::move(*instance));
    return all;
  }

  pid_t pid_asked() const {
    pid_t pid = 0;
    std::from_chars(options_.pid.data(), options_.pid.data() + options_.pid.size(), pid);
    return pid;
  }

  void by_pid(std::vector<Instance>& all) {
    const auto is_asked = [&](const auto& one) { return std::to_string(one.pid) == options_.pid; };
    const auto user = std::ranges::find_if(search_.users, is_asked);
    if (user != search_.users.end()) {
      if (auto instance = of_users(*user)) all.push_back(std::move(*instance));
      return;
    }
    const pid_t pid = pid_asked();
    const auto process = open_audited(root_, pid);
    auto maps = process ? read_dpdk_maps(*process, true) : std::unexpected(process.error());
    if (!maps) {
      messages_.error(maps.error());
      return;
    }
    if (const auto other = std::ranges::find_if(search_.others, is_asked);
        other != search_.others.end())
      maps->socket = other->socket;
    add_other(*maps, all);
    if (!all.empty()) return;
    if (!chosen_.empty()) {
      const bool looks = std::ranges::any_of(search_.others, is_asked);
      messages_.error(
          looks
              ? of_other(*maps)
              : fmt::format("{}: this process maps no files of DPDK's, and nothing says that it is "
                            "DPDK; it has {}",
                            pid, maps->evidence(false)),
          what_is_audited());
      return;
    }
    messages_.error(
        fmt::format("{}: this process maps no files of DPDK, and no huge pages", pid),
        "name the files by --dir; memory without huge pages that no file shares cannot be told");
  }

  /// Of a process that shares no files its telemetry may tell all, or its mappings tell some.
  void add_other(const DpdkMaps& maps, std::vector<Instance>& all) {
    std::vector<std::string> sockets;
    const std::string unix_sockets = fmt::format("proc/{}/net/unix", maps.pid);
    if (!maps.socket.empty()) {
      sockets.push_back(maps.socket);
    } else if (!root_.recorded()) {
      sockets = telemetry_sockets(root_, unix_sockets.c_str()).value_or(sockets);
    }
    for (const std::string& path : sockets) {
      std::string there = fmt::format("/proc/{}/root{}", maps.pid, path);
      auto told = read_telemetry(there, maps.pid);
      if (!told && told.error().code == Errc::permission) {
        there = path;
        told = read_telemetry(there, maps.pid);
      }
      if (!told) {
        // Nobody there, or a version that does not serve segments: its mappings are asked. Else it
        // could have told, and did not.
        if (told.error().code == Errc::not_found || told.error().code == Errc::not_supported)
          continue;
        said_ = true;
        messages_.error(told.error());
        continue;
      }
      const std::string directory = path.substr(0, path.rfind('/'));
      const User user{.pid = maps.pid, .directory = directory, .file = there, .holds_lock = true};
      all.push_back(
          {.directory = directory, .tree = {}, .path = {}, .users = {user}, .telemetry = there});
      return;
    }
    if (!maps.runs.empty()) chosen_.push_back(maps);
    // It is one, and nothing of it can be audited.
    if (maps.runs.empty() && !maps.socket.empty()) said_ = true;
  }

  static std::string of_other(const DpdkMaps& maps) {
    return maps.runs.empty()
               ? fmt::format(
                     "process {} ({}) may be DPDK ({}), and no memory of DPDK's can be told "
                     "by its mappings",
                     maps.pid, maps.comm, maps.evidence(false))
               : fmt::format(
                     "process {} ({}) looks like DPDK ({}): it was started with --in-memory or "
                     "--no-shconf",
                     maps.pid, maps.comm, maps.evidence(false));
  }
  static std::string_view what_is_audited() {
    return "contiguity, nodes, residency and removed files are audited by its mappings; nothing "
           "tells its IOVAs and sockets";
  }

  /// Says what was found besides primaries that share their files, and where nobody could look.
  void say_what_was_seen(bool nothing) {
    bool said = false;
    for (const DpdkMaps& maps : search_.others) {
      const auto same = [&](const DpdkMaps& m) { return m.pid == maps.pid; };
      const bool derived = std::ranges::any_of(chosen_, same);
      if (!derived && !maps.runs.empty()) continue;  // its telemetry told
      messages_.error(
          fmt::format("{}{}{}",
                      nothing && !said ? "no DPDK primary that shares its files was found; " : "",
                      of_other(maps), said ? std::string() : not_looked_at("; ")),
          derived ? what_is_audited() : std::string_view{});
      said = true;
    }
    if (said) return;
    if (nothing) {
      const std::size_t seen = search_.processes - search_.refused.size();
      messages_.error(
          fmt::format(
              "no DPDK primary was found: none of {} process{} maps a config of DPDK's, its "
              "huge pages or librte_eal.so{}",
              seen, seen == 1 ? "" : "es", not_looked_at("; ")),
          dead_files());
    } else if (!search_.complete()) {
      messages_.error(
          "looking for DPDK: " + not_looked_at(""),
          geteuid() != 0 ? "other users' mappings need CAP_SYS_PTRACE: run as root" : "");
    }
  }

  /// Where nobody could look, after `separator`; empty where all could be seen.
  std::string not_looked_at(std::string_view separator) const {
    std::string text;
    const auto add = [&](std::string_view what) {
      text += fmt::format("{}{}", text.empty() ? separator : "; ", what);
    };
    if (!search_.listed) add("the processes could not be listed");
    if (search_.hidden) add(*search_.hidden);
    if (!search_.refused.empty()) {
      add(fmt::format("{} process{} could not be looked at: {}", search_.refused.size(),
                      search_.refused.size() == 1 ? "" : "es", names_of(search_.refused)));
    }
    for (const std::string& path : search_.foreign_sockets)
      add(fmt::format("somebody who cannot be asked listens on {}", path));
    return text;
  }

  /// Opens the files at `directory`: as the process `pid` sees that path, which may have another
  /// root, or other mounts.
  std::optional<SysRoot> open_tree(const std::string& directory, pid_t pid) {
    auto tree =
        SysRoot::open(pid != 0 ? fmt::format("/proc/{}/root{}", pid, directory) : directory);
    // Without the right to look there: the same path, which is the same folder nearly always.
    if (!tree && pid != 0 && tree.error().code == Errc::permission) tree = SysRoot::open(directory);
    if (tree) return std::move(*tree);
    said_ = true;
    tree.error().what = "opening DPDK's runtime directory";
    tree.error().hint = nullptr;
    messages_.error(tree.error());
    return std::nullopt;
  }

  /// The files that `one` uses, and all who use the same ones: paths may be alike in containers.
  std::optional<Instance> of_users(const User& one) {
    Instance instance{.directory = one.directory, .tree = {}, .path = {}, .users = {}};
    for (const User& user : search_.users) {
      if (user.file == one.file) instance.users.push_back(user);
    }
    if (root_.recorded()) {
      instance.tree = root_;
      instance.path = one.directory.substr(one.directory.find_first_not_of('/'));
      return instance;
    }
    if (one.deleted) {  // what is at the path now may be another primary's
      said_ = true;
      messages_.error(fmt::format("process {} has files of DPDK's mapped that are no longer at {}",
                                  one.pid, one.directory),
                      "somebody removed its runtime directory, or another primary made it anew");
    } else {
      instance.tree = open_tree(one.directory, one.pid);
    }
    if (instance.tree) return instance;
    choose(primary_of(instance));
    return std::nullopt;
  }

  /// Its mappings are left to go by.
  void choose(pid_t pid) {
    const auto process = open_audited(root_, pid);
    if (!process) return;
    auto maps = read_dpdk_maps(*process, true);
    if (maps && !maps->runs.empty()) chosen_.push_back(std::move(*maps));
  }

  /// Whether the process's file of that path is the one that is there for us.
  static bool uses(const User& user, const std::string& directory) {
    struct stat ours{}, theirs{};
    if (stat((directory + "/config").c_str(), &ours) != 0) return false;
    if (stat(fmt::format("/proc/{}/root{}/config", user.pid, user.directory).c_str(), &theirs) != 0)
      return errno == EACCES || errno == EPERM;  // no other one can be looked at
    return ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
  }

  std::optional<Instance> by_prefix() {
    const User* found = nullptr;
    for (const User& user : search_.users) {
      if (prefix_of(user.directory) != options_.prefix ||
          (!options_.pid.empty() && std::to_string(user.pid) != options_.pid))
        continue;
      if (found != nullptr && found->file != user.file) {
        said_ = true;
        messages_.error(
            fmt::format("{}: more than one primary has this prefix: processes {} and {}",
                        options_.prefix, found->pid, user.pid),
            "name one by --pid");
        return std::nullopt;
      }
      if (found == nullptr) found = &user;
    }
    if (found != nullptr) return of_users(*found);
    // Its huge pages' files have the prefix, too.
    for (const DpdkMaps& maps : search_.others) {
      if (!options_.pid.empty() && std::to_string(maps.pid) != options_.pid) continue;
      if (std::ranges::none_of(
              maps.runs, [&](const SegmentRun& r) { return r.list == options_.prefix + "map"; }))
        continue;
      std::vector<Instance> all;
      add_other(maps, all);
      if (!all.empty()) return all.front();
      messages_.error(of_other(maps), what_is_audited());
      return std::nullopt;
    }
    if (options_.prefix.find('/') != std::string::npos) {
      messages_.error(fmt::format("{}: not a prefix", options_.prefix),
                      "give a directory as --dir");
      return std::nullopt;
    }
    for (const std::string& folder : runtime_folders()) {
      const std::string directory = folder + "/" + options_.prefix;
      const std::string config = (directory + "/config").substr(1);
      if (!root_.open_file(config.c_str())) continue;
      say_unused(directory, lock_holder(root_, config),
                 "they are left over from a primary that was killed; its next start takes their "
                 "place");
      return std::nullopt;
    }
    std::string others;
    for (const DpdkMaps& maps : search_.others)
      others += fmt::format("; {}, and its prefix cannot be told", of_other(maps));
    messages_.error(
        fmt::format("no DPDK primary that shares its files was found with the prefix {}{}{}",
                    options_.prefix, others, not_looked_at("; ")),
        search_.others.empty() ? running()
                               : fmt::format("name it by --pid {}", search_.others.front().pid));
    return std::nullopt;
  }

  /// A live runtime directory, or a copy: whose it is, its own content tells.
  std::optional<Instance> by_directory() {
    std::error_code error;
    const std::string real = std::filesystem::canonical(options_.directory, error).string();
    Instance instance{.directory = options_.directory, .tree = {}, .path = {}, .users = {}};
    for (const User& user : search_.users) {
      if (!error && user.directory == real && (root_.recorded() || uses(user, real)))
        instance.users.push_back(user);
    }
    {
      // Other files than those of a process that is asked about are the caller's matter.
      std::optional<CallersRights> rights;
      instance.by_caller = instance.users.empty();
      if (instance.by_caller) rights.emplace();
      instance.tree = open_tree(options_.directory, 0);
    }
    if (!instance.tree) return std::nullopt;
    if (!instance.users.empty() || !options_.pid.empty()) return instance;
    const auto memory = read_files(instance);
    if (!memory) {
      say_unreadable(instance, memory.error(), messages_);
      return std::nullopt;
    }
    // Of the running ones, the one most of whose segments are the same.
    std::size_t best = 0, ties = 0;
    std::string owner;
    std::vector<std::string> seen;
    for (const User& user : search_.users) {
      if (user.config_address != memory->config_address ||
          std::ranges::find(seen, user.file) != seen.end())
        continue;
      seen.push_back(user.file);
      const auto other = of_users(user);
      const auto theirs = other ? read_dpdk(*other->tree, other->path) : std::unexpected(Error{});
      if (!theirs) continue;
      std::size_t same = 0;
      for (const DpdkSegment& s : memory->segments)
        same += std::ranges::find(theirs->segments, s) != theirs->segments.end() ? 1 : 0;
      if (same > best) {
        best = same;
        ties = 1;
        owner = user.file;
      } else if (same == best && same != 0) {
        ++ties;
      }
    }
    if (ties == 1) {
      for (const User& user : search_.users) {
        if (user.file == owner) instance.users.push_back(user);
      }
      return instance;
    }
    if (ties == 0) {
      // The lock is on the primary's own files, and no copy of them.
      const bool original = real.substr(0, real.rfind('/')).ends_with("/dpdk");
      say_unused(options_.directory,
                 original ? lock_holder(*instance.tree, "config") : std::optional<pid_t>{},
                 "name the process by --pid");
    } else {
      messages_.error(fmt::format("{}: more than one primary has such memory", options_.directory),
                      "name the process by --pid");
    }
    return std::nullopt;
  }

  /// Nobody who could be looked at uses these files.
  void say_unused(const std::string& directory, std::optional<pid_t> holder,
                  std::string_view hint) {
    if (holder && *holder != 0) {
      messages_.error(
          fmt::format("{}: {} holds the lock of these files, and could not be looked at", directory,
                      *holder > 0 ? fmt::format("process {}", *holder)
                                  : std::string("a process of another PID namespace")),
          "run as root where the primary runs");
    } else if (holder || search_.complete()) {
      messages_.error(
          fmt::format("{}: no process uses these files: their primary has ended", directory), hint);
    } else {
      messages_.error(fmt::format("{}: no process that could be looked at uses these files{}",
                                  directory, not_looked_at("; ")),
                      hint);
    }
  }

  std::string running() const {
    std::string list;
    std::vector<std::string> seen;
    for (const User& user : search_.users) {
      if (std::ranges::find(seen, user.directory) != seen.end()) continue;
      seen.push_back(user.directory);
      list += fmt::format("{}{}", list.empty() ? "running: " : ", ", prefix_of(user.directory));
    }
    return list;
  }

  /// Files of primaries that have ended.
  std::string dead_files() const {
    std::string list;
    for (const std::string& folder : runtime_folders()) {
      const auto names = root_.list(folder.substr(1).c_str());
      if (!names) continue;
      for (const std::string& name : *names) {
        const std::string config = (folder + "/" + name + "/config").substr(1);
        if (!root_.open_file(config.c_str())) continue;
        const auto holder = lock_holder(root_, config);
        const bool ended = holder ? *holder == 0 : search_.complete();
        list += fmt::format("{}{}/{}{}",
                            !list.empty() ? ", "
                            : ended       ? "primaries that have ended left "
                                          : "there are files of DPDK's: ",
                            folder, name, ended ? "" : " (perhaps in use)");
      }
    }
    return list;
  }

  const SysRoot& root_;
  const RegauditOptions& options_;
  const Messages& messages_;
  Search search_;
  std::vector<DpdkMaps> chosen_;
  bool said_ = false;
};

std::string mappings_json(const DpdkMaps& maps) {
  // "rtemap": the prefix. Names of memfds have none.
  std::string prefix;
  for (const SegmentRun& run : maps.runs) {
    if (run.list.ends_with("map") && prefix.empty())
      prefix = run.list.substr(0, run.list.size() - 3);
  }
  std::string text = fmt::format(
      R"({{"prefix":{},"directory":null,"pid":{},"version":null,"iova_mode":null,)"
      R"("dma_mask_bits":null,"legacy_mem":null,"single_file_segments":null,"source":"mappings",)"
      R"("evidence":{},"processes":[{{"pid":{},"primary":null}}],"lists":[)",
      prefix.empty() ? "null" : json_string(prefix), maps.pid, json_string(maps.evidence(true)),
      maps.pid);
  for (const SegmentRun& run : maps.runs) {
    if (&run != &maps.runs.front()) text += ',';
    text += fmt::format(
        R"({{"name":{},"va":"{:#x}","bytes":{},"page_size":{},"socket":null,"external":null}})",
        json_string(run.list), run.range.start.value, run.range.bytes(),
        run.page_size == 0 ? "null" : std::to_string(run.page_size));
  }
  return text + "],\"memzones\":null}";
}

/// Audits what the mappings of a process that shares no files show.
bool audit_by_mappings(Report& report, const RegauditOptions& options, const SysRoot& root,
                       const DpdkMaps& found, bool any_huge, const Messages& messages) {
  const auto process = open_audited(root, found.pid);
  if (!process) {
    messages.error(process.error());
    return false;
  }
  constexpr int attempts = 4;
  DpdkMaps maps = found;
  for (int attempt = 1;; ++attempt) {
    Report one{.mode = report.mode};
    if (maps.runs.empty() ||
        !audit_into(one, options, *process, "", registrations_of(maps), false, messages))
      return false;
    auto again = read_dpdk_maps(*process, any_huge);
    if (!again) {
      messages.error(again.error());
      return false;
    }
    const bool same = again->runs == maps.runs;
    if (!same && attempt < attempts) {
      maps = std::move(*again);
      continue;
    }
    if (!same)
      messages.error(fmt::format("{}: its memory kept changing while it was read", found.pid));
    report.unanswered = true;
    for (Audit& audit : one.groups.front().audits) {
      const VaRange range =
          one.groups.front()
              .registrations[static_cast<std::size_t>(&audit - one.groups.front().audits.data())]
              .range;
      audit.findings.push_back({.kind = AuditFindingKind::iova_unknown,
                                .severity = Severity::unknown,
                                .bytes = range.bytes(),
                                .runs = 1,
                                .where = {{.va = range.start, .bytes = range.bytes()}},
                                .end = range.end});
    }
    take_sources(report, one);
    report.text += fmt::format(
        "process {} ({}) by its mappings alone ({}): IOVAs, sockets, version and memzones are not "
        "known\n",
        found.pid, printable(maps.comm), printable(maps.evidence(options.bytes)));
    if (!report.json.empty()) report.json += ',';
    report.json += mappings_json(maps);
    report.groups.push_back(std::move(one.groups.front()));
    return true;
  }
}

/// The process to look at: --pid, else the primary.
pid_t process_of(const Instance& instance, const RegauditOptions& options) {
  pid_t pid = 0;
  if (!options.pid.empty()) {
    std::from_chars(options.pid.data(), options.pid.data() + options.pid.size(), pid);
    return pid;
  }
  return primary_of(instance);
}

std::string_view mode_name(IovaRule mode) {
  return mode == IovaRule::physical ? "pa" : mode == IovaRule::virt ? "va" : "unknown";
}

std::string instance_json(const Instance& instance, const DpdkMemory& memory, pid_t pid,
                          const std::vector<Registration>& zones,
                          const std::vector<Audit>& audits) {
  std::string text = fmt::format(
      R"({{"prefix":{},"directory":{},"pid":{},"version":{},"iova_mode":{},"dma_mask_bits":{},)"
      R"("legacy_mem":{},"single_file_segments":{},"source":"{}","processes":[)",
      json_string(prefix_of(instance.directory)), json_string(instance.directory), pid,
      json_string(memory.version),
      memory.mode == IovaRule::none ? "null" : json_string(mode_name(memory.mode)),
      memory.dma_mask_bits == 0 ? "null" : std::to_string(memory.dma_mask_bits),
      memory.by_telemetry ? "null"
      : memory.legacy     ? "true"
                          : "false",
      memory.by_telemetry           ? "null"
      : memory.single_file_segments ? "true"
                                    : "false",
      memory.by_telemetry ? "telemetry" : "files");
  // Who holds the lock may not be shown (/proc/locks, PID namespaces).
  const bool lock_seen = std::ranges::any_of(instance.users, &User::holds_lock);
  for (const User& user : instance.users) {
    if (&user != &instance.users.front()) text += ',';
    text += fmt::format(R"({{"pid":{},"primary":{}}})", user.pid,
                        lock_seen ? (user.holds_lock ? "true" : "false") : "null");
  }
  text += "],\"lists\":[";
  for (const DpdkList& list : memory.lists) {
    if (&list != &memory.lists.front()) text += ',';
    text += fmt::format(
        R"({{"name":{},"va":"{:#x}","bytes":{},"page_size":{},"socket":{},"external":{}}})",
        json_string(list.name), list.range.start.value, list.range.bytes(), list.page_size,
        list.socket, list.external);
  }
  if (memory.by_telemetry) return text + "],\"memzones\":null}";
  text += "],\"memzones\":[";
  for (std::size_t i = 0; i < audits.size(); ++i) {
    const DpdkMemzone& zone = memory.memzones[i];
    if (i != 0) text += ',';
    text += fmt::format(
        R"({{"name":{},"va":"{:#x}","bytes":{},"iova":{},"socket":{},"verdict":"{}","findings":[)",
        json_string(zone.name), zone.range.start.value, zone.range.bytes(),
        zones[i].iova_known ? fmt::format("\"{:#x}\"", zone.iova) : "null", zone.socket,
        verdict_of(audits[i]));
    for (const AuditFinding& f : audits[i].findings) {
      if (&f != &audits[i].findings.front()) text += ',';
      text += finding_json(f);
    }
    text += "]}";
  }
  return text + "]}";
}

/// A memzone's own troubles. What its segment's size or node bring about is told there.
void drop_segments_findings(std::vector<Audit>& zones) {
  for (Audit& zone : zones) {
    std::erase_if(zone.findings, [](const AuditFinding& f) {
      return f.kind != AuditFindingKind::iova_mismatch &&
             f.kind != AuditFindingKind::not_resident && f.kind != AuditFindingKind::unmapped &&
             f.kind != AuditFindingKind::no_iova && f.kind != AuditFindingKind::hidden;
    });
  }
}

bool audit_instance(Report& report, const RegauditOptions& options, const SysRoot& root,
                    const Instance& instance, const Messages& messages) {
  const pid_t pid = process_of(instance, options);
  const auto process = open_audited(root, pid);
  if (!process) {
    messages.error(process.error());
    return false;
  }
  // Memory comes and goes under a running primary: an answer holds if the files stood still.
  constexpr int attempts = 4;
  for (int attempt = 1;; ++attempt) {
    const auto memory = read_files(instance);
    if (interrupted()) return false;
    if (!memory && memory.error().code == Errc::malformed && attempt < attempts) continue;
    if (!memory) {
      say_unreadable(instance, memory.error(), messages);
      if (memory.error().code != Errc::not_supported) return false;
      // Of a version that is not known the mappings still tell some.
      const auto maps = read_dpdk_maps(*process, false);
      if (maps && !maps->runs.empty())
        (void)audit_by_mappings(report, options, root, *maps, false, messages);
      return false;
    }
    if (memory->segments.empty()) {
      messages.error(fmt::format("{}: no memory segments are in use", instance.directory));
      return false;
    }
    Report one{.mode = report.mode};
    if (!audit_into(one, options, *process, prefix_of(instance.directory),
                    registrations_of(*memory), false, messages))
      return false;
    Report zones{.mode = report.mode};
    const auto zone_list = memzones_of(*memory);
    if (!zone_list.empty() && !audit_into(zones, options, *process, "", zone_list, false, messages))
      return false;
    std::vector<Audit> zone_audits;
    if (!zones.groups.empty()) zone_audits = std::move(zones.groups.front().audits);
    drop_segments_findings(zone_audits);
    for (Missing& m : zones.missing) one.missing.push_back(std::move(m));
    const auto again = read_files(instance);
    const bool same = again && again->segments == memory->segments;
    if (!same && attempt < attempts) continue;
    if (!same) {
      messages.error(
          fmt::format("{}: its memory kept changing while it was read", instance.directory));
      report.unanswered = true;
    }
    std::size_t zone_errors = 0;
    for (std::size_t i = 0; i < zone_audits.size(); ++i) {
      if (verdict_of(zone_audits[i]) != "error") continue;
      ++zone_errors;
      report.negative = true;
      for (const AuditFinding& f : zone_audits[i].findings)
        report.text +=
            fmt::format("error: memzone {}: {}: {}\n", printable(memory->memzones[i].name),
                        to_string(f.kind), detail_of(f, options.bytes));
    }
    take_sources(report, one);
    // A secondary has the same files; who holds the lock may not be shown.
    const bool is_primary =
        instance.users.size() < 2 ||
        std::ranges::any_of(
            instance.users, [&](const User& user) { return user.holds_lock && user.pid == pid; });
    report.text +=
        fmt::format("DPDK {} {} {} ({}), prefix {}, IOVA as {}: {} segments, {}{}\n",
                    printable(memory->version), is_primary ? "primary" : "process", pid,
                    printable(process->comm()), printable(prefix_of(instance.directory)),
                    mode_name(memory->mode), memory->segments.size(),
                    memory->by_telemetry ? std::string("told by telemetry; memzones are not")
                                         : fmt::format("{} memzones", memory->memzones.size()),
                    zone_errors == 0 ? "" : fmt::format(", {} of them wrong", zone_errors));
    if (!report.json.empty()) report.json += ',';
    report.json += instance_json(instance, *memory, pid, zone_list, zone_audits);
    report.groups.push_back(std::move(one.groups.front()));
    return true;
  }
}

}  // namespace

int run_dpdk(const RegauditOptions& given, const Messages& messages) {
  RegauditOptions options = given;
  if (!options.prefix.empty() && !options.directory.empty()) {
    messages.error("--prefix and --dir exclude each other", "see --help");
    return 2;
  }
  const auto root = open_root(options, messages);
  if (!root) return 2;
  if (!options.pid.empty() || !options.comm.empty()) {
    const auto process = open_target(options, options.pid, messages);
    if (!process) return 2;
    options.pid = std::to_string(process->pid());
  }
  Finder finder{*root, options, messages};
  const std::vector<Instance> instances = finder.find();
  if (interrupted()) end_by_signal();
  if (instances.empty() && finder.others().empty()) return 2;
  Report report{.mode = "dpdk"};
  bool failed = finder.missed();
  for (const Instance& instance : instances) {
    if (interrupted()) break;
    if (!audit_instance(report, options, *root, instance, messages)) failed = true;
  }
  for (const DpdkMaps& maps : finder.others()) {
    if (interrupted()) break;
    if (!audit_by_mappings(report, options, *root, maps, !options.pid.empty(), messages))
      failed = true;
  }
  if (interrupted()) end_by_signal();
  if (report.groups.empty()) return 2;
  // Without a name every primary there is was asked for.
  const bool all = options.pid.empty() && options.prefix.empty() && options.directory.empty();
  report.unanswered = report.unanswered || failed || (all && !finder.search().complete());
  report.json = ",\"dpdk\":[" + report.json + "]" + search_json(finder.search());
  return show(report, options, *root, messages);
}

}  // namespace vmem::tools
