// SPDX-License-Identifier: MIT
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "device_paths.hpp"
#include "line_chunks.hpp"
#include "pagemap_sight.hpp"
#include "vma_query.hpp"
#include "vmem/maps.hpp"

namespace vmem {
namespace {

struct Mount {
  std::uint32_t major = 0;
  std::uint32_t minor = 0;
  std::string type;
  bool dax = false;
};

template <class Number>
bool take_number(std::string_view& text, Number& value, int base = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return error == std::errc{};
}

std::string_view take_word(std::string_view& text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  const std::string_view word = text.substr(0, text.find(' '));
  text.remove_prefix(word.size());
  return word;
}

bool has_option(std::string_view options, std::string_view wanted) {
  while (!options.empty()) {
    const std::size_t comma = options.find(',');
    if (options.substr(0, comma) == wanted) return true;
    if (comma == std::string_view::npos) break;
    options.remove_prefix(comma + 1);
  }
  return false;
}

/// A line of mountinfo (proc(5)): ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS…] - TYPE
/// SOURCE SUPEROPTIONS. Fields hold no spaces (they are escaped).
std::optional<Mount> parse_mount(std::string_view line) {
  Mount mount;
  take_word(line);
  take_word(line);
  std::string_view device = take_word(line);
  if (!take_number(device, mount.major) || !device.starts_with(':')) return {};
  device.remove_prefix(1);
  if (!take_number(device, mount.minor) || !device.empty()) return {};
  const std::size_t separator = line.find(" - ");
  if (separator == std::string_view::npos) return {};
  line.remove_prefix(separator + 3);
  mount.type = take_word(line);
  take_word(line);
  const std::string_view options = take_word(line);
  mount.dax = has_option(options, "dax") || has_option(options, "dax=always");
  return mount;
}

/// Files of the kernel's own mounts that can be made of huge pages.
bool may_be_internal_hugetlb(std::string_view path) {
  return path.starts_with("/anon_hugepage") || path.starts_with("/memfd:") ||
         path.starts_with("/SYSV");
}

constexpr std::string_view gate = "[vsyscall]";

/// smaps walks every page of a VMA under the target's mmap_lock: some 27 ms for each GiB of small
/// pages, which has 2 MiB of page tables. Of tables up to this size it takes 2 ms, no longer than
/// loading a BPF program does.
constexpr std::uint64_t bounded_table_bytes = 160 << 10;
/// So much address space cannot have more.
constexpr std::uint64_t bounded_address_bytes = 64 << 20;

/// File systems without a block device whose regular files are ordinary ones. Of others a driver,
/// or the kernel, may map what lies behind a file by frame number: sysfs, proc, resctrl, dma-buf.
bool holds_ordinary_files(std::string_view type) {
  constexpr std::string_view types[] = {
      "9p",    "bcachefs", "btrfs", "ceph",  "cifs",     "fuse", "nfs",    "nfs4",     "overlay",
      "ramfs", "smb3",     "tmpfs", "ubifs", "virtiofs", "zfs",  "rootfs", "hugetlbfs"};
  return std::ranges::find(types, type) != std::end(types);
}

/// The device number of the mount that memfd, SysV and shared anonymous memory are files of.
std::optional<dev_t> kernel_shmem_device() {
  const Fd memory{memfd_create("vmem", MFD_CLOEXEC)};
  struct stat info{};
  if (!memory.valid() || fstat(memory.get(), &info) != 0) return {};
  return info.st_dev;
}

}  // namespace

struct VmaInspector::State {
  const Process* process;
  SmapsReader smaps;
  bool smaps_refused = false;
  std::optional<Error> missing;
  std::optional<std::vector<Mount>> mounts;
  bool mounts_refused = false;
  std::optional<Error> odd_mount;  ///< the first line of mountinfo that says nothing
  std::optional<std::vector<std::uint64_t>> stack_pointers;  ///< ascending
  std::optional<std::vector<std::uint64_t>> packet_inodes;   ///< ascending
  // Of the last file asked about: the parts of a file's mapping follow each other.
  std::uint64_t node_inode = 0;
  std::uint32_t node_major = 0;
  std::uint32_t node_minor = 0;
  std::optional<bool> node;
  std::optional<std::vector<std::pair<std::string, VmFlags>>> own_mappings;
  VmFlagsSource flags_source;
  std::optional<bool> smaps_bounded;
  bool smaps_stalled = false;  ///< smaps was read although it may hold the target up
  PagemapSight sight;
  std::optional<std::optional<dev_t>> shmem_device;
  std::vector<FlaggedVma> flagged;  ///< ascending: what the source has last told
  VaRange hugetlb_range;
  std::optional<PageSize> hugetlb_size;

