// SPDX-License-Identifier: MIT
/// A system to look at: the live one, or one recorded in a directory. Everything
/// below this seam is openat(2); nothing else in the library knows which it is.
///
/// A recorded tree is a directory laid out like `/`, with the files this library
/// reads (proc/PID/maps, proc/PID/pagemap, proc/kpageflags, ...) as regular files.
/// `/manifest` in it, where present, holds lines `key value`:
///     vmem-tree 1
///     page_size 65536
///     pfn_access full|hidden|none
///     hidepid off|noaccess|invisible|ptraceable
/// Without a manifest the page size is 4096 and PFN access is unknown until a
/// recorded entry shows it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "vmem/error.hpp"
#include "vmem/export.hpp"
#include "vmem/types.hpp"

namespace vmem {

/// Owns a file descriptor.
class VMEM_EXPORT Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept;
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd();

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_ = -1;
};

/// Whether this reader is shown page frame numbers.
enum class PfnAccess : std::uint8_t {
  full,     ///< proven: a page of our own shows its PFN
  hidden,   ///< pagemap can be read, PFN and swap fields read 0
  none,     ///< pagemap cannot be read at all
  unknown,  ///< a recorded tree that does not say
};

/// What a reader is refused where it lacks a right.
enum class Privilege : std::uint8_t {
  process,      ///< files of another user's, or of a non-dumpable, process
  pfns,         ///< page frame numbers in pagemap
  frames,       ///< /proc/kpageflags and its relatives
  page_tables,  ///< page tables
};

/// What the user can do about a refusal, by the effective capabilities and the user namespace of
/// the one who asks: who has what it needs is not told to run as root. A static string.
VMEM_EXPORT const char* permission_hint(Privilege wanted);

/// A line of a process's maps that cannot be what it stands for, and was left out.
struct OddLine {
  const char* what = "";   ///< static: "an empty mapping"
  std::string path;        ///< of the file, for messages
  std::uint64_t line = 0;  ///< its number, from 1
  VaRange range;           ///< what it names; empty with start 0 where even that cannot be told
};

class Process;

class VMEM_EXPORT SysRoot {
 public:
  /// The running system. Page size and PFN access are found by trying, on a page of
  /// our own (Documentation/admin-guide/mm/pagemap.rst: PFNs need CAP_SYS_ADMIN).
  static Result<SysRoot> live();

  /// A recorded tree. Symbolic links in it are resolved inside it and only regular
  /// files are opened, so that a hostile tree can neither lead out nor block.
  static Result<SysRoot> open(const std::string& directory);

  bool recorded() const;
  PageSize page_size() const;
  PfnAccess pfn_access() const;

  /// Opens `path` (relative to the root, no leading '/') for reading.
  Result<Fd> open_file(const char* path) const;

  /// A whole small file; `limit` bytes at most, more is an error (malformed).
  Result<std::string> read_file(const char* path, std::size_t limit = 1 << 20) const;

  /// Names in a directory, without "." and "..", unordered.
  Result<std::vector<std::string>> list(const char* path) const;

  /// The target of a symbolic link.
  Result<std::string> read_link(const char* path) const;

  /// A process by PID or by the id of one of its threads. Errors: no_process,
  /// no_user_memory (kernel thread, zombie), permission.
  Result<Process> process(pid_t pid) const;

  /// The process that asks (live), or the one that proc/self names (recorded).
  Result<Process> self() const;

  /// Every process that this reader is shown (see hidden_processes()), kernel threads and zombies
  /// among them, ascending.
  Result<std::vector<pid_t>> processes() const;

  /// Why processes() does not have every process for this reader: proc is mounted with
  /// hidepid=invisible or hidepid=ptraceable, and neither the mount's gid= nor CAP_SYS_PTRACE
  /// exempts the reader; or mountinfo, which tells, cannot be read. A sentence without a full stop,
  /// static. Empty: the list has all (those that are listed may still be refused one by one, as
  /// under hidepid=noaccess). Of a recorded tree the manifest's `hidepid` says that its list is so.
  /// Costs a read of /proc/self/mountinfo: ask once.
  std::optional<std::string_view> hidden_processes() const;

  /// Every process whose comm is exactly `comm`, ascending.
  Result<std::vector<pid_t>> find_by_comm(std::string_view comm) const;

