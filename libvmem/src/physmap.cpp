// SPDX-License-Identifier: MIT
#include "vmem/physmap.hpp"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <set>
#include <utility>

#include "errors.hpp"
#include "line_chunks.hpp"

namespace vmem {
namespace {

template <class Number>
bool take_number(std::string_view& text, Number& value, int base) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return error == std::errc{};
}

bool take(std::string_view& text, std::string_view wanted) {
  if (!text.starts_with(wanted)) return false;
  text.remove_prefix(wanted.size());
  return true;
}

/// "0x…" as sysfs prints it.
std::optional<std::uint64_t> take_0x(std::string_view& text) {
  while (text.starts_with(' ')) text.remove_prefix(1);
  std::uint64_t value = 0;
  if (!take(text, "0x") || !take_number(text, value, 16)) return {};
  return value;
}

/// The number behind `prefix` in a name such as "memory12"; empty for any other name.
std::optional<unsigned> number_after(std::string_view name, std::string_view prefix) {
  unsigned value = 0;
  if (!take(name, prefix) || !take_number(name, value, 10) || !name.empty()) return {};
  return value;
}

std::optional<std::uint64_t> read_0x(const SysRoot& root, const std::string& path) {
  const auto text = root.read_file(path.c_str(), 4096);
  if (!text) return {};
  std::string_view rest = *text;
  return take_0x(rest);
}

}  // namespace

Result<Iomem> Iomem::read(const SysRoot& root) {
  auto text = root.read_file("proc/iomem", 16 << 20);
  if (!text) return std::unexpected(std::move(text.error()));
  return parse(*text);
}

Result<Iomem> Iomem::parse(std::string_view text) {
  Iomem iomem;
  bool any_address = false;
  for (std::uint64_t number = 1; !text.empty(); ++number) {
    std::string_view line = take_line(text);
    const auto malformed = [&] {
      return std::unexpected(
          Error{.code = Errc::malformed, .what = "parsing", .path = "/proc/iomem", .line = number});
    };
    IomemRegion region;
    const std::size_t indent = std::min(line.find_first_not_of(' '), line.size());
    region.depth = static_cast<unsigned>(indent / 2);
    line.remove_prefix(indent);
    std::uint64_t last = 0;
    if (!take_number(line, region.range.start.value, 16) || !take(line, "-") ||
        !take_number(line, last, 16) || !take(line, " : ") || last < region.range.start.value) {
      return malformed();
    }
    // Inclusive, and the last byte of all cannot be expressed half-open: it is left out.
    region.range.end.value = last == UINT64_MAX ? last : last + 1;
    region.name = line;
    any_address = any_address || last != 0;
    iomem.regions_.push_back(std::move(region));
  }
  if (!any_address) {
    return std::unexpected(Error{.code = Errc::permission,
                                 .what = "reading (every address is shown as zero)",
                                 .path = "/proc/iomem",
                                 .hint = "physical regions are shown with CAP_SYS_ADMIN alone"});
  }
  iomem.cut();
  return iomem;
}

bool IomemRegion::is_ram() const {
  return name == "System RAM" || name.starts_with("System RAM (");
}

void Iomem::cut() {
  struct Border {
    PhysAddr at;
    bool begins;
    std::size_t region;
  };
  std::vector<Border> borders;
  borders.reserve(2 * regions_.size());
  for (std::size_t i = 0; i < regions_.size(); ++i) {
    borders.push_back({regions_[i].range.start, true, i});
    borders.push_back({regions_[i].range.end, false, i});
  }
  // Of one place the beginnings come first: a region may be empty.
  std::ranges::sort(borders, {}, [](const Border& b) { return std::pair(b.at, !b.begins); });
  // Children follow their parents, so the innermost is the deepest, and of these the last.
  std::set<std::pair<unsigned, std::size_t>> open;
  for (std::size_t i = 0; i < borders.size();) {
    const PhysAddr at = borders[i].at;
    for (; i < borders.size() && borders[i].at == at; ++i) {
      const std::pair key{regions_[borders[i].region].depth, borders[i].region};
      if (borders[i].begins)
        open.insert(key);
      else
        open.erase(key);
    }
    pieces_.push_back({at, open.empty() ? none : open.rbegin()->second});
  }
}

