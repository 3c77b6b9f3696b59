// SPDX-License-Identifier: MIT
#include "mapcheck_names.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <ctime>

namespace vmem::tools {
namespace {

constexpr std::string_view deleted_mark = " (deleted)";

bool digit(char c) { return c >= '0' && c <= '9'; }
bool upper(char c) { return c >= 'A' && c <= 'Z'; }
bool lower(char c) { return c >= 'a' && c <= 'z'; }
bool alnum(char c) { return digit(c) || upper(c) || lower(c); }
bool hex_digit(char c) { return digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }

std::size_t run(std::string_view text, bool (*of)(char)) {
  return static_cast<std::size_t>(std::ranges::find_if_not(text, of) - text.begin());
}

/// Whether a word looks as if it was drawn at random. Of the names that this run gave to files,
/// less is enough: to be wrong there makes a selector wider, not another one.
bool random_word(std::string_view word, bool file) {
  if (word.size() < 6) return false;
  const auto digits = std::ranges::count_if(word, digit);
  const auto uppers = std::ranges::count_if(word, upper);
  const auto letters = static_cast<std::ptrdiff_t>(word.size()) - digits;
  if (digits != 0 && uppers != 0 && letters != uppers) return true;
  if (word.size() >= 8 && digits != 0 && letters != 0 && std::ranges::all_of(word, hex_digit))
    return true;
  unsigned changes = 0, rises = 0, digit_first = 0;
  for (std::size_t i = 1; i < word.size(); ++i) {
    changes += digit(word[i - 1]) != digit(word[i]);
    rises += lower(word[i - 1]) && upper(word[i]);
    digit_first += digit(word[i - 1]) && !digit(word[i]);
  }
  if (changes >= 3) return true;
  return file && (rises != 0 || digit_first != 0 || (letters != 0 && digits >= 2));
}

/// Python's: "tmp", and eight of these.
std::size_t tempfile_word(std::string_view text) {
  constexpr std::size_t size = 11;
  const bool good = text.size() >= size && text.starts_with("tmp") &&
                    std::ranges::all_of(text.substr(3, size - 3),
                                        [](char c) { return lower(c) || digit(c) || c == '_'; });
  return good ? size : 0;
}

/// Where files are made for one run, and seldom for longer.
bool volatile_folder(std::string_view path) {
  return std::ranges::any_of(
      std::initializer_list<std::string_view>{"/tmp/", "/var/tmp/", "/dev/shm/", "/run/",
                                              "/var/run/", "/dev/hugepages/"},
      [&](std::string_view folder) { return path.starts_with(folder); });
}

/// Field `number` of /proc/PID/stat, from 1; behind the command name, which may hold anything.
std::uint64_t stat_field(const std::string& stat, unsigned number) {
  std::size_t at = stat.rfind(')');
  for (unsigned field = 2; field < number && at != std::string::npos; ++field)
    at = stat.find(' ', at + 1);
  std::uint64_t value = 0;
  if (at < stat.size()) std::from_chars(stat.data() + at + 1, stat.data() + stat.size(), value);
  return value;
}

double now(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

}  // namespace

/// A glob in the making.
class NextRun::Glob {
 public:
  explicit Glob(bool sets) : magic_(sets ? "*?\\[" : "*?\\") {}
  void literal(std::string_view text) {
    for (const char c : text) {
      // One byte that a policy cannot hold as it is.
      if (c < 0x20 || c >= 0x7f) {
        any(1);
        continue;
      }
      if (magic_.contains(c)) text_ += '\\';
      text_ += c;
    }
  }
  void any(std::size_t characters) {
    text_.append(characters, '?');
    wide_ = true;
  }
  void any() {
    if (!text_.ends_with('*')) text_ += '*';
    wide_ = true;
  }
  StableName take(std::string literal) {
    return {.glob = std::move(text_), .literal = wide_ ? std::string() : std::move(literal)};
  }