  /// The kernel's release, or empty where the tree does not say.
  std::string kernel_release() const;

 private:
  friend class Process;
  struct State;
  explicit SysRoot(std::shared_ptr<const State> state);
  Result<Fd> open_below(const char* path, int flags) const;
  std::shared_ptr<const State> state_;
};

class TargetPace;

/// A process as a directory descriptor and a start time: a PID that is used again
/// later is an error, never an answer about somebody else.
class VMEM_EXPORT Process {
 public:
  pid_t pid() const { return pid_; }  ///< the thread group's id
  const std::string& comm() const { return comm_; }
  /// Clock ticks since boot (field 22 of /proc/PID/stat); empty if not recorded.
  std::optional<std::uint64_t> start_time() const { return start_time_; }
  const SysRoot& root() const { return root_; }

  /// Opens proc/PID/`name`. Errors name what stood in the way: no_process when it has
  /// ended, no_user_memory for a kernel thread or zombie, permission with a hint.
  Result<Fd> open_file(const char* name) const;
  Result<std::string> read_file(const char* name, std::size_t limit = 1 << 20) const;
  Result<std::vector<std::string>> list(const char* name) const;

  /// "/proc/PID/name", for messages.
  std::string path(const char* name) const;

  /// From now on a line of maps that is wrong by itself (an empty mapping, one that is not aligned
  /// to pages, one that is no maps line at all) is left out, kept in odd_lines() and told to
  /// `tell`, once, instead of being an error that refuses the whole process. What it stood for then
  /// looks unmapped: whoever calls this must say so. Lines out of order or overlapping, of which
  /// none knows which is wrong, and the 4097th of one reading, stay errors.
  void skip_odd_lines(std::function<void(const OddLine&)> tell = {});
  /// The lines left out by now, in the order of the file. A copy: other threads may add to them.
  std::vector<OddLine> odd_lines() const;
  /// Whether a mapping may lie in `range` that a line left out stands for. Where it lies cannot be
  /// told of a line that is no line of maps at all.
  bool may_be_left_out(VaRange range) const;
  /// The part of `range` that just this line tells of, to whole pages; empty: none, or not known.
  VaRange part_told_by(const OddLine& line, VaRange range) const;

  /// An error unless the process still lives (no_process) and runs the program that it ran
  /// when it was opened (process_changed).
  Result<void> check_alive() const;

  /// The mode (S_IFMT and permission bits) of the file behind the mapping at
  /// [start, end), through map_files (proc(5): needs CAP_CHECKPOINT_RESTORE or
  /// CAP_SYS_ADMIN). Empty where that cannot be told.
  std::optional<std::uint32_t> mapped_file_mode(VaRange range) const;
  /// The bytes of that file, if it is a regular one; what lies beyond the page of its last byte
  /// cannot be touched. Empty as for the mode.
  std::optional<std::uint64_t> mapped_file_bytes(VaRange range) const;
  /// The page size in bytes of the hugetlbfs that this file is on; 0: it is on another file
  /// system (f_type and f_bsize of fstatfs(2)). Empty as for the mode.
  std::optional<std::uint64_t> mapped_hugetlb_page_bytes(VaRange range) const;

 private:
  friend class SysRoot;
  friend class VmaReader;
  friend class TargetPace;
  explicit Process(SysRoot root) : root_(std::move(root)) {}
  bool turn_to_living_thread();
  SysRoot root_;
  Fd directory_;
  pid_t pid_ = 0;
  std::string comm_;
  std::optional<std::uint64_t> start_time_;
  std::uint64_t layout_ = 0;
  /// Of all readers of this process; several may read it at the same time.
  struct OddLines {
    std::function<void(const OddLine&)> tell;
    std::mutex mutex;
    std::vector<OddLine> lines;  ///< ascending
    void add(OddLine line);
  };
  std::shared_ptr<OddLines> odd_lines_;
  std::shared_ptr<TargetPace> pace_;  ///< of those who read this process's page tables
};

/// preads until `bytes` are there, end of file, or an error. Returns the bytes read.
VMEM_EXPORT Result<std::size_t> read_at(const Fd& fd, void* buffer, std::size_t bytes,
                                        std::uint64_t offset);

}  // namespace vmem
