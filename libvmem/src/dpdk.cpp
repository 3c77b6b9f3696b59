// SPDX-License-Identifier: MIT
/// The files that a DPDK primary shares with its secondary processes, read from outside. They are
/// structures of C as its compiler laid them out: each layout is a table of offsets, by version.
/// Sources: lib/eal/common/eal_memcfg.h, lib/eal/include/rte_fbarray.h, rte_memory.h,
/// rte_memzone.h, lib/eal/common/eal_common_fbarray.c (struct used_mask).
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>

#include "errors.hpp"
#include "vmem/registration.hpp"

namespace vmem {
namespace {

constexpr std::uint32_t config_magic = 19820526;  // RTE_MAGIC
constexpr std::uint64_t bad_iova = ~std::uint64_t{0};
/// The files may be anybody's, and each element in use costs some hundred bytes here and in an
/// audit. DPDK's own lists have 32768 elements each; memory without huge pages one for each page.
constexpr std::uint64_t most_in_use = 1 << 20;
constexpr std::uint32_t longest_array = 1 << 24;

/// Offsets in bytes.
struct Layout {
  std::uint32_t version;  ///< yy << 24 | mm << 16
  std::uint32_t config_bytes;
  std::uint32_t memzones, memsegs, memseg_lists, memseg_list_bytes;
  std::uint32_t config_address, legacy, single_file, dma_mask_bits;
  // struct rte_memseg_list
  std::uint32_t base, page_size, socket, length, external, fbarray;
  // struct rte_fbarray
  std::uint32_t array_length, array_element;
  // struct rte_memseg
  std::uint32_t memseg_bytes, seg_iova, seg_address, seg_length, seg_page, seg_socket;
  // struct rte_memzone
  std::uint32_t memzone_bytes, zone_iova, zone_address, zone_length, zone_page, zone_socket,
      zone_flags;
};

// Each version's offsets were compiled from its own headers; one that is not among them is refused,
// though its layout may well be the same.
constexpr Layout since_20_11(std::uint32_t version) {
  return {
      .version = version,
      .config_bytes = 25344,
      .memzones = 40,
      .memsegs = 136,
      .memseg_lists = 128,
      .memseg_list_bytes = 136,
      .config_address = 25288,
      .legacy = 25296,
      .single_file = 25300,
      .dma_mask_bits = 25312,
      .base = 0,
      .page_size = 8,
      .socket = 16,
      .length = 24,
      .external = 32,
      .fbarray = 40,
      .array_length = 68,
      .array_element = 72,
      .memseg_bytes = 48,
      .seg_iova = 0,
      .seg_address = 8,
      .seg_length = 16,
      .seg_page = 24,
      .seg_socket = 32,
      .memzone_bytes = 72,
      .zone_iova = 32,
      .zone_address = 40,
      .zone_length = 48,
      .zone_page = 56,
      .zone_socket = 64,
      .zone_flags = 68,
  };
}

constexpr Layout layouts[] = {
    since_20_11(0x140b0000),  // 20.11
    since_20_11(0x160b0000),  // 22.11
};

template <class T>
T load(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::string version_text(std::uint32_t version) {
  return std::to_string(version >> 24) + (((version >> 16 & 0xff) < 10) ? ".0" : ".") +
         std::to_string(version >> 16 & 0xff) + "." + std::to_string(version >> 8 & 0xff);
}

/// A file of the runtime directory.
struct Named {
  std::string path;
  Fd fd;
  std::uint64_t bytes = 0;

  std::unexpected<Error> malformed(const char* what, std::uint64_t offset = 0) const {
    return std::unexpected(
        Error{.code = Errc::malformed, .what = what, .path = path, .address = offset});
  }
  Result<void> read(void* to, std::size_t count, std::uint64_t offset) const {
    auto got = read_at(fd, to, count, offset);
    if (!got) {
      got.error().path = path;
      return std::unexpected(std::move(got.error()));
    }
    if (*got != count) return malformed("reading DPDK's file (it ends early)", offset + *got);
    return {};
  }
};

Result<Named> open_named(const SysRoot& tree, const std::string& directory,
                         const std::string& name) {
  const std::string path = directory.empty() ? name : directory + "/" + name;
  auto fd = tree.open_file(path.c_str());
  if (!fd) {
    if (fd.error().code == Errc::permission)
      fd.error().hint = "the files have mode 0600: run as the primary's user, or as root";
    return std::unexpected(std::move(fd.error()));
  }
  struct stat info{};
  if (fstat(fd->get(), &info) != 0) return failed(errno, "reading", path);
  return Named{path, std::move(*fd), static_cast<std::uint64_t>(info.st_size)};
}

Result<std::uint32_t> read_version(const Named& config) {
  std::array<char, 8> head{};
  if (auto read = config.read(head.data(), head.size(), 0); !read)
    return std::unexpected(std::move(read.error()));
  const auto magic = load<std::uint32_t>(head.data());
  if (magic != config_magic) {
    auto error = config.malformed("reading DPDK's config (no magic number)");
    if (magic == 0)
      error.error().hint = "the primary is still starting, or it is not a DPDK runtime directory";
    return error;
  }
  return load<std::uint32_t>(head.data() + 4);
}

/// Calls `sink(index, element)` for every element in use, which `in_use` counts. `array` is struct
/// rte_fbarray.
template <class Sink>
Result<void> read_array(const SysRoot& tree, const std::string& directory, const Layout& layout,
                        const char* array, std::uint32_t element_bytes, const Named& config,
                        std::uint64_t& in_use, Sink sink) {
  const std::string name(array, strnlen(array, 64));
  if (name.empty() || name.size() == 64 || name.find('/') != std::string::npos)
    return config.malformed("reading DPDK's config (name of an array)");
  const auto length = load<std::uint32_t>(array + layout.array_length);
  if (load<std::uint32_t>(array + layout.array_element) != element_bytes)
    return config.malformed("reading DPDK's config (size of an array's elements)");
  if (length > longest_array)
    return config.malformed("reading DPDK's config (an array has more than 16777216 elements)");
  auto file = open_named(tree, directory, "fbarray_" + name);
  if (!file) return std::unexpected(std::move(file.error()));

  // The elements, then struct used_mask: n_masks, and the bits.
  const std::uint64_t masks = (std::uint64_t{length} + 63) / 64;
  const std::uint64_t mask_at = std::uint64_t{length} * element_bytes;
  if (file->bytes < mask_at + 8 + masks * 8)
    return file->malformed("reading DPDK's array (shorter than its length)", file->bytes);
  std::uint32_t written_masks = 0;
  if (auto read = file->read(&written_masks, sizeof written_masks, mask_at); !read) return read;
  if (written_masks != masks)
    return file->malformed("reading DPDK's array (length of its mask)", mask_at);

  constexpr std::size_t words = 512;
  std::array<std::uint64_t, words> used{};
  std::vector<char> elements;
  for (std::uint64_t first = 0; first < masks; first += words) {
    const std::size_t count = std::min<std::uint64_t>(words, masks - first);
    if (auto read = file->read(used.data(), count * 8, mask_at + 8 + first * 8); !read) return read;
    for (std::size_t word = 0; word < count; ++word) {
      if (used[word] == 0) continue;
      const std::uint64_t base = (first + word) * 64;
      const std::uint64_t here = std::min<std::uint64_t>(64, length - base);
      if (here < 64 && used[word] >> here != 0)
        return file->malformed("reading DPDK's array (used beyond its length)",
                               mask_at + 8 + (first + word) * 8);
      in_use += static_cast<std::uint64_t>(std::popcount(used[word]));
      if (in_use > most_in_use)
        return file->malformed("reading DPDK's array (more than 1048576 elements are in use)",
                               mask_at + 8 + (first + word) * 8);
      elements.resize(here * element_bytes);
      if (auto read = file->read(elements.data(), elements.size(), base * element_bytes); !read)
        return read;
      for (std::uint64_t bit = 0; bit < here; ++bit) {
        if ((used[word] >> bit & 1) == 0) continue;
        if (auto taken = sink(static_cast<std::uint32_t>(base + bit),
                              elements.data() + bit * element_bytes, *file);
            !taken) {
          return taken;
        }
      }
    }
  }
  return {};
}

bool fits(std::uint64_t start, std::uint64_t bytes) {
  return bytes != 0 && start <= UINT64_MAX - bytes;
}

Result<void> read_list(const SysRoot& tree, const std::string& directory, const Layout& layout,
                       const char* from, const Named& config, std::uint64_t& in_use,
                       DpdkMemory& memory) {
  DpdkList list;
  const auto base = load<std::uint64_t>(from + layout.base);
  if (base == 0) return {};  // a slot that is not in use
  const auto bytes = load<std::uint64_t>(from + layout.length);
  list.page_size = load<std::uint64_t>(from + layout.page_size);
  list.socket = load<std::int32_t>(from + layout.socket);
  list.external = load<std::uint32_t>(from + layout.external) != 0;
  const char* const array = from + layout.fbarray;
  list.name.assign(array, strnlen(array, 64));
  if (!fits(base, bytes) || !PageSize::valid(list.page_size))
    return config.malformed("reading DPDK's config (range of a memseg list)");
  list.range = {{base}, {base + bytes}};
  for (const DpdkList& other : memory.lists) {
    if (other.name == list.name)
      return config.malformed("reading DPDK's config (two memseg lists of one name)");
    if (!intersect(other.range, list.range).empty())
      return config.malformed("reading DPDK's config (memseg lists overlap)");
  }
  const auto index = static_cast<std::uint32_t>(memory.lists.size());
  memory.lists.push_back(list);
  return read_array(
      tree, directory, layout, array, layout.memseg_bytes, config, in_use,
      [&](std::uint32_t at, const char* seg, const Named& file) -> Result<void> {
        const auto address = load<std::uint64_t>(seg + layout.seg_address);
        const auto length = load<std::uint64_t>(seg + layout.seg_length);
        // A page of the list that legacy mode gave back has a mark in use, but no address.
        if (address == 0 && length == 0) return {};
        DpdkSegment segment{.iova = load<std::uint64_t>(seg + layout.seg_iova),
                            .page_size = load<std::uint64_t>(seg + layout.seg_page),
                            .socket = load<std::int32_t>(seg + layout.seg_socket),
                            .list = index,
                            .index = at};
        if (!fits(address, length) || address < base || address + length > base + bytes)
          return file.malformed("reading DPDK's memory segments (outside of their list)",
                                std::uint64_t{at} * layout.memseg_bytes);
        if (segment.page_size != list.page_size)
          return file.malformed("reading DPDK's memory segments (page size is not their list's)",
                                std::uint64_t{at} * layout.memseg_bytes);
        segment.range = {{address}, {address + length}};
        memory.segments.push_back(segment);
        return {};
      });
}

}  // namespace

Result<std::string> read_dpdk_version(const SysRoot& tree, const std::string& directory) {
  auto config = open_named(tree, directory, "config");
  if (!config) return std::unexpected(std::move(config.error()));
  auto version = read_version(*config);
  if (!version) return std::unexpected(std::move(version.error()));
  return version_text(*version);
}

Result<DpdkMemory> read_dpdk(const SysRoot& tree, const std::string& directory) {
  auto config = open_named(tree, directory, "config");
  if (!config) return std::unexpected(std::move(config.error()));
  auto version = read_version(*config);
  if (!version) return std::unexpected(std::move(version.error()));
  const std::uint32_t release = *version & 0xffff0000;
  const auto layout = std::ranges::find(layouts, release, &Layout::version);
  if (layout == std::end(layouts)) {
    return std::unexpected(Error{.code = Errc::not_supported,
                                 .what = "reading DPDK's config (layout of this version)",
                                 .path = config->path,
                                 .hint = "known are 20.11 and 22.11"});
  }
  if (config->bytes < layout->config_bytes)
    return config->malformed("reading DPDK's config (too short)", config->bytes);
  std::vector<char> bytes(layout->config_bytes);
  if (auto read = config->read(bytes.data(), bytes.size(), 0); !read)
    return std::unexpected(std::move(read.error()));

  DpdkMemory memory;
  memory.version = version_text(*version);
  memory.config_address = load<std::uint64_t>(bytes.data() + layout->config_address);
  memory.legacy = load<std::uint32_t>(bytes.data() + layout->legacy) != 0;
  memory.single_file_segments = load<std::uint32_t>(bytes.data() + layout->single_file) != 0;
  memory.dma_mask_bits = load<std::uint8_t>(bytes.data() + layout->dma_mask_bits);
  std::uint64_t in_use = 0;  // of all lists together
  for (std::size_t i = 0; i < layout->memseg_lists; ++i) {
    auto read = read_list(tree, directory, *layout,
                          bytes.data() + layout->memsegs + i * layout->memseg_list_bytes, *config,
                          in_use, memory);
    if (!read) return std::unexpected(std::move(read.error()));
  }
  auto zones = read_array(
      tree, directory, *layout, bytes.data() + layout->memzones, layout->memzone_bytes, *config,
      in_use, [&](std::uint32_t at, const char* from, const Named& file) -> Result<void> {
        DpdkMemzone zone{.name = std::string(from, strnlen(from, 32)),
                         .iova = load<std::uint64_t>(from + layout->zone_iova),
                         .page_size = load<std::uint64_t>(from + layout->zone_page),
                         .socket = load<std::int32_t>(from + layout->zone_socket),
                         .flags = load<std::uint32_t>(from + layout->zone_flags)};
        const auto address = load<std::uint64_t>(from + layout->zone_address);
        const auto length = load<std::uint64_t>(from + layout->zone_length);
        if (!fits(address, length))
          return file.malformed("reading DPDK's memzones (range)",
                                std::uint64_t{at} * layout->memzone_bytes);
        zone.range = {{address}, {address + length}};
        if (std::ranges::none_of(memory.lists, [&](const DpdkList& list) {
              return list.range.start <= zone.range.start && zone.range.end <= list.range.end;
            })) {
          return file.malformed("reading DPDK's memzones (outside of the memseg lists)",
                                std::uint64_t{at} * layout->memzone_bytes);
        }
        memory.memzones.push_back(std::move(zone));
        return {};
      });
  if (!zones) return std::unexpected(std::move(zones.error()));

  memory.mode = iova_mode(memory);
  return memory;
}

IovaRule iova_mode(const DpdkMemory& memory) {
  std::size_t virt = 0, told = 0;
  for (const DpdkSegment& segment : memory.segments) {
    if (segment.iova == bad_iova || memory.lists[segment.list].external) continue;
    ++told;
    virt += segment.iova == segment.range.start.value ? 1 : 0;
  }
  if (told == 0) return IovaRule::none;
  return virt * 2 > told ? IovaRule::virt : IovaRule::physical;
}

namespace {

/// How bad it is that memory of the list has no IOVA. What the application brought along has the
/// IOVAs that it gave (rte_extmem_register()), and --no-huge memory has none as PA
/// (eal_legacy_hugepage_init()): no device of the bus's can reach it.
Severity without_iova(const DpdkList& list) {
  if (list.external) return Severity::info;
  return list.name == "nohugemem" ? Severity::warning : Severity::error;
}

Registration of_dpdk(const DpdkMemory& memory, VaRange range, std::uint64_t iova,
                     std::int32_t socket) {
  Registration r{.range = range, .iova = iova, .through_kernel = false};
  r.iova_known = iova != bad_iova;
  if (r.iova_known) r.iova_rule = memory.mode;
  r.dma_mask_bits = memory.dma_mask_bits;
  if (socket >= 0) r.node = static_cast<unsigned>(socket);
  return r;
}

}  // namespace

std::vector<Registration> registrations_of(const DpdkMemory& memory) {
  std::vector<Registration> all;
  all.reserve(memory.segments.size());
  for (const DpdkSegment& segment : memory.segments) {
    const DpdkList& list = memory.lists[segment.list];
    all.push_back(
        of_dpdk(memory, segment.range, segment.iova, list.external ? -1 : segment.socket));
    Registration& r = all.back();
    r.no_iova = without_iova(list);
    // What the application brought along has the addresses that it gave.
    if (!list.external) r.page_size = segment.page_size;
    r.key = list.name + "/" + std::to_string(segment.index);
  }
  return all;
}

std::vector<Registration> memzones_of(const DpdkMemory& memory) {
  std::vector<Registration> all;
  all.reserve(memory.memzones.size());
  for (const DpdkMemzone& zone : memory.memzones) {
    all.push_back(of_dpdk(memory, zone.range, zone.iova, zone.socket));
    Registration& r = all.back();
    r.key = zone.name;
    if (!zone.iova_contiguous() && memory.mode == IovaRule::physical &&
        PageSize::valid(zone.page_size)) {
      r.iova_bytes = zone.page_size - PageSize{zone.page_size}.offset(zone.range.start);
    }
    const auto list = std::ranges::find_if(memory.lists, [&](const DpdkList& l) {
      return l.range.start <= zone.range.start && zone.range.end <= l.range.end;
    });
    if (list != memory.lists.end()) r.no_iova = without_iova(*list);
  }
  return all;
}

}  // namespace vmem