  State(const Process& p, VmFlagsSource source)
      : process(&p), smaps(p), flags_source(std::move(source)) {}

  /// This VMA as the quicker source has last told it; null if it did not, or if the VMA is another
  /// one by now: it was told some time before.
  const FlaggedVma* told(const Vma& vma) const {
    const auto at = std::ranges::lower_bound(flagged, vma.range.start, {},
                                             [](const FlaggedVma& v) { return v.range.start; });
    if (at == flagged.end() || at->range != vma.range) return nullptr;
    return agree(at->flags, vma) ? &*at : nullptr;
  }

  /// Whether smaps of this process holds its mmap_lock but for a short while.
  bool is_smaps_bounded() {
    if (!smaps_bounded) smaps_bounded = process->root().recorded() || find_smaps_bounded();
    return *smaps_bounded;
  }

  bool find_smaps_bounded() const {
    // Field 1 of statm: the address space, in pages (proc(5)).
    std::uint64_t pages = 0;
    if (const auto statm = process->read_file("statm", 4096)) {
      std::string_view text = *statm;
      if (take_number(text, pages) && pages <= page_size().pages(bounded_address_bytes))
        return true;
    }
    const auto status = process->read_file("status", 1 << 16);
    if (!status) return false;
    constexpr std::string_view key = "\nVmPTE:";
    const std::size_t at = status->find(key);
    if (at == std::string::npos) return false;
    std::string_view text = std::string_view(*status).substr(at + key.size());
    text.remove_prefix(std::min(text.find_first_not_of(" \t"), text.size()));
    std::uint64_t kib = 0;
    return take_number(text, kib) && kib <= bounded_table_bytes / 1024;
  }

  struct QuickAnswer {
    std::optional<VmFlags> flags;
    bool settled = false;  ///< smaps would know no more
  };

  /// What the quicker source knows of just this VMA.
  QuickAnswer quick_flags(const Vma& vma) {
    if (!flags_source) return {};
    if (flagged.empty() && !process->root().recorded() && is_smaps_bounded()) return {};
    // The kernel's own VMA (get_gate_vma()), in no process's list.
    if (vma.path == gate) {
      const VmFlags* const own = own_flags(vma.path);
      return {own != nullptr ? std::optional(*own) : std::nullopt, own != nullptr};
    }
    if (told(vma) == nullptr) {
      auto now = flags_source(vma.range.start);
      if (!now) {
        flags_source = nullptr;
        return {};
      }
      flagged = std::move(*now);
    }
    const FlaggedVma* const known = told(vma);
    // A VMA that is gone, or another one by now, is so in smaps, too, and the target would wait for
    // that answer.
    if (known == nullptr) return {.flags = {}, .settled = true};
    return {known->flags, known->flags.has_value()};
  }

  /// The mount with the VMA's device number; null where none has it. Check mounts_refused.
  const Mount* mount_of(const Vma& vma) {
    if (!mounts) {
      mounts.emplace();
      auto fd = process->open_file("mountinfo");
      if (!fd) {
        mounts_refused = true;
        miss(std::move(fd.error()));
        return nullptr;
      }
      LineChunks chunks{std::move(*fd), process->path("mountinfo")};
      for (;;) {
        auto chunk = chunks.next();
        if (!chunk) {
          mounts_refused = true;
          miss(std::move(chunk.error()));
        }
        if (!chunk || chunk->empty()) break;
        for (std::string_view rest = *chunk; !rest.empty();) {
          const std::uint64_t at = chunks.offset() + (chunk->size() - rest.size());
          if (auto mount = parse_mount(take_line(rest)))
            mounts->push_back(std::move(*mount));
          else if (!odd_mount)
            odd_mount = Error{.code = Errc::malformed,
                              .what = "parsing mountinfo",
                              .path = chunks.path(),
                              .line = chunks.line_at(at),
                              .reason = "not a mount"};
        }
      }
    }
    for (const Mount& mount : *mounts) {
      if (mount.major == vma.dev_major && mount.minor == vma.dev_minor) return &mount;
    }
    return nullptr;
  }