 private:
  std::string_view magic_;
  std::string text_;
  bool wide_ = false;
};

NextRun::NextRun(const Process& process) {
  const SysRoot& root = process.root();
  ids_.insert(static_cast<std::uint64_t>(process.pid()));
  if (const auto tasks = process.list("task")) {
    for (const std::string& task : *tasks) {
      if (!task.empty() && run(task, digit) == task.size()) ids_.insert(std::stoull(task));
    }
  }
  // Also as its own PID namespace numbers it.
  if (const auto status = process.read_file("status")) {
    std::string_view rest = *status;
    while (!rest.empty()) {
      const std::size_t end = std::min(rest.find('\n'), rest.size());
      std::string_view line = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      if (!line.starts_with("NSpid:")) continue;
      line.remove_prefix(6);
      while (!line.empty()) {
        if (const std::size_t n = std::min<std::size_t>(run(line, digit), 19); n != 0) {
          ids_.insert(std::stoull(std::string(line.substr(0, n))));
          line.remove_prefix(n);
        } else {
          line.remove_prefix(1);
        }
      }
    }
  }
  const auto own = process.read_file("stat");
  if (!own) return;
  const auto exe = [&](std::uint64_t pid) {
    const auto link = root.read_link(fmt::format("proc/{}/exe", pid).c_str());
    return link ? *link : std::string();
  };
  // Parent, group and session; and what the program forked from, which may have made the files.
  for (const unsigned field : {5U, 6U}) ids_.insert(stat_field(*own, field));
  std::uint64_t start = stat_field(*own, 22);
  const std::string program = exe(static_cast<std::uint64_t>(process.pid()));
  std::uint64_t parent = stat_field(*own, 4);
  for (int depth = 0; depth < 16 && parent > 1; ++depth) {
    ids_.insert(parent);
    if (program.empty() || exe(parent) != program) break;
    const auto stat = root.read_file(fmt::format("proc/{}/stat", parent).c_str());
    if (!stat) break;
    start = std::min(start, stat_field(*stat, 22));
    parent = stat_field(*stat, 4);
  }
  ids_.erase(0);
  if (root.recorded() || start == 0) return;
  root_ = fmt::format("/proc/{}/root", process.pid());
  // Both clocks are coarser than they look: a tick of the scheduler's each.
  start_ = now(CLOCK_REALTIME) - now(CLOCK_BOOTTIME) - 0.02 +
           static_cast<double>(start) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

bool NextRun::is_id(std::string_view digits) const {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return error == std::errc{} && end == digits.data() + digits.size() && ids_.contains(value);
}

/// Whether numbers alone vary in the word: "1234", "worker1234", "dir1234" of process 1234. A
/// number may have more digits in the next run.
bool NextRun::numbered(std::string_view word) const {
  const std::size_t letters = std::min(word.find_first_of("0123456789"), word.size());
  const std::string_view number = word.substr(letters);
  return !number.empty() && std::ranges::all_of(number, digit) &&
         (letters == 0 || number.size() >= 5 || is_id(number));
}

void NextRun::vary(Glob& glob, std::string_view text, bool file) const {
  while (!text.empty()) {
    if (const std::size_t size = file ? tempfile_word(text) : 0; size != 0) {
      glob.literal("tmp");
      glob.any(size - 3);
      text.remove_prefix(size);
      continue;
    }
    std::string_view word = text.substr(0, run(text, alnum));
    if (word.empty()) {
      glob.literal(text.substr(0, 1));
      text.remove_prefix(1);
      continue;
    }
    text.remove_prefix(word.size());
    if (word.starts_with("0x") && word.size() >= 8 &&
        std::ranges::all_of(word.substr(2), hex_digit)) {
      glob.literal("0x");
      glob.any();
      continue;
    }
    if (!numbered(word) && random_word(word, file)) {
      glob.any(word.size());
      continue;
    }
    while (!word.empty()) {
      const std::size_t digits = run(word, digit);
      const std::size_t rest = std::min(word.find_first_of("0123456789"), word.size());
      const std::string_view part = word.substr(0, digits != 0 ? digits : rest);
      if (digits >= 5 || (digits != 0 && is_id(part)))
        glob.any();
      else
        glob.literal(part);
      word.remove_prefix(part.size());
    }
  }
}

bool NextRun::made(const std::string& path, bool deleted) {
  const auto [at, fresh] =
      made_.try_emplace(deleted ? path + std::string(deleted_mark) : path, false);
  if (!fresh) return at->second;
  const bool maybe = deleted || volatile_folder(path);
  struct statx info{};
  if (root_.empty() || !start_) {
    at->second = maybe;
  } else if (statx(AT_FDCWD, (root_ + path).c_str(),
                   AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_BTIME,
                   &info) != 0) {
    at->second = errno == ENOENT || maybe;
  } else if ((info.stx_mask & STATX_BTIME) == 0) {
    at->second = volatile_folder(path);
  } else {
    // A new file of a deleted one's name: it is not the name that is temporary.
    at->second = static_cast<double>(info.stx_btime.tv_sec) +
                     static_cast<double>(info.stx_btime.tv_nsec) / 1e9 >=
                 *start_;
  }
  return at->second;
}

StableName NextRun::mapping(const Vma& vma) {
  std::string_view path = vma.path;
  Glob glob{!path.starts_with('[')};
  const auto whole = [&](std::string_view text, bool file) {
    vary(glob, text, file);
    return glob.take(vma.path);
  };
  if (!path.starts_with('/')) {
    // The kernel numbers sockets, pipes and, of old, stacks ("[stack:1234]").
    const std::size_t open = path.rfind(path.starts_with("[stack:") ? ":" : ":[");
    const std::size_t number = open + (path.starts_with("[stack:") ? 1 : 2);
    if (open != std::string_view::npos && path.size() > number + 1 && path.ends_with(']') &&
        std::ranges::all_of(path.substr(number, path.size() - number - 1), digit)) {
      glob.literal(path.substr(0, number));
      glob.any();
      glob.literal("]");
      return glob.take(vma.path);
    }
    return whole(path, false);
  }
  // What has no folder is no file but the kernel's, and is " (deleted)" from its first day.
  constexpr std::string_view key = "/SYSV";
  if (path.starts_with(key) && path.size() >= key.size() + 8) {
    // Keys are made of inodes and PIDs, too; but not the one that stands for none.
    const std::string_view digits = path.substr(key.size(), 8);
    glob.literal(key);
    if (digits == "00000000")
      glob.literal(digits);
    else
      glob.any(digits.size());
    glob.literal(path.substr(key.size() + 8));
    return glob.take(vma.path);
  }
  const bool deleted = path.ends_with(deleted_mark);
  if (path.rfind('/') == 0 || path.starts_with("/memfd:") || path.starts_with("/dmabuf:") ||
      path == "/dev/zero (deleted)") {
    if (deleted) path.remove_suffix(deleted_mark.size());
    vary(glob, path, false);
    if (deleted) glob.literal(deleted_mark);
    return glob.take(vma.path);
  }
  if (deleted) path.remove_suffix(deleted_mark.size());
  for (std::size_t at = 0; at < path.size();) {
    const std::size_t end = std::min(path.find('/', at + 1), path.size());
    const std::string_view part = path.substr(at, end - at);
    if (made(std::string(path.substr(0, end)), deleted && end == path.size()))
      vary(glob, part, true);
    else
      glob.literal(part);
    at = end;
  }
  return glob.take(std::string(path));
}

std::string NextRun::comm(std::string_view comm) const {
  Glob glob{true};
  vary(glob, comm, false);
  return glob.take({}).glob;
}

}  // namespace vmem::tools
