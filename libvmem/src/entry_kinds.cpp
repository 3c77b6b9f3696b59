// SPDX-License-Identifier: MIT
#include "entry_kinds.hpp"

#include <cstdio>

#include "extent_builder.hpp"

namespace vmem {
namespace {

// include/uapi/linux/kernel-page-flags.h, include/linux/kernel-page-flags.h
constexpr std::uint64_t kpf(unsigned bit) { return std::uint64_t{1} << bit; }
constexpr std::uint64_t kpf_slab = kpf(7), kpf_buddy = kpf(10), kpf_head = kpf(15),
                        kpf_huge = kpf(17), kpf_hwpoison = kpf(19), kpf_nopage = kpf(20),
                        kpf_offline = kpf(23), kpf_pgtable = kpf(26), kpf_reserved = kpf(32);
/// Frames like these are no process's memory: the entry has changed since it was read, or its
/// number is no frame (Linux 5.19 to 6.1 have page-table markers of type 30, too).
constexpr std::uint64_t not_memory =
    kpf_slab | kpf_buddy | kpf_offline | kpf_pgtable | kpf_reserved;
/// Numbers below this may be a page-table marker's bits (PTE_MARKER_MASK).
constexpr std::uint64_t marker_end = 8;
/// hugetlb pages have at most so many frames (1 GiB of 4 KiB pages, 16 GiB of 64 KiB pages).
constexpr unsigned hugetlb_order_end = 19;

/// Whether this kernel has entries of pages in RAM that a device alone may use. It does where it
/// has make_device_exclusive() (mm/rmap.c, CONFIG_DEVICE_PRIVATE; until 6.14 with _range). Empty:
/// it does not list its functions.
std::optional<bool> has_device_exclusive(const SysRoot& root) {
  const auto look = [&]() -> std::optional<bool> {
    const auto text = root.read_file("proc/kallsyms", std::size_t{64} << 20);
    if (!text || text->find(" rmap_walk") == std::string::npos) return {};
    return text->find(" make_device_exclusive") != std::string::npos;
  };
  if (root.recorded()) return look();
  static const std::optional<bool> live = look();
  return live;
}

std::string numbered(const char* before, Pfn frame, const char* after) {
  char text[128];
  std::snprintf(text, sizeof text, "%s0x%llx%s", before,
                static_cast<unsigned long long>(frame.value), after);
  return text;
}

}  // namespace

void EntryKinds::tell(const Extent& extent, ExtentSink sink) {
  if (extent.state != PageState::special || extent.reason != Reason::migration_or_device) {
    sink(extent);
    return;
  }
  const PageSize page_size = root_.page_size();
  ExtentBuilder out{page_size, sink};
  Extent rest = extent;
  const auto add = [&](std::uint64_t frames, Reason reason) {
    Extent part = cut_front(rest, frames * page_size.bytes(), page_size);
    part.reason = reason;
    return out.add(part);
  };
  bool open = true;
  if (FrameReader* const reader = frames()) {
    const auto read = reader->read(
        extent.pfn, page_size.pages(extent.bytes),
        [&](Pfn first, std::uint64_t frames, const FrameFacts& facts) {
          // The facts are alike; what memory of a device it is may not be.
          const bool by_place = (facts.known & FrameFacts::has_flags) == 0 ||
                                (facts.flags & kpf_nopage) != 0 || first.value < marker_end;
          const std::uint64_t step = by_place ? 1 : frames;
          for (std::uint64_t i = 0; i < frames; i += step) {
            open = open && add(step, kind_of(extent, first + i, facts));
          }
          return open;
        });
    if (!read && !open) return;
  }
  if (open && rest.bytes != 0) open = out.add(rest);
  if (open) out.flush();
}

Reason EntryKinds::kind_of(const Extent& extent, Pfn frame, const FrameFacts& facts) {
  const bool told = (facts.known & FrameFacts::has_flags) != 0;
  if (told && ((facts.flags & kpf_hwpoison) != 0 || in_poisoned_hugetlb(frame, facts.flags)))
    return Reason::poison;
  // Beyond the last frame of RAM the kernel tells nothing.
  if (!told || (facts.flags & kpf_nopage) != 0)
    return is_device_memory(frame) ? Reason::device_private : Reason::migration_or_device;
  if ((facts.flags & not_memory) != 0) {
    if (frame.value >= marker_end || (facts.flags & kpf_reserved) == 0)
      return Reason::migration_or_device;
    const bool write_protected = frame.value == 1 && (extent.bits & page_bit::uffd_wp) != 0;
    return write_protected ? Reason::uffd_wp_marker : Reason::other_marker;
  }
  // Until 6.11 pagemap computes this bit for entries, too, but not for a migrating page.
  if (extent.backend == Backend::pagemap && (extent.bits & page_bit::exclusive) != 0)
    return Reason::device_exclusive;
  return has_device_exclusive(root_) == false ? Reason::migration : Reason::migration_or_exclusive;
}

/// hugetlb is lost as a whole, and only its first frame is marked.
bool EntryKinds::in_poisoned_hugetlb(Pfn frame, std::uint64_t flags) {
  if ((flags & kpf_huge) == 0) return false;
  for (unsigned order = 0; order < hugetlb_order_end; ++order) {
    const Pfn head{frame.value & ~((std::uint64_t{1} << order) - 1)};
    const auto told = flags_of(head);
    if (!told || (*told & kpf_huge) == 0) return false;
    if ((*told & kpf_head) != 0) return (*told & kpf_hwpoison) != 0;
  }
  return false;
}

/// Whether the frame lies in a named region of physical memory that is no RAM: only memory of a
/// device that has page frames can then be meant.
bool EntryKinds::is_device_memory(Pfn frame) {
  if (!iomem_read_) {
    iomem_read_ = true;
    if (auto iomem = Iomem::read(root_)) iomem_ = std::move(*iomem);
  }
  if (!iomem_) return false;
  const PhysAddr address = root_.page_size().address(frame);
  const IomemRegion* const region = iomem_->find(address);
  if (region == nullptr || region->name == "Reserved" || region->name == "reserved") return false;
  for (const IomemRegion& r : iomem_->regions()) {
    if (r.range.contains(address) && r.name.starts_with("System RAM")) return false;
  }
  return true;
}

std::optional<std::uint64_t> EntryKinds::flags_of(Pfn frame) {
  std::optional<std::uint64_t> flags;
  // A reader of its own: the one that is being read from holds the frames around.
  auto reader = FrameReader::open(root_, FrameFacts::has_flags);
  if (!reader) return flags;
  const auto read = reader->read(frame, 1, [&](Pfn, std::uint64_t, const FrameFacts& facts) {
    if ((facts.known & FrameFacts::has_flags) != 0) flags = facts.flags;
    return true;
  });
  return read ? flags : std::nullopt;
}

FrameReader* EntryKinds::frames() {
  if (!opened_) {
    opened_ = true;
    if (auto reader = FrameReader::open(root_, FrameFacts::has_flags))
      frames_.emplace(std::move(*reader));
  }
  return frames_ ? &*frames_ : nullptr;
}

std::string reason_of(const Extent& extent) {
  if (!names_frame(extent)) return std::string(to_string(extent.reason));
  switch (extent.reason) {
    case Reason::poison:
      return numbered("poison: frame ", extent.pfn, " was lost to a memory error");
    case Reason::migration:
      return numbered("migration: the page in frame ", extent.pfn, " is being moved");
    case Reason::device_private:
      return numbered("device-private: the page lies in a device's memory, frame ", extent.pfn, "");
    case Reason::device_exclusive:
      return numbered("device-exclusive: a device alone may use frame ", extent.pfn, "");
    default:
      return std::string(to_string(extent.reason)) + numbered(" of frame ", extent.pfn, "");
  }
}

std::string_view entry_kind(const Extent& extent) {
  if (extent.state == PageState::guard) return "guard";
  if (extent.state != PageState::special) return {};
  switch (extent.reason) {
    case Reason::poison:
      return "poison";
    case Reason::migration:
      return "migration";
    case Reason::device_private:
      return "device-private";
    case Reason::device_exclusive:
      return "device-exclusive";
    case Reason::migration_or_exclusive:
      return "migration-or-device-exclusive";
    case Reason::uffd_wp_marker:
      return "userfaultfd-marker";
    case Reason::poison_marker:
      return "poison-marker";
    case Reason::other_marker:
      return "marker";
    default:
      return {};
  }
}

}  // namespace vmem