  std::optional<SmapsEntry> smaps_entry(const Vma& vma, std::size_t most = SIZE_MAX) {
    if (smaps_refused) return {};
    if (!is_smaps_bounded()) smaps_stalled = true;
    auto entry = smaps.find(vma.range.start, most);
    if (!entry) {
      smaps_refused = true;
      miss(std::move(entry.error()));
      return {};
    }
    if (!*entry || !((*entry)->range == vma.range)) {
      if (const Error* const odd = smaps.odd_line()) miss(*odd);  // it may be this VMA's
      return {};
    }
    // It may be another one by now.
    if (!process->root().recorded() && !agree((*entry)->flags, vma)) return {};
    return std::move(*entry);
  }

  /// Whether these may be the flags of the VMA as maps has shown it.
  static bool agree(const std::optional<VmFlags>& flags, const Vma& vma) {
    return !flags || (flags->has("rd") == vma.readable && flags->has("wr") == vma.writable &&
                      flags->has("ex") == vma.executable);
  }

  bool is_packet_socket(std::uint64_t inode) {
    if (!packet_inodes) {
      packet_inodes.emplace();
      // "sk RefCnt Type Proto Iface R Rmem User Inode" (net/packet/af_packet.c)
      auto text = process->read_file("net/packet", 16 << 20);
      // A kernel without AF_PACKET has none.
      if (!text && text.error().code != Errc::not_found) miss(std::move(text.error()));
      if (text) {
        std::string_view rest = *text;
        take_line(rest);
        while (!rest.empty()) {
          std::string_view line = take_line(rest);
          while (line.ends_with(' ')) line.remove_suffix(1);
          std::string_view last = line.substr(line.rfind(' ') + 1);
          std::uint64_t number = 0;
          if (take_number(last, number)) packet_inodes->push_back(number);
        }
      }
      std::ranges::sort(*packet_inodes);
    }
    return std::ranges::binary_search(*packet_inodes, inode);
  }

  /// Whether a thread's stack pointer lies in the range. A thread that runs on a CPU at
  /// this moment does not tell where its stack is (proc(5), /proc/PID/syscall).
  bool holds_stack_pointer(VaRange range) {
    if (!stack_pointers) {
      stack_pointers.emplace();
      std::string folder = "task/";
      auto threads = process->list("task");
      // Where the first thread has ended the process is read by another's folder, which is in
      // `task` itself.
      if (!threads && threads.error().code == Errc::not_found && !process->root().recorded()) {
        folder = "../";
        threads = process->list("..");
      }
      if (!threads) {
        miss(std::move(threads.error()));
      } else {
        for (const std::string& thread : *threads) {
          const auto text = process->read_file((folder + thread + "/syscall").c_str(), 4096);
          if (!text) continue;  // it has ended, or the reader may not see it
          // "NR ARG*6 SP PC", "-1 SP PC", or "running": the stack pointer is next to last.
          std::string_view line = std::string_view(*text).substr(0, text->find('\n'));
          const std::size_t last = line.rfind(' ');
          if (last == std::string_view::npos) continue;
          line = line.substr(0, last);
          line.remove_prefix(line.rfind(' ') + 1);
          if (!line.starts_with("0x")) continue;
          line.remove_prefix(2);
          std::uint64_t pointer = 0;
          if (take_number(line, pointer, 16)) stack_pointers->push_back(pointer);
        }
      }
      std::ranges::sort(*stack_pointers);
    }
    const auto at = std::ranges::lower_bound(*stack_pointers, range.start.value);
    return at != stack_pointers->end() && *at < range.end.value;
  }