std::vector<Iomem::Piece>::const_iterator Iomem::after(PhysAddr address) const {
  return std::ranges::upper_bound(pieces_, address, {}, &Piece::start);
}

const IomemRegion* Iomem::find(PhysAddr address) const {
  const auto next = after(address);
  if (next == pieces_.begin() || std::prev(next)->region == none) return nullptr;
  return &regions_[std::prev(next)->region];
}

PhysAddr Iomem::run_end(PhysAddr address) const {
  const auto next = after(address);
  return next == pieces_.end() ? PhysAddr{UINT64_MAX} : next->start;
}

Result<NumaMap> NumaMap::read(const SysRoot& root) {
  auto names = root.list("sys/devices/system/node");
  if (!names) return std::unexpected(std::move(names.error()));
  NumaMap map;
  std::vector<unsigned> nodes;
  for (const std::string& name : *names) {
    if (const auto node = number_after(name, "node")) nodes.push_back(*node);
  }
  if (nodes.empty()) return fail(Errc::not_found, "NUMA nodes", "/sys/devices/system/node");

  std::uint64_t block_size = 0;
  if (const auto text = root.read_file("sys/devices/system/memory/block_size_bytes", 4096)) {
    std::string_view rest = *text;
    if (!take_number(rest, block_size, 16)) block_size = 0;
  }
  for (const unsigned node : nodes) {
    const auto blocks = root.list(("sys/devices/system/node/node" + std::to_string(node)).c_str());
    if (!blocks) continue;
    for (const std::string& name : *blocks) {
      const auto block = number_after(name, "memory");
      if (!block || block_size == 0 || *block > UINT64_MAX / block_size - 1) continue;
      map.spans_.push_back(
          {{{*block * block_size}, {(*block + std::uint64_t{1}) * block_size}}, node});
    }
  }
  // Kernels without memory hotplug list no blocks; with one node all RAM is that node's.
  if (map.spans_.empty() && nodes.size() == 1) {
    auto iomem = Iomem::read(root);
    if (!iomem) return std::unexpected(std::move(iomem.error()));
    for (const IomemRegion& region : iomem->regions()) {
      if (region.is_ram()) map.spans_.push_back({region.range, nodes[0]});
    }
  }
  std::ranges::sort(map.spans_, {}, [](const Span& span) { return span.range.start; });
  std::vector<Span> merged;
  for (const Span& span : map.spans_) {
    if (!merged.empty() && merged.back().node == span.node &&
        merged.back().range.end >= span.range.start) {
      merged.back().range.end = std::max(merged.back().range.end, span.range.end);
    } else {
      merged.push_back(span);
    }
  }
  map.spans_ = std::move(merged);
  return map;
}

std::optional<unsigned> NumaMap::node(PhysAddr address) const {
  const auto after =
      std::ranges::upper_bound(spans_, address, {}, [](const Span& s) { return s.range.start; });
  if (after == spans_.begin() || !std::prev(after)->range.contains(address)) return {};
  return std::prev(after)->node;
}

PhysAddr NumaMap::run_end(PhysAddr address) const {
  const auto after =
      std::ranges::upper_bound(spans_, address, {}, [](const Span& s) { return s.range.start; });
  if (after != spans_.begin() && std::prev(after)->range.contains(address)) {
    return std::prev(after)->range.end;
  }
  return after == spans_.end() ? PhysAddr{UINT64_MAX} : after->range.start;
}

Result<std::vector<PciBar>> read_pci_device(const SysRoot& root, const std::string& device) {
  const std::string path = "sys/bus/pci/devices/" + device + "/resource";
  const auto text = root.read_file(path.c_str(), 1 << 16);
  if (!text) return std::unexpected(text.error());
  std::vector<PciBar> lines;
  for (std::string_view rest = *text; !rest.empty();) {
    std::string_view line = take_line(rest);
    const auto start = take_0x(line);
    const auto last = take_0x(line);
    const auto flags = take_0x(line);
    if (!start || !last || !flags) return fail(Errc::malformed, "parsing", "/" + path);
    PciBar bar{device, static_cast<unsigned>(lines.size()), {{*start}, {*start}}, *flags};
    if (*last >= *start && *last != UINT64_MAX)
      bar.range.end = {*last + 1};
    else
      bar.flags = 0;  // of no size
    lines.push_back(std::move(bar));
  }
  return lines;
}

