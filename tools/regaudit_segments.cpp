// SPDX-License-Identifier: MIT
/// Names of DPDK's memory: lib/eal/linux/eal_memalloc.c (get_seg_memfd(), get_seg_fd()),
/// eal_memory.c (eal_legacy_hugepage_init()), lib/eal/common/eal_filesystem.h.
#include "regaudit_segments.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "render.hpp"
#include "vmem/maps.hpp"

namespace vmem::tools {
namespace {

constexpr std::string_view deleted = " (deleted)";

std::string_view whole_path(std::string_view path) {
  if (path.ends_with(deleted)) path.remove_suffix(deleted.size());
  return path;
}

/// "/run/dpdk/rte/config": the directory. Empty: something else.
std::string_view directory_of(std::string_view path) {
  constexpr std::string_view config = "/config";
  path = whole_path(path);
  if (!path.ends_with(config)) return {};
  path.remove_suffix(config.size());
  return path.substr(0, path.rfind('/')).ends_with("/dpdk") ? path : std::string_view{};
}

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return read.ec == std::errc{} && read.ptr == text.data() + text.size() ? std::optional(value)
                                                                         : std::nullopt;
}

struct SegmentName {
  std::string_view list;
  std::optional<std::uint64_t> index;  ///< empty: the offset tells
  bool huge = true;
};

/// What DPDK calls its memory.
std::optional<SegmentName> segment_name(std::string_view path) {
  path = whole_path(path);
  constexpr std::string_view memfd = "/memfd:";
  if (path == "/memfd:nohuge") return SegmentName{path.substr(memfd.size()), {}, false};
  if (path.starts_with("/memfd:seg_")) {  // seg_LIST, seg_LIST-SEGMENT
    const std::string_view name = path.substr(memfd.size());
    const std::size_t dash = std::min(name.find('-'), name.size());
    if (!number(name.substr(4, dash - 4))) return {};
    if (dash == name.size()) return SegmentName{name, {}};
    const auto index = number(name.substr(dash + 1));
    return index ? std::optional(SegmentName{name.substr(0, dash), index}) : std::nullopt;
  }
  const std::string_view name = path.substr(path.rfind('/') + 1);  // PREFIXmap_N
  const std::size_t map = name.rfind("map_");
  if (map == std::string_view::npos || map == 0) return {};
  const auto index = number(name.substr(map + 4));
  return index ? std::optional(SegmentName{name.substr(0, map + 3), index}) : std::nullopt;
}

class Reader {
 public:
  Reader(const Process& process, bool any_huge)
      : process_(process), inspector_(process), any_huge_(any_huge) {}

  Result<DpdkMaps> read() {
    auto reader = VmaReader::open(process_);
    if (!reader) return std::unexpected(std::move(reader.error()));
    maps_.pid = process_.pid();
    maps_.comm = process_.comm();
    std::vector<Vma> nameless;
    Vma vma;
    while (true) {
      const auto more = reader->next(vma);
      if (!more) return std::unexpected(more.error());
      if (!*more) break;
      if (!vma.path.starts_with('/')) continue;
      if (maps_.directory.empty()) take_config(vma);
      const std::string_view base = std::string_view(vma.path).substr(vma.path.rfind('/') + 1);
      if (maps_.library.empty() && base.starts_with("librte_eal.so")) maps_.library = base;
      if (const auto name = segment_name(vma.path))
        take(vma, *name);
      else if (any_huge_ || vma.path.starts_with("/anon_hugepage"))
        nameless.push_back(vma);
    }
    // Anonymous huge pages are anybody's, unless something else says that this is DPDK.
    if (any_huge_ || maps_.looks_like_dpdk()) {
      for (const Vma& one : nameless) {
        std::string_view list = whole_path(one.path);
        list.remove_prefix(list.rfind('/') + 1);
        take(one, {list, {}}, true);
      }
      std::ranges::sort(maps_.runs, {}, [](const SegmentRun& r) { return r.range.start; });
    }
    return std::move(maps_);
  }

 private:
  void take_config(const Vma& vma) {
    maps_.directory = directory_of(vma.path);
    if (maps_.directory.empty()) return;
    maps_.config_address = vma.range.start.value;
    maps_.config_deleted = vma.path.ends_with(deleted);
    maps_.config_file = fmt::format("{:02x}:{:02x}:{}", vma.dev_major, vma.dev_minor, vma.inode);
  }