  PageSize page_size() const { return process->root().page_size(); }

  /// Keeps the first reason why something could not be told. What a recording lacks is no failure,
  /// and a process that has ended is found out elsewhere.
  void miss(Error error) {
    const bool lacks = process->root().recorded() && error.code == Errc::not_found;
    const bool may_have_ended =
        error.code == Errc::no_process || error.code == Errc::process_changed;
    const bool ended = may_have_ended && !process->check_alive();
    if (!missing && !lacks && !ended) missing = std::move(error);
  }

  /// The flags of our own mapping of that name, [vvar] or [vsyscall]: whether it is VM_PFNMAP is
  /// the same for every process ([vvar] is on 6.18, and is not on 7.x), and our own smaps are
  /// short. Null if there is none.
  const VmFlags* own_flags(const std::string& name) {
    if (!own_mappings) {
      own_mappings.emplace();
      if (!process->root().recorded()) read_own_mappings();
    }
    for (const auto& [known, flags] : *own_mappings) {
      if (known == name) return &flags;
    }
    return nullptr;
  }

  void read_own_mappings() {
    const auto self = process->root().self();
    if (!self) return;
    auto reader = VmaReader::open(*self);
    if (!reader) return;
    SmapsReader own_smaps{*self};
    Vma vma;
    for (auto more = reader->next(vma); more && *more; more = reader->next(vma)) {
      if (!vma.path.starts_with("[vvar") && vma.path != gate) continue;
      const auto entry = own_smaps.find(vma.range.start);
      if (entry && *entry && (*entry)->flags)
        own_mappings->emplace_back(vma.path, *(*entry)->flags);
    }
  }

  /// Whether the mapped file is a character device; empty where that cannot be told.
  std::optional<bool> is_device_node(const Vma& vma) {
    if (node_inode != vma.inode || node_major != vma.dev_major || node_minor != vma.dev_minor) {
      const auto mode = process->mapped_file_mode(vma.range);
      node = mode ? std::optional(S_ISCHR(*mode)) : std::nullopt;
      node_inode = vma.inode;
      node_major = vma.dev_major;
      node_minor = vma.dev_minor;
    }
    return node;
  }

  /// Whether the file is on the mount that the kernel keeps for its own shared memory.
  bool is_kernel_shmem(const Vma& vma) {
    if (!shmem_device) shmem_device.emplace(kernel_shmem_device());
    return *shmem_device && major(**shmem_device) == vma.dev_major &&
           minor(**shmem_device) == vma.dev_minor;
  }

  /// Whether a file without a mount in mountinfo is on one that the kernel keeps for itself.
  bool is_on_kernels_mount(const Vma& vma) {
    if (may_be_internal_hugetlb(vma.path) || vma.path.starts_with("/dmabuf:") ||
        vma.path.starts_with("/[aio]") || vma.path.starts_with("/dev/zero"))
      return true;
    // The kernel's shmem mount is the first of all: a recording has its number for 0:1.
    return process->root().recorded() ? vma.dev_minor == 1 : is_kernel_shmem(vma);
  }

  /// Whether nothing but the pages of an ordinary file can be behind this VMA of a file, unless the
  /// file is a device node.
  bool is_ordinary_mount(const Vma& vma) {
    if (vma.dev_major != 0) return true;  // a block device's
    const Mount* const mount = mount_of(vma);
    if (mount != nullptr) return holds_ordinary_files(mount->type);
    return !process->root().recorded() && is_kernel_shmem(vma);
  }

  /// Whether the kernel tells of no other way than by VmFlags that this is ordinary memory.
  bool may_be_driver(const Vma& vma) {
    if (without_file(vma)) return false;
    if (!vma.path.starts_with('/')) return true;
    if (const auto is_node = is_device_node(vma)) {
      return *is_node || (!is_ordinary_mount(vma) &&
                          process->mapped_hugetlb_page_bytes(vma.range).value_or(0) == 0);
    }
    VmaFacts facts;
    add_mount(vma, facts);
    const VmaClass by_name = vmem::classify(vma, facts, page_size()).vma_class;
    const bool memory = by_name == VmaClass::anonymous || by_name == VmaClass::hugepage;
    return !memory && by_name != VmaClass::file;
  }