Result<std::vector<PciBar>> read_pci_bars(const SysRoot& root) {
  auto devices = root.list("sys/bus/pci/devices");
  if (!devices) return std::unexpected(std::move(devices.error()));
  std::ranges::sort(*devices);
  std::vector<PciBar> bars;
  for (const std::string& device : *devices) {
    auto lines = read_pci_device(root, device);
    if (!lines && lines.error().code == Errc::malformed) return lines;
    if (!lines) continue;  // unplugged meanwhile
    for (PciBar& bar : *lines) {
      if (bar.is_assigned()) bars.push_back(std::move(bar));
    }
  }
  return bars;
}

Result<std::vector<UioMap>> read_uio_maps(const SysRoot& root) {
  auto devices = root.list("sys/class/uio");
  if (!devices) return std::unexpected(std::move(devices.error()));
  std::vector<UioMap> maps;
  for (const std::string& device : *devices) {
    const auto number = number_after(device, "uio");
    if (!number) continue;
    const std::string directory = "sys/class/uio/" + device + "/maps";
    const auto entries = root.list(directory.c_str());
    if (!entries) continue;  // a device without maps
    for (const std::string& entry : *entries) {
      const auto index = number_after(entry, "map");
      if (!index) continue;
      std::string path = directory;
      path.append("/").append(entry).append("/");
      const auto address = read_0x(root, path + "addr");
      const auto size = read_0x(root, path + "size");
      if (!address || !size || *size > UINT64_MAX - *address) {
        return fail(Errc::malformed, "reading UIO map", "/" + path);
      }
      UioMap map{.device = *number,
                 .index = *index,
                 .name = {},
                 .range = {{*address}, {*address + *size}}};
      map.offset = read_0x(root, path + "offset").value_or(0);
      if (const auto name = root.read_file((path + "name").c_str(), 4096)) {
        map.name = name->substr(0, name->find('\n'));
      }
      maps.push_back(std::move(map));
    }
  }
  std::ranges::sort(maps, [](const UioMap& a, const UioMap& b) {
    return std::pair(a.device, a.index) < std::pair(b.device, b.index);
  });
  return maps;
}

namespace {

/// A number that a driver prints in a file of its own: "0x…" or decimal.
Result<std::uint64_t> read_number(const SysRoot& root, const std::string& path) {
  const auto text = root.read_file(path.c_str(), 4096);
  if (!text) return std::unexpected(text.error());
  std::string_view rest = *text;
  while (rest.starts_with(' ')) rest.remove_prefix(1);
  const bool hex = take(rest, "0x") || take(rest, "0X");
  std::uint64_t value = 0;
  if (!take_number(rest, value, hex ? 16 : 10) || (!rest.empty() && rest.front() != '\n'))
    return fail(Errc::malformed, "parsing", "/" + path);
  return value;
}

bool names_a_file(std::string_view name) {
  return !name.empty() && name.front() != '.' && !name.contains('/');
}

/// A device of one range: `address` and size.
Result<PublishedMemory> read_one_range(const SysRoot& root, const std::string& folder,
                                       const char* address) {
  const auto start = read_number(root, folder + "/" + address);
  if (!start) return std::unexpected(start.error());
  const auto size = read_number(root, folder + "/size");
  if (!size) return std::unexpected(size.error());
  if (*size == 0 || *size > UINT64_MAX - *start)
    return fail(Errc::malformed, "reading a device's memory (its size)", "/" + folder + "/size");
  return PublishedMemory{.source = "/" + folder, .ranges = {{{*start}, {*start + *size}}}};
}

/// mappingN/{start,end,page_offset} (drivers/dax/bus.c): `end` is inclusive. Empty: there are none.
Result<std::vector<PaRange>> read_dax_mappings(const SysRoot& root, const std::string& folder) {
  struct Mapping {
    std::uint64_t offset;
    PaRange range;
  };
  std::vector<Mapping> mappings;
  const auto names = root.list(folder.c_str());
  if (!names) return std::unexpected(names.error());
  for (const std::string& name : *names) {
    if (!number_after(name, "mapping")) continue;
    const std::string mapping = folder + "/" + name;
    const auto start = read_number(root, mapping + "/start");
    if (!start) return std::unexpected(start.error());
    const auto last = read_number(root, mapping + "/end");
    if (!last) return std::unexpected(last.error());
    const auto offset = read_number(root, mapping + "/page_offset");
    if (!offset) return std::unexpected(offset.error());
    if (*last < *start || *last == UINT64_MAX)
      return fail(Errc::malformed, "reading a device's memory (its end)", "/" + mapping + "/end");
    mappings.push_back({*offset, {{*start}, {*last + 1}}});
  }
  std::ranges::sort(mappings, {}, &Mapping::offset);
  std::vector<PaRange> ranges;
  ranges.reserve(mappings.size());
  for (const Mapping& mapping : mappings) ranges.push_back(mapping.range);
  return ranges;
}

}  // namespace

