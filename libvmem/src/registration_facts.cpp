// SPDX-License-Identifier: MIT
#include "registration_facts.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <string_view>
#include <utility>

#include "kernel_release.hpp"
#include "line_chunks.hpp"
#include "vmem/frames.hpp"
#include "vmem/registration.hpp"

namespace vmem {
namespace {

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\n')) text.remove_suffix(1);
  return text;
}

std::optional<std::uint64_t> number(std::string_view text, int base = 10) {
  text = trimmed(text);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

/// In bytes.
std::optional<std::uint64_t> kilobytes(std::string_view text) {
  const auto value = number(text);
  if (!value || *value > UINT64_MAX >> 10) return {};
  return *value << 10;
}

/// What follows `key` in a line that begins with it.
std::optional<std::string_view> after(std::string_view line, std::string_view key) {
  line = trimmed(line);
  if (!line.starts_with(key)) return std::nullopt;
  return trimmed(line.substr(key.size()));
}

/// A line of /proc/meminfo, in kB; within: empty where the file has no such number.
Result<std::optional<std::uint64_t>> memory_kilobytes(const SysRoot& root, std::string_view key) {
  const auto text = root.read_file("proc/meminfo");
  if (!text) return std::unexpected(text.error());
  std::string_view rest = *text;
  while (!rest.empty()) {
    if (const auto value = after(take_line(rest), key)) return number(*value);
  }
  return std::nullopt;
}

std::optional<FrameRange> first_common(FrameRange a, const std::vector<FrameRange>& all) {
  std::optional<FrameRange> first;
  for (const FrameRange& b : all) {
    const FrameRange both{std::max(a.start, b.start), std::min(a.end, b.end)};
    if (both.start < both.end && (!first || both.start < first->start)) first = both;
  }
  return first;
}

}  // namespace

VmaView view_of(const Vma& vma, VmaInspector& inspector) {
  VmaView view{.range = vma.range, .private_writable = !vma.shared && vma.writable};
  view.shared = vma.shared;
  view.has_file = vma.inode != 0 && vma.path.starts_with('/');
  view.hugetlb = inspector.hugetlb_page_size(vma).has_value();
  // Kernel-internal files never had a name to remove.
  view.unlinked = vma.path.ends_with(" (deleted)") && !vma.path.starts_with("/memfd:") &&
                  vma.path != "/anon_hugepage (deleted)" && !vma.path.starts_with("/SYSV");
  const auto flags = inspector.flags(vma);
  view.flags_known = flags.has_value();
  if (flags) {
    // dup_mmap() leaves out the first, and copies no pages of the second; VM_PFNMAP has none that
    // would move.
    const bool not_copied = flags->has("dc") || flags->has("wf") || flags->has("pf");
    view.copied_at_fork = view.private_writable && !not_copied;
    view.mergeable = flags->has("mg");
    view.hugetlb = view.hugetlb || flags->has("ht");
    view.pfnmap = flags->has("pf");
    if (view.pfnmap)
      view.refused = "VmFlags pf (VM_PFNMAP)";
    else if (flags->has("io"))
      view.refused = "VmFlags io (VM_IO)";
  }
  if (!view.refused && !vma.readable && !vma.writable) view.refused = "no access (PROT_NONE)";
  if (!vma.writable) view.no_write = "not writable";
  if (flags && flags->has("ss")) view.no_write = "VmFlags ss (shadow stack)";
  view.device_memory = view.pfnmap;
  switch (inspector.classify(vma).kind) {
    case VmaKind::secretmem:
      view.refused = "secretmem";
      break;
    case VmaKind::dax:
      view.device_memory = true;
      // vma_is_fsdax(): private mappings, too; not the character device.
      if (!vma.path.starts_with("/dev/dax")) view.refused = "file on DAX";
      break;
    case VmaKind::file:
      if (const auto filesystem = inspector.filesystem(vma); !filesystem) {
        view.unknown_mount = true;
      } else if (vma.shared && vma.writable) {
        // vma_needs_dirty_tracking(): every file system with a disk or a server behind it.
        constexpr std::string_view memory[] = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"};
        view.unknown_mount = filesystem->empty();
        view.tracked_file =
            !filesystem->empty() && std::ranges::find(memory, *filesystem) == std::end(memory);
      }
      break;
    default:
      break;
  }
  return view;
}

PinRules::PinRules(const std::string& release) {
  const auto kernel = kernel_number(release);
  if (!kernel) return;
  const bool vendor = release.find(".el") != std::string::npos;
  if (!vendor || *kernel >= 605) refuses_files = *kernel >= 605;
  if (!vendor || *kernel >= 602) always_writes = *kernel < 602;
}

PinZones::PinZones(SysRoot root) : root_(std::move(root)) {
  read_zones();
  read_cma();
}

void PinZones::read_zones() {
  const auto text = root_.read_file("proc/zoneinfo");
  if (!text) {
    movable_told_ =
        root_.recorded() && text.error().code == Errc::not_found ? Told::nowhere : Told::failed;
    return;
  }
  std::string_view rest = *text;
  bool in_movable = false, any = false;
  std::optional<std::uint64_t> spanned;
  while (!rest.empty()) {
    const std::string_view line = take_line(rest);
    if (line.starts_with("Node ")) {
      any = true;
      in_movable = line.ends_with(" Movable");
      spanned = 0;
    } else if (in_movable) {
      if (const auto value = after(line, "spanned")) spanned = number(*value);
      if (const auto value = after(line, "start_pfn:"); value && spanned != 0) {
        const auto start = number(*value);
        if (start && spanned && *start <= UINT64_MAX - *spanned)
          movable_.push_back({{*start}, {*start + *spanned}});
        else
          movable_told_ = Told::failed;
      }
    }
  }
  if (!any) movable_told_ = Told::failed;
  if (movable_.empty()) return;
  if (const auto size = root_.read_file("sys/devices/system/memory/block_size_bytes"))
    block_frames_ = root_.page_size().pages(number(*size, 16).value_or(0));
}

void PinZones::read_cma() {
  const auto areas = root_.list("sys/kernel/debug/cma");
  if (!areas) {
    const auto total = memory_kilobytes(root_, "CmaTotal:");
    // Without the line a running kernel has no CMA.
    if (total && (*total ? **total == 0 : !root_.recorded())) return;
    const bool nowhere = areas.error().code == Errc::not_found && (total || root_.recorded());
    cma_told_ = nowhere ? Told::nowhere : Told::failed;
    return;
  }
  for (const std::string& area : *areas) {
    const std::string folder = "sys/kernel/debug/cma/" + area;
    const auto base = root_.read_file((folder + "/base_pfn").c_str());
    const auto count = root_.read_file((folder + "/count").c_str());
    const auto start = base ? number(*base) : std::nullopt;
    const auto frames = count ? number(*count) : std::nullopt;
    if (!start || !frames || *start > UINT64_MAX - *frames)
      cma_told_ = Told::failed;
    else if (*frames != 0)
      cma_.push_back({{*start}, {*start + *frames}});
  }
}

bool PinZones::block_is_movable(std::uint64_t block) const {
  const std::string path =
      "sys/devices/system/memory/memory" + std::to_string(block) + "/valid_zones";
  const auto zones = root_.read_file(path.c_str());
  // Without memory hotplug there are no such files, and no overlap of zones either.
  return !zones || zones->find("Movable") != std::string::npos;
}

std::optional<FrameRange> PinZones::movable(FrameRange frames) const {
  while (const auto run = first_common(frames, movable_)) {
    if (block_frames_ == 0) return run;
    const std::uint64_t block = run->start.value / block_frames_;
    const FrameRange part{run->start, std::min(run->end, Pfn{(block + 1) * block_frames_})};
    if (block_is_movable(block)) return part;
    frames.start = part.end;
  }
  return std::nullopt;
}

std::optional<FrameRange> PinZones::cma(FrameRange frames) const {
  return first_common(frames, cma_);
}

bool nothing_poisoned(const SysRoot& root) {
  const auto corrupted = memory_kilobytes(root, "HardwareCorrupted:");
  return corrupted && *corrupted == 0;
}

PinReader::PinReader(const SysRoot& root) {
  if (!root.recorded()) device_ = Fd{::open(VMEM_DEVICE, O_RDONLY | O_CLOEXEC)};
}

PinAnswer unpinned_frames(Pfn first, std::uint64_t frames, std::uint64_t leaf, FrameQuestion ask,
                          FunctionRef<void(Pfn, std::uint64_t)> sink) {
  std::array<vmem_frame, 512> answers;
  PinAnswer answer = PinAnswer::whole;
  std::uint64_t one_by_one_from = 0;  // a leaf whose compound page was split since it was walked
  for (std::uint64_t done = 0; done < frames;) {
    const Pfn here = first + done;
    const bool large = leaf > 1 && done >= one_by_one_from;
    const std::uint64_t count = large ? 1 : std::min<std::uint64_t>(answers.size(), frames - done);
    const std::uint64_t told = ask(here, std::span(answers).first(count));
    if (told == 0 || told > count) return PinAnswer::refused;
    std::uint64_t i = 0;
    while (i < told) {
      const vmem_frame& frame = answers[i];
      // A frame beyond the kernel's memory, and one that changes hands, tells nothing of pins.
      const bool known =
          (frame.flags & VMEM_FRAME_ONLINE) != 0 && (frame.flags & VMEM_FRAME_CHANGING) == 0;
      std::uint64_t of = 1;
      if (known && frame.order != 0 && frame.order < 64) {
        const std::uint64_t compound = std::uint64_t{1} << frame.order;
        of = compound - ((here.value + i) & (compound - 1));
      } else if (large) {
        one_by_one_from = done + leaf - (here.value & (leaf - 1));
      }
      of = std::min(of, frames - done - i);
      if (!known)
        answer = PinAnswer::partly;
      else if ((frame.flags & VMEM_FRAME_MAYBE_PINNED) == 0)
        sink(here + i, of);
      i += of;
    }
    done += i;
  }
  return answer;
}

PinAnswer PinReader::unpinned(Pfn first, std::uint64_t frames, std::uint64_t leaf,
                              FunctionRef<void(Pfn, std::uint64_t)> sink) const {
  const auto ask = [&](Pfn from, std::span<vmem_frame> answers) -> std::uint64_t {
    vmem_frames question{};
    question.size = sizeof question;
    question.pfn = from.value;
    question.count = answers.size();
    question.frames = reinterpret_cast<std::uintptr_t>(answers.data());
    return ioctl(device_.get(), VMEM_IOC_FRAMES, &question) == 0 ? question.done : 0;
  };
  return unpinned_frames(first, frames, leaf, ask, sink);
}

LockLimits read_lock_limits(const Process& process) {
  LockLimits limits;
  if (auto text = process.read_file("limits"); text) {
    std::string_view rest = *text;
    while (!rest.empty()) {
      const auto value = after(take_line(rest), "Max locked memory");
      if (!value) continue;
      limits.memlock = value->starts_with("unlimited") ? UINT64_MAX : number(*value);
    }
  }
  if (auto text = process.read_file("status"); text) {
    constexpr unsigned cap_ipc_lock = 14;  // include/uapi/linux/capability.h
    std::string_view rest = *text;
    while (!rest.empty()) {
      const std::string_view line = take_line(rest);
      if (const auto value = after(line, "VmPin:")) limits.pinned = kilobytes(*value);
      if (const auto value = after(line, "VmLck:")) limits.locked = kilobytes(*value);
      if (const auto value = after(line, "CapEff:")) {
        if (const auto set = number(*value, 16)) limits.ipc_lock = (*set >> cap_ipc_lock & 1) != 0;
      }
    }
  }
  return limits;
}

std::string_view to_string(Severity severity) {
  switch (severity) {
    case Severity::info:
      return "info";
    case Severity::warning:
      return "warning";
    case Severity::error:
      return "error";
    case Severity::unknown:
      return "unknown";
  }
  return "unknown";
}

namespace {

struct KindText {
  std::string_view name, advice;
};

KindText text_of(AuditFindingKind kind) {
  switch (kind) {
    case AuditFindingKind::unmapped:
      return {"unmapped", "deregister before unmapping; the device still reaches the old frames"};
    case AuditFindingKind::not_resident:
      return {"not-resident",
              "touch the pages before use, and keep them: MADV_DONTNEED, fallocate(PUNCH_HOLE) and "
              "munmap() take them away from a registered range"};
    case AuditFindingKind::swapped:
      return {"swapped",
              "lock or pin the pages (mlock(), registration) before the device uses them"};
    case AuditFindingKind::not_registrable:
      return {"not-registrable",
              "register ordinary memory; for device memory use a dma-buf (ibv_reg_dmabuf_mr())"};
    case AuditFindingKind::iova_mismatch:
      return {"iova-mismatch",
              "the device reaches another frame: register the memory again (DPDK: restart the "
              "primary, or do not unmap, migrate or soft-offline its pages)"};
    case AuditFindingKind::no_iova:
      return {"no-iova",
              "a device cannot be told of this memory: with --no-huge, or without the right to see "
              "physical addresses, use IOVA as VA with an IOMMU"};
    case AuditFindingKind::dma_mask:
      return {"dma-mask", "use IOVA as VA with an IOMMU, or memory at lower addresses"};
    case AuditFindingKind::page_size:
      return {"page-size", "the memory is mapped by smaller pages than it was registered with"};
    case AuditFindingKind::no_longterm_pin:
      return {"no-longterm-pin",
              "since Linux 6.5 a shared mapping of a file cannot be pinned for writing, unless the "
              "file is memory: use anonymous memory, memfd or hugetlbfs"};
    case AuditFindingKind::beyond_eof:
      return {"beyond-eof", "the file is shorter than its mapping: extend it (ftruncate()) first"};
    case AuditFindingKind::fork_hazard:
      return {"fork-hazard",
              "call ibv_fork_init() first, or madvise(MADV_DONTFORK), or do not fork while it is "
              "registered"};
    case AuditFindingKind::shared_cow:
      return {"shared-cow",
              "the next write moves the page: write to it before registering, and use "
              "MADV_DONTFORK where the process forks"};
    case AuditFindingKind::ksm:
      return {"ksm", "madvise(MADV_UNMERGEABLE) before registering"};
    case AuditFindingKind::zero_page:
      return {"zero-page", "write to the pages before registering: reading maps the zero page"};
    case AuditFindingKind::hwpoison:
      return {
          "hwpoison",
          "the page is lost: unmap it (munmap(), or map anew over it) and register what is left; "
          "the frame has a memory error: replace the DIMM"};
    case AuditFindingKind::spans_nodes:
      return {"spans-nodes", "bind the memory to one node (mbind(), numactl --membind)"};
    case AuditFindingKind::remote_node:
      return {"remote-node", "allocate on the device's node (numactl --membind, --socket-mem)"};
    case AuditFindingKind::movable:
      return {
          "movable",
          "pages of ZONE_MOVABLE are migrated when pinned, which may fail; unpinned they may move "
          "at any time"};
    case AuditFindingKind::cma:
      return {"cma", "pages of a CMA area are migrated when pinned, which may fail"};
    case AuditFindingKind::fragmented:
      return {"fragmented", "use huge pages: the device needs fewer table entries"};
    case AuditFindingKind::over_memlock:
      return {"over-memlock",
              "raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) or grant CAP_IPC_LOCK; registering "
              "fails with ENOMEM"};
    case AuditFindingKind::unlinked:
      return {"unlinked",
              "the primary keeps its pages until it ends, but no secondary can start: leave the "
              "files of hugetlbfs alone, or expect it of --huge-unlink"};
    case AuditFindingKind::unpinned:
      return {"unpinned", "the kernel may move these pages under the device: register them again"};
    case AuditFindingKind::hidden:
      return {"hidden", "PFNs take CAP_SYS_ADMIN in the initial user namespace"};
    case AuditFindingKind::unseen:
      return {"unseen", "page tables through --backend bpf or kmod may tell"};
    case AuditFindingKind::changed:
      return {"changed", "stop the process, or ask again"};
    case AuditFindingKind::special_entry:
      return {"special-entry",
              "a page that is being migrated: ask again; one that lies in a device's memory comes "
              "back when the process touches it"};
    case AuditFindingKind::flags_unknown:
      return {"flags-unknown", "reading smaps takes CAP_SYS_PTRACE"};
    case AuditFindingKind::frames_unknown:
      return {
          "frames-unknown",
          "/proc/kpageflags was not shown (it takes CAP_DAC_READ_SEARCH, or a recording that has "
          "it), or says ksm of all anonymous memory, as Linux 6.10 to 6.16 do"};
    case AuditFindingKind::file_unknown:
      return {"file-unknown",
              "the size of a mapped file takes CAP_SYS_ADMIN, and a live process; its file system, "
              "/proc/PID/mountinfo"};
    case AuditFindingKind::limits_unknown:
      return {"limits-unknown", "/proc/PID/limits and status could not be read"};
    case AuditFindingKind::iova_unknown:
      return {
          "iova-unknown",
          "a DPDK primary with --in-memory or --no-shconf shares no table of its IOVAs: start it "
          "without these, or use DPDK 23.07 or newer, whose telemetry tells them"};
    case AuditFindingKind::node_unknown:
      return {"node-unknown",
              "/sys/devices/system/node does not tell the node of these frames: mount /sys, or "
              "record it"};
    case AuditFindingKind::zone_unknown:
      return {
          "zone-unknown",
          "/proc/zoneinfo, or an area below /sys/kernel/debug/cma, could not be read: ask again"};
  }
  return {"unknown", "ask again"};
}

}  // namespace

std::string_view to_string(AuditFindingKind kind) { return text_of(kind).name; }
std::string_view advice(AuditFindingKind kind) { return text_of(kind).advice; }

}  // namespace vmem