  /// Fills in what mountinfo says. Only files with a path can be on a mount.
  void add_mount(const Vma& vma, VmaFacts& facts) {
    if (vma.inode == 0 || !vma.path.starts_with('/')) return;
    const Mount* mount = mount_of(vma);
    if (mounts_refused) return;
    if (mount == nullptr && odd_mount) return miss(*odd_mount);  // it may be that line's
    // A file may be on a mount that the process's mountinfo does not show (chroot, a descriptor
    // from another mount namespace): that is not known, and no reason to take it for an ordinary
    // file.
    if (mount == nullptr && vma.dev_major == 0 && !is_on_kernels_mount(vma)) return;
    facts.filesystem = mount != nullptr ? std::string_view(mount->type) : std::string_view{};
    facts.dax = mount != nullptr && mount->dax;
  }
};

VmaInspector::VmaInspector(const Process& process) : VmaInspector(process, nullptr) {}
VmaInspector::VmaInspector(const Process& process, VmFlagsSource flags)
    : state_(std::make_unique<State>(process, std::move(flags))) {}
VmaInspector::VmaInspector(VmaInspector&&) noexcept = default;
VmaInspector& VmaInspector::operator=(VmaInspector&&) noexcept = default;
VmaInspector::~VmaInspector() = default;

bool VmaInspector::flags_from_smaps() {
  State& s = *state_;
  if (!s.flags_source) return true;
  if (!s.flagged.empty()) return false;
  if (!s.process->root().recorded() && s.is_smaps_bounded()) return true;
  auto first = s.flags_source({0});
  if (first)
    s.flagged = std::move(*first);
  else
    s.flags_source = nullptr;
  return !first;
}

std::optional<VmFlags> VmaInspector::flags(const Vma& vma, std::size_t most) {
  if (auto told = state_->quick_flags(vma); told.settled) return std::move(told.flags);
  auto entry = state_->smaps_entry(vma, most);
  return entry ? std::move(entry->flags) : std::nullopt;
}

std::optional<SmapsEntry> VmaInspector::smaps(const Vma& vma) { return state_->smaps_entry(vma); }

const Error* VmaInspector::missing() const { return state_->missing ? &*state_->missing : nullptr; }

bool VmaInspector::smaps_stalled() const { return state_->smaps_stalled; }

bool VmaInspector::may_be_shmem(const Vma& vma) {
  if (vma.inode == 0 || !vma.path.starts_with('/')) return false;
  VmaFacts facts;
  state_->add_mount(vma, facts);
  return !facts.filesystem || facts.filesystem->empty() || facts.filesystem->ends_with("tmpfs");
}

std::optional<std::string> VmaInspector::filesystem(const Vma& vma) {
  if (vma.inode == 0 || !vma.path.starts_with('/')) return "";
  VmaFacts facts;
  state_->add_mount(vma, facts);
  if (!facts.filesystem) return {};
  return std::string(*facts.filesystem);
}

std::optional<PageSize> VmaInspector::hugetlb_page_size(const Vma& vma) {
  State& s = *state_;
  // hugetlb memory always has an inode, be it of a kernel-internal file.
  if (vma.inode == 0 || !vma.path.starts_with('/')) return {};
  if (s.hugetlb_range == vma.range) return s.hugetlb_size;
  VmaFacts facts;
  s.add_mount(vma, facts);
  const bool may_be = facts.filesystem == "hugetlbfs" ||
                      (!facts.filesystem && device_path(vma.path) != DevicePath::dax) ||
                      (facts.filesystem == "" && may_be_internal_hugetlb(vma.path));
  std::optional<PageSize> size;
  if (may_be) {
    Vma found;
    if (query_vma(*s.process, vma.range.start, found, size) != VmaQuery::found || !size) {
      if (const auto bytes = s.process->mapped_hugetlb_page_bytes(vma.range)) {
        if (PageSize::valid(*bytes)) size = PageSize{*bytes};
      } else if (const auto entry = s.smaps_entry(vma)) {
        size = entry->kernel_page_size;
      }
    }
    if (size && size->bytes() <= s.page_size().bytes()) size.reset();
  }
  s.hugetlb_range = vma.range;
  s.hugetlb_size = size;
  return size;
}

Classification VmaInspector::classify(const Vma& vma) {
  State& s = *state_;
  VmaFacts facts;
  s.add_mount(vma, facts);
  facts.kernel_page_size = hugetlb_page_size(vma);
  if (vma.path.starts_with("socket:[")) facts.packet_socket = s.is_packet_socket(vma.inode);

  Classification result = vmem::classify(vma, facts, s.page_size());
  if (result.kind == VmaKind::anon && vma.writable) {
    facts.thread_stack = s.holds_stack_pointer(vma.range);
    return *facts.thread_stack ? vmem::classify(vma, facts, s.page_size()) : result;
  }
  // A device node may lie anywhere, and not everything below /dev is one.
  if (vma.path.starts_with('/') &&
      (result.kind == VmaKind::file || result.vma_class == VmaClass::device)) {
    facts.device_node = s.is_device_node(vma);
    result = vmem::classify(vma, facts, s.page_size());
  }
  if (result == Classification{VmaClass::device, VmaKind::unknown}) {
    // smaps may hold the target up: the flag that matters most is had without it.
    facts.pfnmap = s.sight.ask(*s.process, vma.range.start) == PagemapSight::Answer::blind &&
                   confirm_blindness(vma) == Blindness::pfnmap;
    if (!facts.pfnmap) facts.flags = flags(vma);
    result = vmem::classify(vma, facts, s.page_size());
  }
  return result;
}

bool VmaInspector::may_turn_blind(const Vma& vma) {
  State& s = *state_;
  return !without_file(vma) && (!vma.path.starts_with('/') || !s.is_ordinary_mount(vma));
}

VmaInspector::Blindness VmaInspector::blindness(const Vma& vma) {
  State& s = *state_;
  if (vma.path == gate) return Blindness::gate;
  const bool live = !s.process->root().recorded();
  if (live && vma.path.starts_with("[vvar")) {
    if (const VmFlags* const own = s.own_flags(vma.path))
      return own->has("pf") ? Blindness::pfnmap : Blindness::sighted;
  }
  switch (s.sight.ask(*s.process, vma.range.start)) {
    case PagemapSight::Answer::sighted:
      return Blindness::sighted;
    case PagemapSight::Answer::blind:
      return confirm_blindness(vma);
    case PagemapSight::Answer::cannot_tell:
      break;
  }
  if (live && !s.may_be_driver(vma)) return Blindness::sighted;
  if (const auto codes = flags(vma))
    return codes->has("pf") ? Blindness::pfnmap : Blindness::sighted;
  return s.may_be_driver(vma) ? Blindness::unproven : Blindness::sighted;
}

/// PAGEMAP_SCAN returned nothing, which it does of no VMA at all, too. A VMA that is unmapped and
/// mapped again looks like this now and then, so its flags settle it where they are at hand.
VmaInspector::Blindness VmaInspector::confirm_blindness(const Vma& vma) {
  State& s = *state_;
  for (int looks = 0; looks < 3; ++looks) {
    const auto now = find_vma(*s.process, vma.range.start);
    if (!now || *now != vma) return Blindness::gone;
    if (looks == 0 && (s.is_smaps_bounded() || s.flags_source)) {
      const std::optional<VmFlags> codes =
          s.is_smaps_bounded() ? flags(vma) : s.quick_flags(vma).flags;
      if (codes) return codes->has("pf") ? Blindness::pfnmap : Blindness::sighted;
    }
    if (s.sight.ask(*s.process, vma.range.start) == PagemapSight::Answer::sighted)
      return Blindness::sighted;
  }
  return Blindness::pfnmap;
}

}  // namespace vmem