Result<PublishedMemory> read_published_memory(const SysRoot& root, std::string_view name) {
  const std::string device(name);
  if (!names_a_file(name)) return fail(Errc::not_found, "device that publishes its memory", device);
  for (const char* const device_class : {"u-dma-buf", "udmabuf", "uiomem"}) {
    auto memory =
        read_one_range(root, std::string("sys/class/") + device_class + "/" + device, "phys_addr");
    if (memory || memory.error().code != Errc::not_found) return memory;
  }
  for (const char* const bus : {"sys/bus/dax/devices/", "sys/class/dax/"}) {
    const std::string folder = bus + device;
    auto ranges = read_dax_mappings(root, folder);
    if (!ranges && ranges.error().code == Errc::not_found) continue;
    if (!ranges) return std::unexpected(std::move(ranges.error()));
    if (ranges->empty()) return read_one_range(root, folder, "resource");
    return PublishedMemory{.source = "/" + folder, .ranges = std::move(*ranges)};
  }
  return fail(Errc::not_found, "device that publishes its memory", device);
}

Result<std::string> read_dma_buf_exporter(const SysRoot& root, std::uint64_t inode) {
  const std::string file = "sys/kernel/dmabuf/buffers/" + std::to_string(inode) + "/exporter_name";
  const auto name = root.read_file(file.c_str(), 4096);
  if (name) return name->substr(0, name->find('\n'));
  const char* const list = "sys/kernel/debug/dma_buf/bufinfo";
  const auto text = root.read_file(list, 16 << 20);
  if (!text) {
    if (root.list("sys/kernel/dmabuf/buffers"))
      return fail(Errc::not_found, "dma-buf of that inode", "/sys/kernel/dmabuf/buffers");
    return std::unexpected(text.error().code == Errc::permission ||
                                   name.error().code == Errc::not_found
                               ? text.error()
                               : name.error());
  }
  // SIZE FLAGS MODE COUNT EXPORTER INODE NAME, numbers with zeros in front (dma_buf_debug_show() in
  // drivers/dma-buf/dma-buf.c).
  for (std::string_view rest = *text; !rest.empty();) {
    std::string_view line = take_line(rest);
    std::string_view fields[6];
    for (std::string_view& field : fields) {
      while (line.starts_with('\t') || line.starts_with(' ')) line.remove_prefix(1);
      field = line.substr(0, line.find_first_of("\t "));
      line.remove_prefix(field.size());
    }
    std::uint64_t number = 0;
    if (take_number(fields[5], number, 10) && fields[5].empty() && number == inode)
      return std::string(fields[4]);
  }
  return fail(Errc::not_found, "dma-buf of that inode", std::string("/") + list);
}

}  // namespace vmem
