// SPDX-License-Identifier: MIT
/// What to do about a finding: one sentence for each command, kind and detail. Who plans has
/// registered nothing yet; who asks of ranges, regions or segments has.
#include <unistd.h>

#include <algorithm>
#include <iterator>

#include "regaudit.hpp"

namespace vmem::tools {
namespace {

/// As plan accepts it: "0x7f2c00000000+14M".
std::string typed(VaRange range) {
  std::uint64_t size = range.bytes();
  std::size_t unit = 0;
  constexpr std::string_view units[] = {"", "K", "M", "G", "T"};
  while (size != 0 && size % 1024 == 0 && unit + 1 < std::size(units)) size /= 1024, ++unit;
  return fmt::format("{:#x}+{}{}", range.start.value, size, units[unit]);
}

VaRange range_of(const Evidence& e) { return {e.va, e.va + e.bytes}; }

/// The first place of a finding, and how many there are besides.
std::string place(const AuditFinding& f) {
  if (f.where.empty()) return "here";
  std::string text = typed(range_of(f.where.front()));
  if (f.runs > 1) text += fmt::format(" and {} more place{}", f.runs - 1, f.runs == 2 ? "" : "s");
  return text;
}

/// Kinds of error that some pages have and others have not.
bool is_of_pages(AuditFindingKind kind) {
  return kind == AuditFindingKind::unmapped || kind == AuditFindingKind::not_registrable ||
         kind == AuditFindingKind::hwpoison || kind == AuditFindingKind::beyond_eof ||
         kind == AuditFindingKind::no_longterm_pin;
}

/// Whether so little is known of the pages that nobody can be told to register them.
bool is_not_known(const AuditFinding& finding) {
  return finding.kind == AuditFindingKind::unseen || finding.kind == AuditFindingKind::changed ||
         finding.kind == AuditFindingKind::special_entry;
}

/// The largest part of the registration that no such error touches, and that was seen. Empty: there
/// is none, or the findings do not keep all of their places.
std::optional<VaRange> usable(const Asked& asked) {
  if (asked.registration == nullptr || asked.audit == nullptr) return {};
  std::vector<VaRange> bad;
  for (const AuditFinding& f : asked.audit->findings) {
    if ((f.severity != Severity::error || !is_of_pages(f.kind)) && !is_not_known(f)) continue;
    if (f.runs > f.where.size()) return {};
    std::ranges::transform(f.where, std::back_inserter(bad), range_of);
  }
  std::ranges::sort(bad, {}, [](const VaRange& r) { return r.start; });
  const VaRange all = asked.registration->range;
  VaRange best{all.start, all.start};
  VirtAddr from = all.start;
  const auto consider = [&](VirtAddr to) {
    if (to > from && to - from > best.bytes()) best = {from, to};
  };
  for (const VaRange& r : bad) {
    consider(r.start);
    from = std::max(from, r.end);
  }
  consider(all.end);
  return best.empty() ? std::nullopt : std::optional(best);
}

/// ", or register 0x7f2c00000000+14M", where such a part is known.
std::string or_register(const Asked& asked) {
  const auto part = usable(asked);
  return part ? ", or register " + typed(*part) : std::string();
}

std::string unmapped(const AuditFinding& f, const Asked& asked) {
  if (asked.mode == "plan")
    return fmt::format("no memory is mapped at {}: map it{}", place(f), or_register(asked));
  if (asked.mode == "dpdk")
    return "the process has unmapped memory that DPDK's files list; the device still reaches the "
           "old "
           "frames: restart the primary";
  return "deregister before unmapping; the device still reaches the old frames";
}

std::string guard(const AuditFinding& f, const Asked& asked) {
  const auto part = usable(asked);
  if (!part) return "the kernel pins no guard page: leave the guard out";
  const bool behind = std::ranges::any_of(
      f.where, [&](const Evidence& e) { return range_of(e).end == part->start; });
  return behind ? fmt::format("leave the guard out: register from {:#x}, as {}", part->start.value,
                              typed(*part))
                : "leave the guard out: register " + typed(*part);
}

std::string not_registrable(const AuditFinding& f, const Asked& asked) {
  if (f.flag == "guard page") return guard(f, asked);
  if (f.flag == "secretmem")
    return "the kernel pins no memory of memfd_secret(): register other memory" +
           or_register(asked);
  if (f.flag == "file on DAX")
    return "a file on DAX cannot be pinned for long: register anonymous memory, or a device "
           "(/dev/dax)" +
           or_register(asked);
  if (f.flag == "no access (PROT_NONE)")
    return fmt::format("give access to {} first (mprotect()){}", place(f), or_register(asked));
  if (f.flag == "not writable")
    return "make it writable (mprotect(PROT_WRITE)), or register it for a device that only reads "
           "(--access ro)" +
           or_register(asked);
  if (f.flag == "not writable, before Linux 6.2")
    return "before Linux 6.2 the kernel pins for writing also where the device only reads: map the "
           "memory writable";
  if (f.flag.find("shadow stack") != std::string_view::npos)
    return "a shadow stack is the processor's own: register other memory" + or_register(asked);
  return "register ordinary memory; for device memory use a dma-buf (ibv_reg_dmabuf_mr())" +
         or_register(asked);
}

std::string not_resident(const Asked& asked) {
  if (asked.mode == "plan")
    return "registering brings these pages in: it needs that much free memory";
  if (asked.mode == "dpdk")
    return "DPDK touches its memory when it starts, so something has taken these pages away since: "
           "restart the primary";
  if (asked.mode == "rdma")
    return "these pages were taken away (MADV_DONTNEED, fallocate(PUNCH_HOLE)) and the device "
           "still "
           "reaches the old frames: register the range again";
  return std::string(advice(AuditFindingKind::not_resident));
}

std::string swapped(const Asked& asked) {
  if (asked.mode == "plan") return "registering reads these pages back from swap";
  if (asked.mode == "dpdk")
    return "huge pages are never swapped: run DPDK on these, or lock its memory (mlockall())";
  return std::string(advice(AuditFindingKind::swapped));
}

std::string hwpoison(const AuditFinding& f, const Asked& asked) {
  if (asked.mode != "plan") return std::string(advice(AuditFindingKind::hwpoison));
  return fmt::format(
      "the memory at {} has a hardware error: map other memory there{}; replace the DIMM", place(f),
      or_register(asked));
}

std::string no_longterm_pin(const AuditFinding& f, const Asked& asked) {
  if (asked.mode != "plan")
    return "the file system does not learn of what the device writes, and Linux 6.5 and later "
           "refuse "
           "such a registration: use anonymous memory, memfd or hugetlbfs";
  if (f.severity == Severity::warning)
    return "this kernel allows it; Linux 6.5 and later refuse it: use anonymous memory, memfd or "
           "hugetlbfs";
  return std::string(advice(AuditFindingKind::no_longterm_pin)) + or_register(asked);
}

std::string fork_hazard(const Asked& asked) {
  if (asked.mode == "dpdk")
    return "use huge pages, which DPDK maps shared, or do not fork while a device uses the memory";
  return std::string(advice(AuditFindingKind::fork_hazard));
}

/// Memory that the next write moves: shared-cow, ksm, zero-page.
std::string moves(AuditFindingKind kind, const Asked& asked) {
  if (asked.mode != "plan") {
    if (asked.mode == "rdma")
      return "the next write moves the page away from the device: write to it, then register it "
             "again";
    return std::string(advice(kind));
  }
  if (kind == AuditFindingKind::ksm)
    return "registering makes a page of its own of each; madvise(MADV_UNMERGEABLE) does it before";
  if (kind == AuditFindingKind::zero_page)
    return "registering puts memory of its own in place of the zero page: it needs that much free "
           "memory";
  return "registering makes a copy of its own of each page: it needs that much free memory";
}

std::string movable(AuditFindingKind kind, const Asked& asked) {
  const std::string pages =
      kind == AuditFindingKind::cma ? "pages of a CMA area" : "pages of ZONE_MOVABLE";
  if (asked.mode == "plan") return "registering migrates " + pages + " first, which may fail";
  if (asked.mode == "dpdk") return pages + " may move at any time unless they are pinned";
  if (asked.mode == "rdma")
    return pages + " are migrated when pinned: one that is here now is not held for the device";
  return std::string(advice(kind));
}

std::string over_memlock(const Asked& asked) {
  constexpr std::string_view how =
      "raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK=) or grant CAP_IPC_LOCK";
  if (asked.mode == "plan") return fmt::format("{}; registering fails with ENOMEM", how);
  return fmt::format("no more can be registered (ENOMEM), nor this again: {}", how);
}

std::string hidden(const Asked& asked) {
  if (asked.recorded) return "whoever made this recording was not shown PFNs: record it as root";
  if (asked.root)
    return "PFNs are shown with CAP_SYS_ADMIN in the initial user namespace, which this root has "
           "not: "
           "run outside of the container";
  return "PFNs are shown with CAP_SYS_ADMIN in the initial user namespace: run as root";
}

std::string unseen(const AuditFinding& f, const Asked& asked) {
  if (f.flag == to_string(Reason::gate_vma)) return "nothing can register the kernel's own page";
  if (f.flag == left_out_flag)
    return "what is mapped there is not known: the line is none that a kernel writes";
  if (asked.recorded)
    return "the recording does not show this memory: record it by page tables (--backend bpf or "
           "kmod)";
  return std::string(advice(AuditFindingKind::unseen));
}

/// For what a reader lacks: how to get it.
std::string rights(const Asked& asked, std::string_view file, std::string_view capability) {
  if (asked.recorded) return fmt::format("the recording does not hold {}", file);
  if (asked.root)
    return fmt::format(
        "{} could not be read although this is root: it needs {} where the process "
        "lives",
        file, capability);
  return fmt::format("reading {} needs {}: run as root", file, capability);
}

std::string node_unknown(const AuditFinding& f, const Asked& asked) {
  if (f.flag != "/sys/devices/system/node")
    return "no memory block of any node holds these frames, so their distance is not known";
  return asked.recorded ? "the recording does not hold /sys/devices/system/node: record it, too"
                        : "/sys/devices/system/node could not be read: mount /sys, and ask again";
}

}  // namespace

Asked asked_in(const Report& report, const SysRoot& root) {
  return {.mode = report.mode, .recorded = root.recorded(), .root = geteuid() == 0};
}

std::string advice_for(const AuditFinding& f, const Asked& asked) {
  using Kind = AuditFindingKind;
  switch (f.kind) {
    case Kind::unmapped:
      return unmapped(f, asked);
    case Kind::not_resident:
      return not_resident(asked);
    case Kind::swapped:
      return swapped(asked);
    case Kind::not_registrable:
      return not_registrable(f, asked);
    case Kind::hwpoison:
      return hwpoison(f, asked);
    case Kind::beyond_eof:
      return "the file is shorter than its mapping: extend it (ftruncate())" + or_register(asked);
    case Kind::dma_mask:
      return f.flag == "dma_maskbits"
                 ? std::string(advice(f.kind))
                 : "device addresses end at 2^64: register less, or at a lower "
                   "IOVA";
    case Kind::no_longterm_pin:
      return no_longterm_pin(f, asked);
    case Kind::fork_hazard:
      return fork_hazard(asked);
    case Kind::shared_cow:
    case Kind::ksm:
    case Kind::zero_page:
      return moves(f.kind, asked);
    case Kind::remote_node:
      return asked.mode == "dpdk" ? std::string(advice(f.kind))
                                  : "allocate on the device's node (mbind(), numactl --membind)";
    case Kind::movable:
    case Kind::cma:
      return movable(f.kind, asked);
    case Kind::over_memlock:
      return over_memlock(asked);
    case Kind::hidden:
      return hidden(asked);
    case Kind::unseen:
      return unseen(f, asked);
    case Kind::flags_unknown:
      return rights(asked, "smaps", "CAP_SYS_PTRACE");
    case Kind::frames_unknown:
      return rights(asked, "/proc/kpageflags", "CAP_DAC_READ_SEARCH");
    case Kind::file_unknown:
      return f.flag == "mountinfo"
                 ? rights(asked, "/proc/PID/mountinfo", "CAP_SYS_PTRACE")
                 : rights(asked, "the size of the mapped file (map_files)", "CAP_SYS_ADMIN");
    case Kind::limits_unknown:
      return f.flag == "limits" ? rights(asked, "/proc/PID/limits", "CAP_SYS_PTRACE")
                                : rights(asked, "/proc/PID/status", "CAP_SYS_PTRACE");
    case Kind::node_unknown:
      return node_unknown(f, asked);
    case Kind::zone_unknown:
      return f.flag == "zoneinfo" ? rights(asked, "/proc/zoneinfo", "a whole /proc")
                                  : rights(asked, "/sys/kernel/debug/cma", "CAP_DAC_READ_SEARCH");
    default:
      return std::string(advice(f.kind));
  }
}

}  // namespace vmem::tools