  void take(const Vma& vma, const SegmentName& name, bool only_huge = false) {
    std::uint64_t page = 0;
    if (name.huge) {
      if (const auto size = inspector_.hugetlb_page_size(vma)) {
        page = size->bytes();
      } else if (const auto entry = only_huge ? std::nullopt : inspector_.smaps(vma)) {
        // A hugetlbfs that was unmounted since is no file system that mountinfo knows.
        if (!entry->kernel_page_size || *entry->kernel_page_size == process_.root().page_size())
          return;  // small pages: called so by chance
        page = entry->kernel_page_size->bytes();
      } else if (only_huge || (vma.range.bytes() & ((1 << 20) - 1)) != 0) {
        return;
      }
    }
    const std::uint64_t first = name.index ? *name.index : page != 0 ? vma.offset / page : 0;
    const std::uint64_t count = page != 0 ? vma.range.bytes() / page : 1;
    // One file may hold all segments (--single-file-segments).
    const bool one_file =
        !maps_.runs.empty() && maps_.runs.back().path == vma.path && vma.offset == file_end_;
    file_end_ = vma.offset + vma.range.bytes();
    if (!maps_.runs.empty()) {
      SegmentRun& run = maps_.runs.back();
      if (run.range.end == vma.range.start && run.list == name.list && run.page_size == page &&
          run.path.ends_with(deleted) == vma.path.ends_with(deleted) &&
          (one_file || first == run.last + 1)) {
        run.last = one_file ? run.last + count : first;
        run.range.end = vma.range.end;
        return;
      }
    }
    maps_.runs.push_back({.list = std::string(name.list),
                          .first = first,
                          .last = first + count - 1,
                          .range = vma.range,
                          .page_size = page,
                          .path = vma.path});
  }

  const Process& process_;
  VmaInspector inspector_;
  const bool any_huge_;
  DpdkMaps maps_;
  std::uint64_t file_end_ = 0;  ///< where the last VMA's part of its file ends
};

}  // namespace

std::uint64_t DpdkMaps::bytes() const {
  std::uint64_t sum = 0;
  for (const SegmentRun& run : runs) sum += run.range.bytes();
  return sum;
}

std::string DpdkMaps::evidence(bool plain_bytes) const {
  if (runs.empty()) return !library.empty() ? library + " is mapped" : "it listens on " + socket;
  std::string names;
  std::vector<std::string_view> lists;
  for (const SegmentRun& run : runs) {
    if (std::ranges::find(lists, run.list) != lists.end()) continue;
    lists.push_back(run.list);
    if (lists.size() > 4) {
      names += ", …";
      break;
    }
    // "/memfd:seg_2-7 (deleted)": one name for all of the list
    const std::string_view path = whole_path(run.path);
    const std::size_t digits = path.find_last_not_of("0123456789") + 1;
    const bool numbered = digits != path.size() &&
                          (path[digits - 1] == '-' || path.substr(0, digits).ends_with("map_"));
    names += fmt::format(", {}{}", numbered ? path.substr(0, digits) : path, numbered ? "*" : "");
  }
  const bool huge =
      std::ranges::any_of(runs, [](const SegmentRun& r) { return r.list != "nohuge"; });
  return fmt::format("{} of {}{}", human_size(bytes(), plain_bytes), huge ? "huge pages" : "memory",
                     names);
}

Result<DpdkMaps> read_dpdk_maps(const Process& process, bool any_huge) {
  return Reader{process, any_huge}.read();
}

std::vector<Registration> registrations_of(const DpdkMaps& maps) {
  std::vector<Registration> all;
  all.reserve(maps.runs.size());
  for (const SegmentRun& run : maps.runs) {
    Registration r{.range = run.range, .through_kernel = false};
    r.page_size = run.page_size;
    r.key = run.first == run.last ? fmt::format("{}/{}", run.list, run.first)
                                  : fmt::format("{}/{}-{}", run.list, run.first, run.last);
    all.push_back(std::move(r));
  }
  return all;
}

}  // namespace vmem::tools
