// SPDX-License-Identifier: MIT
/// regaudit dpdk: which DPDK primaries there are, whose files are whose, and their audit.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "regaudit.hpp"
#include "regaudit_telemetry.hpp"
#include "targets.hpp"

namespace vmem::tools {
namespace {

/// A process that maps a `config` of DPDK.
struct User {
  pid_t pid = 0;
  std::string directory;  ///< as its maps name it
  std::uint64_t config_address = 0;
  std::string file;       ///< device and inode, as /proc/locks writes them
  bool holds_lock = false;
};

/// "/run/dpdk/rte/config": the directory. Empty: something else.
std::string directory_of(std::string_view path) {
  constexpr std::string_view deleted = " (deleted)", config = "/config";
  if (path.ends_with(deleted)) path.remove_suffix(deleted.size());
  if (!path.ends_with(config)) return {};
  path.remove_suffix(config.size());
  const std::string_view parent = path.substr(0, path.rfind('/'));
  return parent.ends_with("/dpdk") ? std::string(path) : std::string();
}

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

void add_users(const Process& process, std::vector<User>& users) {
  auto reader = VmaReader::open(process);
  if (!reader) return;
  Vma vma;
  while (true) {
    const auto more = reader->next(vma);
    if (!more || !*more) return;
    std::string directory = directory_of(vma.path);
    if (directory.empty()) continue;
    users.push_back(
        {.pid = process.pid(),
         .directory = std::move(directory),
         .config_address = vma.range.start.value,
         .file = fmt::format("{:02x}:{:02x}:{}", vma.dev_major, vma.dev_minor, vma.inode)});
    return;
  }
}

/// Every process that uses DPDK's shared files, ascending by PID. Those that cannot be read are
/// left out.
std::vector<User> find_users(const SysRoot& root) {
  std::vector<User> users;
  const auto pids = root.processes();
  if (!pids) return users;
  for (const pid_t pid : *pids) {
    if (const auto process = root.process(pid)) add_users(*process, users);
  }
  const auto locks = write_locks(root);
  for (User& user : users) {
    const auto lock = locks.find(user.file);
    user.holds_lock = lock != locks.end() && lock->second == user.pid;
  }
  return users;
}

/// One set of runtime files, and who uses them.
struct Instance {
  std::string directory;    ///< for people
  std::optional<SysRoot> tree;
  std::string path;         ///< within the tree
  std::vector<User> users;
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
  auto memory = read_dpdk(*instance.tree, instance.path);
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
  const auto version = error.code == Errc::not_supported
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

class Finder {
 public:
  Finder(const SysRoot& root, const RegauditOptions& options, const Messages& messages)
      : root_(root), options_(options), messages_(messages) {}

  /// Whether a primary was found whose files could not be opened; it has been said.
  bool missed() const { return said_; }

  /// The instances that the options name; empty: none, and it has been said.
  std::vector<Instance> find() {
    users_ = find_users(root_);
    if (!options_.directory.empty()) return one(by_directory());
    if (!options_.prefix.empty()) return one(by_prefix());
    std::vector<Instance> all;
    for (const User& user : users_) {
      if (!options_.pid.empty() && std::to_string(user.pid) != options_.pid) continue;
      if (std::ranges::any_of(all,
                              [&](const Instance& i) { return i.users.front().file == user.file; }))
        continue;
      if (auto instance = of_users(user)) all.push_back(std::move(*instance));
    }
    if (all.empty() && !said_) {
      if (!options_.pid.empty()) {
        messages_.error(fmt::format("{}: this process maps no files of DPDK", options_.pid),
                        "name the files by --dir; --in-memory and --no-shconf leave none");
      } else {
        messages_.error("no DPDK primary is running", dead_files());
      }
    }
    return all;
  }

 private:
  static std::vector<Instance> one(std::optional<Instance> instance) {
    std::vector<Instance> all;
    if (instance) all.push_back(std::move(*instance));
    return all;
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
    for (const User& user : users_) {
      if (user.file == one.file) instance.users.push_back(user);
    }
    if (root_.recorded()) {
      instance.tree = root_;
      instance.path = one.directory.substr(one.directory.find_first_not_of('/'));
    } else {
      instance.tree = open_tree(one.directory, one.pid);
      if (!instance.tree) return std::nullopt;
    }
    return instance;
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
    for (const User& user : users_) {
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
    if (options_.prefix.find('/') != std::string::npos) {
      messages_.error(fmt::format("{}: not a prefix", options_.prefix),
                      "give a directory as --dir");
      return std::nullopt;
    }
    for (const std::string& folder : runtime_folders()) {
      const std::string directory = folder + "/" + options_.prefix;
      const std::string config = (directory + "/config").substr(1);
      if (!root_.open_file(config.c_str())) continue;
      messages_.error(
          fmt::format("{}: no process uses these files: their primary has ended", directory),
          "they are left over from a primary that was killed; its next start takes their place");
      return std::nullopt;
    }
    messages_.error(fmt::format("no DPDK primary has the prefix {}", options_.prefix), running());
    return std::nullopt;
  }

  /// A live runtime directory, or a copy: whose it is, its own content tells.
  std::optional<Instance> by_directory() {
    std::error_code error;
    const std::string real = std::filesystem::canonical(options_.directory, error).string();
    auto tree = open_tree(options_.directory, 0);
    if (!tree) return std::nullopt;
    Instance instance{.directory = options_.directory, .tree = tree, .path = {}, .users = {}};
    for (const User& user : users_) {
      if (!error && user.directory == real && (root_.recorded() || uses(user, real)))
        instance.users.push_back(user);
    }
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
    for (const User& user : users_) {
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
      for (const User& user : users_) {
        if (user.file == owner) instance.users.push_back(user);
      }
      return instance;
    }
    messages_.error(
        ties == 0 ? fmt::format("{}: no process uses these files: their primary has ended",
                                options_.directory)
                  : fmt::format("{}: more than one primary has such memory", options_.directory),
        "name the process by --pid");
    return std::nullopt;
  }

  std::string running() const {
    std::string list;
    std::vector<std::string> seen;
    for (const User& user : users_) {
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
        list += fmt::format("{}{}/{}", list.empty() ? "primaries that have ended left " : ", ",
                            folder, name);
      }
    }
    return list;
  }

  const SysRoot& root_;
  const RegauditOptions& options_;
  const Messages& messages_;
  std::vector<User> users_;
  bool said_ = false;
};

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
  for (const User& user : instance.users) {
    if (&user != &instance.users.front()) text += ',';
    text += fmt::format(R"({{"pid":{},"primary":{}}})", user.pid, user.holds_lock);
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
  const auto process = root.process(pid);
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
    report.access = one.access;
    report.backend = one.backend;
    report.text += fmt::format(
        "DPDK {} primary {} ({}), prefix {}, IOVA as {}: {} segments, {}{}\n",
        printable(memory->version), pid, printable(process->comm()),
        printable(prefix_of(instance.directory)), mode_name(memory->mode), memory->segments.size(),
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
  if (instances.empty()) return 2;
  Report report{.mode = "dpdk"};
  bool failed = finder.missed();
  for (const Instance& instance : instances) {
    if (interrupted()) break;
    if (!audit_instance(report, options, *root, instance, messages)) failed = true;
  }
  if (interrupted()) end_by_signal();
  if (report.groups.empty()) return 2;
  report.unanswered = report.unanswered || failed;
  report.json = ",\"dpdk\":[" + report.json + "]";
  return show(report, options, *root, messages);
}

}  // namespace vmem::tools
