// SPDX-License-Identifier: MIT
/// One walk over everything registered. Registrations are sorted and near ones walked as one
/// span; each extent is handed to those that it touches, and each keeps constant state, so that
/// memory does not grow with what is registered.
#include "vmem/registration.hpp"

#include <algorithm>

#include "errors.hpp"
#include "leaf_sharing.hpp"
#include "registration_facts.hpp"
#include "vmem/frames.hpp"
#include "vmem/physmap.hpp"

namespace vmem {
namespace {

/// Walking a gap of this many bytes costs less than another walk.
constexpr std::uint64_t bridged_bytes = 2 << 20;

// include/uapi/linux/kernel-page-flags.h
constexpr std::uint64_t kpf_anon = 1ULL << 12, kpf_hwpoison = 1ULL << 19, kpf_ksm = 1ULL << 21,
                        kpf_zero_page = 1ULL << 24;

std::uint64_t sum_of(std::uint64_t a, std::uint64_t b) {
  return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

/// Bytes of `pages` pages, as far as 64 bits hold them.
std::uint64_t bytes_of(std::uint64_t pages, unsigned shift) {
  return pages > (UINT64_MAX >> shift) ? UINT64_MAX : pages << shift;
}

/// Adds a run to the finding of its kind, which is made if need be.
void add(Audit& audit, AuditFindingKind kind, Severity severity, std::string_view flag,
         Evidence evidence) {
  const auto same = [&](const AuditFinding& f) {
    return f.kind == kind && f.severity == severity && f.flag == flag;
  };
  auto found = std::ranges::find_if(audit.findings, same);
  if (found == audit.findings.end()) {
    audit.findings.push_back({.kind = kind, .severity = severity, .flag = flag});
    found = audit.findings.end() - 1;
  }
  found->bytes += evidence.bytes;
  const bool goes_on = found->runs != 0 && found->end == evidence.va;
  found->end = evidence.va + evidence.bytes;
  if (goes_on) {
    if (found->runs <= AuditFinding::kept_runs) found->where.back().bytes += evidence.bytes;
    return;
  }
  ++found->runs;
  if (found->where.size() < AuditFinding::kept_runs) found->where.push_back(evidence);
}

/// The pages of size 1 << shift that cover [first, last], of which both are in it.
std::uint64_t blocks(std::uint64_t first, std::uint64_t last, unsigned shift) {
  return (last >> shift) - (first >> shift) + 1;
}
std::uint64_t blocks(VaRange range, unsigned shift) {
  return range.empty() ? 0 : blocks(range.start.value, range.end.value - 1, shift);
}

/// A registration while it is walked.
struct Open {
  const Registration* registration = nullptr;
  Audit* audit = nullptr;
  std::uint64_t misfit =
      0;   ///< bits in which device and physical addresses differ, as the kernel's
  bool any = false;           ///< a frame has been seen
  PhysAddr next;              ///< where consecutive frames go on
  std::uint64_t run = 0;      ///< bytes of the extent that is growing
  VirtAddr vma_done;          ///< all VMAs below have been judged
};

class Auditor {
 public:
  Auditor(const Process& process, Translator& translator, VmaInspector& inspector,
          const AuditOptions& options)
      : process_(process),
        translator_(translator),
        options_(options),
        page_size_(process.root().page_size()),
        inspector_(inspector),
        zones_(process.root()),
        pins_(process.root()),
        rules_(process.root().kernel_release()),
        nothing_poisoned_(nothing_poisoned(process.root())),
        recorded_(process.root().recorded()) {
    leaf_sizes_[0] = page_size_;
    leaf_sizes_[1] = leaf_sizes_[0].next_level();
    leaf_sizes_[2] = PageSize::valid(leaf_sizes_[1].bytes() << (page_size_.shift() - 3))
                         ? PageSize{leaf_sizes_[1].bytes() << (page_size_.shift() - 3)}
                         : leaf_sizes_[1];
    if (auto reader = FrameReader::open(process.root(), FrameFacts::has_flags); reader)
      flags_.emplace(std::move(*reader));
    if (auto map = NumaMap::read(process.root()))
      numa_ = std::move(*map);
    else
      nodes_told_ = missing(process.root(), "proc/self/numa_maps", map.error());
  }

  Result<std::vector<Audit>> run(std::span<const Registration> registrations) {
    std::vector<Audit> audits(registrations.size());
    std::vector<std::size_t> order(registrations.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::ranges::sort(order, {}, [&](std::size_t i) { return registrations[i].range.start; });
    for (const Registration& r : registrations) {
      if (!r.range.empty()) continue;
      return std::unexpected(Error{.code = Errc::invalid_argument,
                                   .what = "auditing an empty range",
                                   .path = {},
                                   .address = r.range.start.value});
    }
    for (std::size_t first = 0; first < order.size();) {
      VaRange span = registrations[order[first]].range;
      std::size_t last = first + 1;
      for (; last < order.size(); ++last) {
        const VaRange next = registrations[order[last]].range;
        if (next.start > span.end && next.start - span.end > bridged_bytes) break;
        span.end = std::max(span.end, next.end);
      }
      auto walked =
          walk(span, registrations, std::span(order).subspan(first, last - first), audits);
      if (!walked) return std::unexpected(std::move(walked.error()));
      first = last;
    }
    limits(registrations, audits);
    return audits;
  }

 private:
  /// What it means that nodes cannot be read: of a kernel without NUMA (no numa_maps either) all
  /// memory is node 0's.
  Told missing(const SysRoot& root, const char* witness, const Error& error) {
    if (error.code != Errc::not_found) return Told::failed;
    if (recorded_) return Told::nowhere;
    const auto file = root.open_file(witness);
    if (file || file.error().code != Errc::not_found) return Told::failed;
    one_node_ = true;
    return Told::yes;
  }

  Result<void> walk(VaRange span, std::span<const Registration> registrations,
                    std::span<const std::size_t> order, std::vector<Audit>& audits) {
    std::vector<Open> open;
    std::size_t next = 0;
    VirtAddr reached = span.start;
    const auto walked = translate(
        process_, translator_, inspector_, span, options_.walk,
        [&](const Vma* vma, const Extent& extent) {
          // The end of the address space does not fit into 64 bits.
          const VirtAddr end = extent.end().value != 0 ? extent.end() : VirtAddr{UINT64_MAX};
          reached = end;
          while (next < order.size() && registrations[order[next]].range.start < end) {
            open.push_back(
                {.registration = &registrations[order[next]], .audit = &audits[order[next]]});
            begin(open.back());
            ++next;
          }
          std::erase_if(open, [&](Open& o) {
            const VaRange part = intersect(o.registration->range, {extent.va, end});
            if (!part.empty()) piece(o, vma, extent, part);
            if (o.registration->range.end > end) return false;
            finish(o);
            return true;
          });
          return true;
        });
    // What a walk that was stopped did not come to.
    const auto missed = [&](const Registration& r, Audit& audit) {
      const VaRange rest{std::max(r.range.start, reached), r.range.end};
      audit.complete = false;
      audit.node_unknown_bytes += rest.bytes();
      add(audit, AuditFindingKind::unseen, Severity::unknown, "the walk was stopped",
          {.va = rest.start, .bytes = rest.bytes()});
    };
    for (Open& o : open) {
      missed(*o.registration, *o.audit);
      finish(o);
    }
    for (; next < order.size(); ++next) missed(registrations[order[next]], audits[order[next]]);
    return walked;
  }

  /// What does not depend on pages.
  void begin(Open& o) const {
    const Registration& r = *o.registration;
    o.audit->pins_checked = r.pinned && r.through_kernel && pins_.valid();
    const Evidence whole{.va = r.range.start, .bytes = r.range.bytes()};
    if (r.iova_rule == IovaRule::virt && r.iova != r.range.start.value) {
      Evidence evidence = whole;
      evidence.expected = r.iova;
      evidence.actual = r.range.start.value;
      add(*o.audit, AuditFindingKind::iova_mismatch, Severity::error, "iova is not the address",
          evidence);
    }
    if (!r.iova_known && r.no_iova)
      add(*o.audit, AuditFindingKind::no_iova, *r.no_iova, "RTE_BAD_IOVA", whole);
    const bool masked = r.dma_mask_bits != 0 && r.dma_mask_bits < 64;
    const bool wraps = iova_wraps(r);
    if (r.iova_known && (wraps || (masked && last_iova(r) >> r.dma_mask_bits != 0))) {
      Evidence evidence = whole;
      evidence.actual = r.iova;
      add(*o.audit, AuditFindingKind::dma_mask, Severity::error,
          wraps ? "the IOVAs end above 2^64" : "dma_maskbits", evidence);
    }
  }

  static bool iova_wraps(const Registration& r) { return iova_bytes(r) - 1 > UINT64_MAX - r.iova; }
  /// Of the last byte; unless iova_wraps().
  static std::uint64_t last_iova(const Registration& r) { return r.iova + (iova_bytes(r) - 1); }

  static std::uint64_t iova_bytes(const Registration& r) {
    return r.iova_bytes == 0 ? r.range.bytes() : std::min(r.iova_bytes, r.range.bytes());
  }

  Severity planned_or(Severity severity) const {
    return options_.planned ? Severity::info : severity;
  }

  void judge_vma(Open& o) const {
    const Registration& r = *o.registration;
    Audit& audit = *o.audit;
    const VaRange in_vma = intersect(r.range, view_.range);
    const Evidence evidence{.va = in_vma.start, .bytes = in_vma.bytes()};
    o.vma_done = in_vma.end;
    if (!view_.flags_known)
      add(audit, AuditFindingKind::flags_unknown, Severity::unknown, "smaps", evidence);
    if (r.through_kernel) {
      if (view_.refused != nullptr)
        add(audit, AuditFindingKind::not_registrable, Severity::error, view_.refused, evidence);
      else if (r.device_writes && view_.no_write != nullptr)
        add(audit, AuditFindingKind::not_registrable, Severity::error, view_.no_write, evidence);
      else if (view_.unknown_mount)  // it may be on DAX, or track writes
        add(audit, AuditFindingKind::file_unknown, Severity::unknown, "mountinfo", evidence);
      else if (r.device_writes && view_.tracked_file)
        judge_file(audit, evidence);
      else if (options_.planned && !r.device_writes && view_.no_write != nullptr && view_.shared)
        judge_forced_write(audit, evidence);
    }
    if (!r.through_kernel && view_.hugetlb && view_.unlinked)
      add(audit, AuditFindingKind::unlinked, Severity::info, "(deleted)", evidence);
    const bool registrable = !r.through_kernel || view_.refused == nullptr;
    if (view_.copied_at_fork && registrable)
      add(audit, AuditFindingKind::fork_hazard,
          r.copied_at_fork ? Severity::info : planned_or(Severity::warning), "no VmFlags dc",
          evidence);
  }

  /// A shared, writable mapping of a file that is not memory.
  void judge_file(Audit& audit, const Evidence& evidence) const {
    constexpr auto kind = AuditFindingKind::no_longterm_pin;
    if (!options_.planned)  // it is registered, so it was possible
      return add(audit, kind, Severity::warning, "shared file", evidence);
    if (rules_.refuses_files == false)
      return add(audit, kind, Severity::warning, "shared file, before Linux 6.5", evidence);
    if (!rules_.refuses_files)
      return add(audit, kind, Severity::unknown, "shared file; the kernel's release", evidence);
    add(audit, kind, Severity::error, "shared file", evidence);
  }

  /// Shared memory that is only read, for a device that only reads.
  void judge_forced_write(Audit& audit, const Evidence& evidence) const {
    constexpr auto kind = AuditFindingKind::not_registrable;
    if (rules_.always_writes == false) return;
    add(audit, kind, rules_.always_writes ? Severity::error : Severity::unknown,
        "not writable, before Linux 6.2", evidence);
  }

  /// What to register and is not there yet: whether touching it brings it in.
  void absent(Audit& audit, const Evidence& evidence) const {
    if (!options_.planned)
      return add(audit, AuditFindingKind::not_resident, Severity::error, "", evidence);
    if (view_.refused != nullptr) return;
    const VaRange part{evidence.va, evidence.va + evidence.bytes};
    VaRange inside = part, beyond{part.end, part.end};
    if (view_.has_file) {
      if (!view_.file_end)
        return add(audit, AuditFindingKind::file_unknown, Severity::unknown, "map_files", evidence);
      inside.end = std::clamp(*view_.file_end, part.start, part.end);
      beyond.start = inside.end;
    }
    if (!inside.empty())
      add(audit, AuditFindingKind::not_resident, Severity::info, "",
          {.va = inside.start, .bytes = inside.bytes()});
    if (!beyond.empty())
      add(audit, AuditFindingKind::beyond_eof, Severity::error, "end of the file",
          {.va = beyond.start, .bytes = beyond.bytes()});
  }

  /// Another mapping may have come to the same range since: it is another VMA.
  void look_at(const Vma& vma) {
    if (vma == seen_) return;
    seen_ = vma;
    view_ = view_of(vma, inspector_);
    if (!options_.planned || !view_.has_file) return;
    const auto bytes = process_.mapped_file_bytes(vma.range);
    if (!bytes) return;
    const PageSize page = inspector_.hugetlb_page_size(vma).value_or(page_size_);
    const std::uint64_t reached =
        *bytes > UINT64_MAX - page.bytes() ? *bytes : page.ceil(VirtAddr{*bytes}).value;
    const std::uint64_t mapped = reached > vma.offset ? reached - vma.offset : 0;
    view_.file_end = vma.range.start + std::min(mapped, vma.range.bytes());
  }

  void piece(Open& o, const Vma* vma, const Extent& extent, VaRange part) {
    const Registration& r = *o.registration;
    Audit& audit = *o.audit;
    const Evidence evidence{.va = part.start, .bytes = part.bytes()};
    const bool first_of_vma = vma != nullptr && part.start >= o.vma_done;
    if (vma != nullptr) look_at(*vma);
    if (first_of_vma) judge_vma(o);
    if (extent.state != PageState::resident) audit.complete = false;
    switch (extent.state) {
      case PageState::resident:
        resident(o, extent, part);
        break;
      case PageState::absent:
        absent(audit, evidence);
        break;
      case PageState::swapped:
        add(audit, AuditFindingKind::swapped, planned_or(Severity::error), "", evidence);
        break;
      case PageState::guard:
        add(audit, AuditFindingKind::not_registrable, Severity::error, "guard page", evidence);
        break;
      case PageState::special:
        special(audit, extent, evidence);
        break;
      case PageState::hidden:
        audit.resident_bytes += part.bytes();
        audit.node_unknown_bytes += part.bytes();
        add(audit, AuditFindingKind::hidden, Severity::unknown, "PFN hidden", evidence);
        break;
      case PageState::unseen:
        audit.node_unknown_bytes += part.bytes();
        // What cannot be registered at all needs no frames to be told so.
        if (!r.through_kernel || view_.refused == nullptr)
          add(audit, AuditFindingKind::unseen, Severity::unknown, to_string(extent.reason),
              evidence);
        break;
      case PageState::unmapped:
        unmapped(audit, part);
        return;
      case PageState::changed:
        audit.node_unknown_bytes += part.bytes();
        add(audit, AuditFindingKind::changed, Severity::unknown, "", evidence);
        break;
    }
    // What another line tells may not be so, either.
    for (const OddLine& line : process_.odd_lines()) {
      if (const VaRange doubtful = process_.part_told_by(line, part); !doubtful.empty())
        left_out(audit, doubtful);
    }
  }

  static void left_out(Audit& audit, VaRange part) {
    audit.complete = false;
    add(audit, AuditFindingKind::unseen, Severity::unknown, left_out_flag,
        {.va = part.start, .bytes = part.bytes()});
  }

  /// Where no line of maps that was left out may tell of it, nothing is there.
  void unmapped(Audit& audit, VaRange part) const {
    const auto lines = process_.odd_lines();
    while (!part.empty()) {
      VaRange first = part;
      for (const OddLine& line : lines) {
        const VaRange told = process_.part_told_by(line, first);
        if (told.empty()) continue;
        first.end = told.start > first.start ? told.start : told.end;
      }
      if (process_.may_be_left_out(first)) {
        audit.node_unknown_bytes += first.bytes();
        left_out(audit, first);
      } else {
        add(audit, AuditFindingKind::unmapped, Severity::error, "no VMA",
            {.va = first.start, .bytes = first.bytes()});
      }
      part.start = first.end;
    }
  }

  void special(Audit& audit, const Extent& extent, Evidence evidence) const {
    if (names_frame(extent)) evidence.pfn = extent.pfn + page_size_.pages(evidence.va - extent.va);
    if (extent.reason == Reason::poison_marker) {
      add(audit, AuditFindingKind::hwpoison, Severity::error, "poison marker", evidence);
    } else if (extent.reason == Reason::poison) {
      add(audit, AuditFindingKind::hwpoison, Severity::error, "poison entry", evidence);
    } else {
      audit.node_unknown_bytes += evidence.bytes;
      add(audit, AuditFindingKind::special_entry, Severity::unknown, to_string(extent.reason),
          evidence);
    }
  }

  void resident(Open& o, const Extent& extent, VaRange part) {
    const Registration& r = *o.registration;
    Audit& audit = *o.audit;
    audit.resident_bytes += part.bytes();
    const PhysAddr pa = page_size_.address(extent.pfn) + (part.start - extent.va);
    const Pfn pfn = page_size_.frame(pa);
    const std::uint64_t frames = blocks(part, page_size_.shift());

    // As ib_umem_find_best_pgsz(): the device's address against the physical one.
    const std::uint64_t offset = part.start - r.range.start;
    const std::uint64_t device_address =
        r.iova_known && r.iova_rule != IovaRule::physical ? r.iova + offset : part.start.value;
    if (!o.any || pa != o.next) {
      if (o.any) o.misfit |= device_address;
      o.misfit |= pa.value ^ device_address;
      ++audit.extents;
      o.run = 0;
    }
    o.any = true;
    o.next = pa + part.bytes();
    o.run += part.bytes();
    audit.largest_extent = std::max(audit.largest_extent, o.run);

    if (r.iova_rule == IovaRule::physical && offset < iova_bytes(r) &&
        (offset > UINT64_MAX - r.iova || r.iova + offset != pa.value)) {
      add(audit, AuditFindingKind::iova_mismatch, Severity::error, "iova is not the PA",
          {.va = part.start,
           .bytes = std::min(part.bytes(), iova_bytes(r) - offset),
           .pfn = pfn,
           .expected = r.iova + offset,
           .actual = pa.value});
    }
    if (r.page_size != 0 && extent.leaf_shift != 0 &&
        (std::uint64_t{1} << extent.leaf_shift) < r.page_size) {
      add(audit, AuditFindingKind::page_size, Severity::error, "leaf size",
          {.va = part.start, .bytes = part.bytes(), .pfn = pfn});
    }
    nodes(o, part, pa);
    frame_flags(o, extent, part, pfn, frames);
    zones(o, part, pfn, frames);
    if (r.pinned && r.through_kernel) pins(o, extent, part, pfn, frames);
  }

  /// The evidence of frames [first, first + count) of the part that starts at frame `pfn`.
  Evidence evidence_of(VaRange part, Pfn pfn, Pfn first, std::uint64_t count) const {
    const VirtAddr page = page_size_.floor(part.start);
    const VirtAddr start = page + ((first.value - pfn.value) << page_size_.shift());
    const VaRange range = intersect(part, {start, start + (count << page_size_.shift())});
    return {.va = range.start, .bytes = range.bytes(), .pfn = first};
  }

  void nodes(Open& o, VaRange part, PhysAddr pa) const {
    const auto evidence = [&](std::uint64_t from, std::uint64_t bytes) {
      return Evidence{.va = part.start + from, .bytes = bytes, .pfn = page_size_.frame(pa + from)};
    };
    if (!numa_ && one_node_ && !view_.device_memory)
      return on_node(o, 0, evidence(0, part.bytes()));
    if (!numa_) return on_unknown_node(o, evidence(0, part.bytes()));
    for (std::uint64_t done = 0; done < part.bytes();) {
      const PhysAddr at = pa + done;
      const std::uint64_t bytes = std::min(part.bytes() - done, numa_->run_end(at) - at);
      if (const auto node = numa_->node(at))
        on_node(o, *node, evidence(done, bytes));
      else
        on_unknown_node(o, evidence(done, bytes));
      done += bytes;
    }
  }

  static void on_node(Open& o, unsigned node, Evidence evidence) {
    Audit& audit = *o.audit;
    auto found =
        std::ranges::lower_bound(audit.nodes, node, {}, &std::pair<unsigned, std::uint64_t>::first);
    if (found == audit.nodes.end() || found->first != node)
      found = audit.nodes.insert(found, {node, 0});
    found->second += evidence.bytes;
    if (!o.registration->node || *o.registration->node == node) return;
    evidence.expected = *o.registration->node;
    evidence.actual = node;
    add(audit, AuditFindingKind::remote_node, Severity::warning, "node", evidence);
  }

  void on_unknown_node(Open& o, Evidence evidence) const {
    o.audit->node_unknown_bytes += evidence.bytes;
    // Nobody expects a node of a device's own memory, or of a recording without nodes.
    const bool expected = o.registration->node.has_value();
    if (!expected && (view_.device_memory || nodes_told_ == Told::nowhere)) return;
    if (expected) evidence.expected = *o.registration->node;
    add(*o.audit, AuditFindingKind::node_unknown, Severity::unknown,
        numa_ ? "no node's RAM" : "/sys/devices/system/node", evidence);
  }

  /// Frames whose facts the first of them tells. A poisoned page of a transparent huge page has its
  /// own flag, and each of its pages may be mapped by another process alone; hugetlb has both on
  /// the head.
  std::uint64_t stride(const Extent& extent, bool by_mapcount) const {
    if (extent.leaf_shift <= page_size_.shift()) return 1;
    return view_.hugetlb || (nothing_poisoned_ && !by_mapcount)
               ? std::uint64_t{1} << (extent.leaf_shift - page_size_.shift())
               : 1;
  }

  void frame_flags(Open& o, const Extent& extent, VaRange part, Pfn pfn, std::uint64_t frames) {
    Audit& audit = *o.audit;
    const bool pagemap = extent.backend == Backend::pagemap;
    // Of private memory: a page that is not this process's alone, or is the file's, moves away
    // at the next write.
    const bool exclusive = (extent.bits & page_bit::exclusive) != 0;
    const bool file = (extent.bits & page_bit::file) != 0;
    // Of a leaf of a transparent huge page, bit 56 may be that of another page.
    const bool by_leaf = view_.private_writable && pagemap && !file && !view_.hugetlb &&
                         extent.leaf_shift != page_size_.shift();
    const bool moves = view_.private_writable && pagemap && (!exclusive || file);
    if (view_.pfnmap) return;  // frames of a device, or the kernel's own
    const bool by_mapcount = view_.private_writable && !pagemap;
    if ((by_mapcount || by_leaf) && !counted_) {
      counted_ = true;
      auto reader =
          FrameReader::open(process_.root(), FrameFacts::has_flags | FrameFacts::has_mapcount);
      if (reader)
        flags_.emplace(std::move(*reader));
      else
        flags_.reset();
    }
    // What flags could still say of a hugetlb page is that it is poisoned: it is never merged, and
    // never the zero page.
    if (view_.hugetlb && nothing_poisoned_ && !by_mapcount) {
      if (moves) shared(o, evidence_of(part, pfn, pfn, frames), 0);
      return;
    }
    const auto unknown = [&] {
      add(audit, AuditFindingKind::frames_unknown, Severity::unknown, "kpageflags",
          {.va = part.start, .bytes = part.bytes(), .pfn = pfn});
      if (moves) shared(o, evidence_of(part, pfn, pfn, frames), 0);
    };
    if (!flags_) return unknown();
    if (by_leaf) {
      bool known = true;
      auto read =
          leaf_sharing_.read(*flags_, pfn, frames, leaf_frames(extent, page_size_), exclusive,
                             [&](Pfn first, std::uint64_t run, const FrameFacts& facts, bool once) {
                               // A record may lack the counts; then the bit has to do.
                               if ((facts.known & FrameFacts::has_flags) == 0)
                                 known = false;
                               else
                                 judge_flags(o, facts, !once, evidence_of(part, pfn, first, run));
                             });
      return !read || !known ? unknown() : void();
    }
    const std::uint64_t step = stride(extent, by_mapcount);
    for (std::uint64_t done = 0; done < frames;) {
      const Pfn here = pfn + done;
      const Pfn head{here.value & ~(step - 1)};
      const std::uint64_t count =
          step == 1 ? frames : std::min(frames - done, head.value + step - here.value);
      bool known = true;
      auto read = flags_->read(
          step == 1 ? here : head, step == 1 ? count : 1,
          [&](Pfn first, std::uint64_t run, const FrameFacts& facts) {
            const Pfn from = step == 1 ? first : here;
            const std::uint64_t of = step == 1 ? run : count;
            if ((facts.known & FrameFacts::has_flags) == 0 ||
                (by_mapcount && (facts.known & FrameFacts::has_mapcount) == 0)) {
              known = false;
              return true;
            }
            const bool move =
                moves || (by_mapcount && ((facts.flags & kpf_anon) == 0 || facts.mapcount != 1));
            judge_flags(o, facts, move, evidence_of(part, pfn, from, of));
            return true;
          });
      if (!read || !known) return unknown();
      done += count;
    }
  }

  void judge_flags(Open& o, const FrameFacts& facts, bool moves, const Evidence& evidence) const {
    std::uint64_t flags = facts.flags;
    // A kernel merges mergeable memory only, whatever kpageflags says.
    const bool never_merged = view_.flags_known && !view_.mergeable;
    if (!recorded_ && never_merged) flags &= ~kpf_ksm;
    if ((facts.doubtful & kpf_ksm) != 0 && !never_merged)
      add(*o.audit, AuditFindingKind::frames_unknown, Severity::unknown, "kpageflags ksm",
          evidence);
    if ((flags & kpf_hwpoison) != 0)
      add(*o.audit, AuditFindingKind::hwpoison, Severity::error, "kpageflags hwpoison", evidence);
    if (!moves && (flags & (kpf_ksm | kpf_zero_page)) == 0) return;
    shared(o, evidence, flags);
  }

  void shared(Open& o, const Evidence& evidence, std::uint64_t flags) const {
    const Severity severity = planned_or(Severity::error);
    if ((flags & kpf_ksm) != 0)
      add(*o.audit, AuditFindingKind::ksm, severity, "kpageflags ksm", evidence);
    else if ((flags & kpf_zero_page) != 0)
      add(*o.audit, AuditFindingKind::zero_page, severity, "kpageflags zero_page", evidence);
    else
      add(*o.audit, AuditFindingKind::shared_cow, severity, "not exclusive", evidence);
  }

  void zones(Open& o, VaRange part, Pfn pfn, std::uint64_t frames) const {
    const auto each = [&](AuditFindingKind kind, const char* flag, auto next) {
      FrameRange left{pfn, pfn + frames};
      while (const auto run = next(left)) {
        add(*o.audit, kind, Severity::warning, flag,
            evidence_of(part, pfn, run->start, run->end.value - run->start.value));
        left.start = run->end;
      }
    };
    if (view_.pfnmap) return;  // no zone's
    const auto untold = [&](Told told, bool& known, const char* flag) {
      if (told == Told::yes) return;
      known = false;
      if (told == Told::failed)
        add(*o.audit, AuditFindingKind::zone_unknown, Severity::unknown, flag,
            evidence_of(part, pfn, pfn, frames));
    };
    untold(zones_.movable_told(), o.audit->movable_known, "zoneinfo");
    untold(zones_.cma_told(), o.audit->cma_known, "/sys/kernel/debug/cma");
    each(AuditFindingKind::movable, "ZONE_MOVABLE",
         [&](FrameRange r) { return zones_.movable(r); });
    each(AuditFindingKind::cma, "CMA", [&](FrameRange r) { return zones_.cma(r); });
  }

  void pins(Open& o, const Extent& extent, VaRange part, Pfn pfn, std::uint64_t frames) const {
    if (!pins_.valid()) return;
    const std::uint64_t leaf = extent.leaf_shift > page_size_.shift()
                                   ? std::uint64_t{1} << (extent.leaf_shift - page_size_.shift())
                                   : 1;
    const PinAnswer answer = pins_.unpinned(pfn, frames, leaf, [&](Pfn first, std::uint64_t count) {
      add(*o.audit, AuditFindingKind::unpinned, Severity::error, "no pin",
          evidence_of(part, pfn, first, count));
    });
    if (answer != PinAnswer::whole) o.audit->pins_checked = false;
  }

  void finish(Open& o) const {
    const Registration& r = *o.registration;
    Audit& audit = *o.audit;
    // Addresses that no device can count to (iova_wraps()) say nothing of a table's size.
    const bool by_iova = r.iova_known && r.iova_rule != IovaRule::physical &&
                         r.range.bytes() - 1 <= UINT64_MAX - r.iova;
    const std::uint64_t first = by_iova ? r.iova : r.range.start.value;
    const std::uint64_t last = first + (r.range.bytes() - 1);
    // The largest leaf of which one fits would serve; none larger than what is needed.
    for (const PageSize size : leaf_sizes_) {
      const std::uint64_t in_page = size.bytes() - 1;
      const std::uint64_t start = first + (-first & in_page);
      const bool fits = start >= first && start <= last && last - start >= in_page;
      if (audit.ideal_page_size != 0 && !fits) break;
      audit.ideal_page_size = size.bytes();
      audit.ideal_entries = blocks(first, last, size.shift());
    }
    if (audit.nodes.size() > 1) {
      add(audit, AuditFindingKind::spans_nodes, Severity::warning, "node",
          {.va = r.range.start, .bytes = r.range.bytes()});
    }
    if (!audit.complete || !o.any) {
      audit.complete = false;
      return;
    }
    for (const PageSize size : leaf_sizes_) {
      if (size.bytes() > audit.ideal_page_size || (o.misfit & (size.bytes() - 1)) != 0) break;
      audit.best_page_size = size.bytes();
      audit.entries = blocks(first, last, size.shift());
    }
    if (audit.best_page_size == 0) {  // the device's address has another offset in its page
      audit.entries = blocks(r.range, page_size_.shift());
      audit.best_page_size = page_size_.bytes();
    }
    if (audit.entries > audit.ideal_entries) {
      // Huge pages where giant ones would do are no trouble; small pages are.
      const bool small = audit.best_page_size == page_size_.bytes();
      Evidence evidence{.va = r.range.start, .bytes = r.range.bytes()};
      evidence.expected = audit.ideal_entries;
      evidence.actual = audit.entries;
      add(audit, AuditFindingKind::fragmented, small ? Severity::warning : Severity::info,
          "entries", evidence);
    }
  }

  /// As ib_umem_get(): each registration adds its pages, also where they overlap.
  void limits(std::span<const Registration> registrations, std::vector<Audit>& audits) const {
    const auto counts = [](const Registration& r) { return r.through_kernel; };
    if (std::ranges::none_of(registrations, counts)) return;
    const LockLimits limits = read_lock_limits(process_);
    const bool unlimited = limits.ipc_lock == true || limits.memlock == UINT64_MAX;
    const bool told = unlimited || (limits.memlock && (!options_.planned || limits.pinned));
    std::uint64_t sum = options_.planned ? limits.pinned.value_or(0) : 0;
    sum = sum_of(sum, options_.pinned_before);
    for (std::size_t i = 0; i < registrations.size(); ++i) {
      const Registration& r = registrations[i];
      if (!r.through_kernel) continue;
      const Evidence whole{.va = r.range.start, .bytes = r.range.bytes()};
      if (!told) {
        audits[i].limits_known = false;
        // A recording of what is registered already may do without.
        if (options_.planned || !recorded_)
          add(audits[i], AuditFindingKind::limits_unknown, Severity::unknown,
              limits.memlock ? "status" : "limits", whole);
        continue;
      }
      sum = sum_of(sum, pinned_bytes({&r, 1}, page_size_));
      if (unlimited) continue;
      const std::uint64_t memlock = *limits.memlock;
      if (sum <= memlock) continue;
      if (!limits.ipc_lock) {
        audits[i].limits_known = false;
        add(audits[i], AuditFindingKind::limits_unknown, Severity::unknown, "status", whole);
        continue;
      }
      Evidence evidence = whole;
      evidence.expected = memlock;
      evidence.actual = sum;
      add(audits[i], AuditFindingKind::over_memlock, r.pinned ? Severity::warning : Severity::error,
          "RLIMIT_MEMLOCK", evidence);
    }
  }

  const Process& process_;
  Translator& translator_;
  const AuditOptions& options_;
  const PageSize page_size_;
  PageSize leaf_sizes_[3];
  VmaInspector& inspector_;
  LeafSharing leaf_sharing_;
  std::optional<FrameReader> flags_;
  bool counted_ = false;  ///< flags_ reads mapcounts, too
  std::optional<NumaMap> numa_;
  Told nodes_told_ = Told::yes;
  bool one_node_ = false;  ///< a kernel without NUMA
  PinZones zones_;
  PinReader pins_;
  const PinRules rules_;
  const bool nothing_poisoned_;
  const bool recorded_;
  Vma seen_;  ///< what view_ is of
  VmaView view_;
};

}  // namespace

std::optional<Severity> Audit::worst() const {
  std::optional<Severity> worst;
  constexpr Severity order[] = {Severity::info, Severity::warning, Severity::unknown,
                                Severity::error};
  const auto rank = [&](Severity s) { return std::ranges::find(order, s) - order; };
  for (const AuditFinding& f : findings) {
    if (!worst || rank(f.severity) > rank(*worst)) worst = f.severity;
  }
  return worst;
}

std::uint64_t pinned_bytes(std::span<const Registration> registrations, PageSize page_size) {
  std::uint64_t sum = 0;
  for (const Registration& r : registrations) {
    if (r.through_kernel)
      sum = sum_of(sum, bytes_of(blocks(r.range, page_size.shift()), page_size.shift()));
  }
  return sum;
}

Result<std::vector<Audit>> audit(const Process& process, Translator& translator,
                                 std::span<const Registration> registrations,
                                 const AuditOptions& options) {
  VmaInspector inspector{process, vm_flags_source(process, translator)};
  return audit(process, translator, inspector, registrations, options);
}

Result<std::vector<Audit>> audit(const Process& process, Translator& translator,
                                 VmaInspector& inspector,
                                 std::span<const Registration> registrations,
                                 const AuditOptions& options) {
  return Auditor{process, translator, inspector, options}.run(registrations);
}

}  // namespace vmem
