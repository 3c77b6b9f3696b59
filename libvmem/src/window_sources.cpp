// SPDX-License-Identifier: MIT
/// Where windows come from: PCI, UIO, vfio, /dev/mem and /proc/iomem; and which mappings a
/// selector means.
#include <algorithm>
#include <charconv>
#include <utility>

#include "device_paths.hpp"
#include "errors.hpp"
#include "hex_text.hpp"
#include "vmem/window.hpp"

namespace vmem {
namespace {

/// vfio-pci's mmap offsets: VFIO_PCI_OFFSET_SHIFT in include/linux/vfio_pci_core.h.
constexpr unsigned vfio_region_shift = 40;
constexpr std::uint64_t vfio_offset_mask = (std::uint64_t{1} << vfio_region_shift) - 1;

std::optional<unsigned> whole_number(std::string_view text) {
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

/// Names of devices that say themselves what publishes their memory.
constexpr std::string_view published_prefixes[] = {"udmabuf", "uiomem", "dax"};

/// Exporters of dma-bufs that take their pages from RAM: DMA heaps (those of CMA, too; its areas
/// are RAM), and udmabuf, from memfds.
constexpr std::string_view ram_exporters[] = {"system",    "system-uncached", "udmabuf",
                                              "linux,cma", "reserved",        "default_cma_region"};

/// Whether two words differ in nothing but the case of their letters.
bool same_word(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; };
  return std::ranges::equal(a, b, {}, lower, lower);
}

std::string_view base_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

/// "0000:03:00.0" from "0000:03:00.0" or "03:00.0"; empty for anything else, so that nothing
/// leads out of the folder of devices.
std::string pci_address(std::string_view text) {
  const auto hex_digits = [&](std::size_t least, std::size_t most) {
    std::size_t n = 0;
    while (n < text.size() && std::string_view("0123456789abcdefABCDEF").contains(text[n])) ++n;
    const bool good = n >= least && n <= most;
    text.remove_prefix(n);
    return good;
  };
  const auto mark = [&](char c) {
    if (!text.starts_with(c)) return false;
    text.remove_prefix(1);
    return true;
  };
  const bool domain = std::ranges::count(text, ':') == 2;
  std::string address = domain ? std::string(text) : "0000:" + std::string(text);
  if (domain && !(hex_digits(4, 8) && mark(':'))) return {};
  if (!hex_digits(2, 2) || !mark(':') || !hex_digits(2, 2) || !mark('.') || !hex_digits(1, 1) ||
      !text.empty()) {
    return {};
  }
  std::ranges::transform(address, address.begin(), [](char c) {
    return c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c;
  });
  return address;
}

/// Ascending and disjoint. RAM counts where a page is all RAM, other memory where a page holds
/// any of it.
std::vector<PaRange> whole_pages(std::vector<PaRange> ranges, PageSize page_size, bool inwards) {
  const std::uint64_t mask = page_size.bytes() - 1;
  for (PaRange& range : ranges) {
    const std::uint64_t up = inwards ? mask : 0, out = inwards ? 0 : mask;
    range.start = {range.start.value > UINT64_MAX - up ? UINT64_MAX & ~mask
                                                       : (range.start.value + up) & ~mask};
    range.end = {range.end.value > UINT64_MAX - out ? UINT64_MAX & ~mask
                                                    : (range.end.value + out) & ~mask};
  }
  std::erase_if(ranges, [](const PaRange& r) { return r.end <= r.start; });
  std::ranges::sort(ranges, {}, &PaRange::start);
  std::vector<PaRange> merged;
  for (const PaRange& range : ranges) {
    if (!merged.empty() && range.start <= merged.back().end)
      merged.back().end = std::max(merged.back().end, range.end);
    else
      merged.push_back(range);
  }
  return merged;
}

/// How far `address` lies into the window; UINT64_MAX if it does not.
std::uint64_t offset_of(const Window& window, PhysAddr address) {
  std::uint64_t before = 0;
  for (const PaRange& range : window.ranges) {
    if (range.contains(address)) return before + (address - range.start);
    before += range.bytes();
  }
  return UINT64_MAX;
}

/// The end of the set that begins at `glob[open]`, or npos if it is not closed.
std::size_t set_end(std::string_view glob, std::size_t open) {
  std::size_t i = open + 1;
  if (i < glob.size() && (glob[i] == '!' || glob[i] == '^')) ++i;
  if (i < glob.size() && glob[i] == ']') ++i;
  return glob.find(']', i);
}

bool in_set(std::string_view set, char c) {
  const bool negated = set.starts_with('!') || set.starts_with('^');
  if (negated) set.remove_prefix(1);
  bool found = false;
  for (std::size_t i = 0; i < set.size(); ++i) {
    if (i + 2 < set.size() && set[i + 1] == '-') {
      found = found || (set[i] <= c && c <= set[i + 2]);
      i += 2;
    } else {
      found = found || set[i] == c;
    }
  }
  return found != negated;
}

bool matches(std::string_view glob, std::string_view text, bool sets) {
  std::size_t g = 0, t = 0;
  std::size_t star = std::string_view::npos, resume = 0;
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      resume = t;
      continue;
    }
    std::size_t next = g;
    bool good = false;
    if (g < glob.size()) {
      const std::size_t close = sets && glob[g] == '[' ? set_end(glob, g) : std::string_view::npos;
      if (close != std::string_view::npos) {
        good = in_set(glob.substr(g + 1, close - g - 1), text[t]);
        next = close + 1;
      } else if (glob[g] == '\\' && g + 1 < glob.size()) {
        good = glob[g + 1] == text[t];
        next = g + 2;
      } else {
        good = glob[g] == '?' || glob[g] == text[t];
        next = g + 1;
      }
    }
    if (good) {
      g = next;
      ++t;
    } else if (star != std::string_view::npos) {
      // Only the last star need be tried again.
      g = star + 1;
      t = ++resume;
    } else {
      return false;
    }
  }
  while (g < glob.size() && glob[g] == '*') ++g;
  return g == glob.size();
}

bool names(std::string_view glob, std::string_view path) {
  constexpr std::string_view deleted = " (deleted)";
  if (path.empty()) return false;
  if (path.ends_with(deleted) && names(glob, path.substr(0, path.size() - deleted.size())))
    return true;
  if (glob == path) return true;
  if (glob.starts_with('[')) return matches(glob, path, false);
  return matches(glob, glob.contains('/') ? path : base_name(path), true);
}

}  // namespace

Window Window::literal(PaRange range, PageSize page_size) {
  const std::string text = hex_text(range.start.value) + "+" + hex_text(range.bytes());
  return {.kind = Kind::physical,
          .ranges = whole_pages({range}, page_size, false),
          .device = false,
          .text = text};
}

std::optional<CacheSet> cache_set(std::string_view word) {
  const auto bits = [](auto... attributes) {
    return static_cast<CacheSet>((... | (1U << static_cast<unsigned>(attributes))));
  };
  const auto is = [&](std::string_view other) { return same_word(word, other); };
  using enum CacheAttribute;
  if (is("any")) return CacheSet{0};
  if (is("uc")) return bits(uc, uc_minus, device_ngnrne, device_ngnre);
  if (is("uc-")) return bits(uc_minus);
  if (is("wc")) return bits(wc, normal_nc);
  if (is("wt")) return bits(wt);
  if (is("wp")) return bits(wp);
  if (is("wb")) return bits(wb, normal, normal_tagged);
  // As the tools print arm64's.
  for (const CacheAttribute one : {device_ngnrne, device_ngnre, normal_nc, normal, normal_tagged}) {
    if (is(to_string(one))) return bits(one);
  }
  return {};
}

bool matches_glob(std::string_view glob, std::string_view text) {
  return matches(glob, text, true);
}

bool Selector::selects(const Vma& vma) const {
  switch (form) {
    case Form::address:
      return vma.range.contains(address);
    case Form::name:
      return names(text, vma.path);
    case Form::file:
      return vma.offset <= offset && offset - vma.offset < vma.range.bytes() &&
             names(text, vma.path);
  }
  return false;
}

std::optional<std::uint64_t> window_offset(const Window& window, const Vma& vma,
                                           Classification what) {
  switch (what.kind) {
    case VmaKind::uio:
      return 0;
    case VmaKind::pci_bar:
    case VmaKind::devmem:
      return offset_of(window, {vma.offset});
    case VmaKind::vfio: {
      const std::uint64_t as_address = offset_of(window, {vma.offset});
      return as_address != UINT64_MAX ? as_address : vma.offset & vfio_offset_mask;
    }
    default:
      break;
  }
  if (what.vma_class == VmaClass::device && !vma.shared) return {};
  return vma.offset;
}

struct WindowSources::State {
  SysRoot root;
  std::optional<Result<Iomem>> iomem;
  std::optional<Result<NumaMap>> nodes;
  std::optional<Result<std::vector<UioMap>>> uio;

  PageSize page_size() const { return root.page_size(); }

  Window physical(PaRange range, std::string text, bool device) const {
    return {.kind = Window::Kind::physical,
            .ranges = whole_pages({range}, page_size(), false),
            .device = device,
            .text = std::move(text)};
  }

  /// The assigned memory BAR of `device` that `want` accepts; null if there is none.
  std::optional<PciBar> bar_of(const std::string& device, auto want) const {
    const auto lines = read_pci_device(root, device);
    if (!lines) return {};
    const auto found = std::ranges::find_if(*lines, [&](const PciBar& bar) {
      return bar.is_assigned() && bar.is_memory() && want(bar);
    });
    return found == lines->end() ? std::optional<PciBar>{} : *found;
  }

  /// What a class that is not known says of an address of that device; empty: nothing.
  std::string unproven_address(std::string_view name) const {
    const auto classes = root.list("sys/class");
    if (!classes || name.empty()) return {};
    for (const std::string& device_class : *classes) {
      std::string file = "sys/class/" + device_class + "/";
      file.append(name).append("/phys_addr");
      const auto text = root.read_file(file.c_str(), 4096);
      if (text) return "/" + file + " says " + text->substr(0, text->find('\n'));
    }
    return {};
  }

  /// PCI devices that the process holds through vfio, by its open files: a group's
  /// (/dev/vfio/N) or a device's own (/dev/vfio/devices/vfioN).
  std::vector<std::string> vfio_devices(const Process& process) const {
    std::vector<std::string> devices;
    const auto files = process.list("fd");
    if (!files) return devices;
    for (const std::string& file : *files) {
      const auto link =
          root.read_link(("proc/" + std::to_string(process.pid()) + "/fd/" + file).c_str());
      if (!link || !link->starts_with("/dev/vfio/")) continue;
      const std::string name(base_name(*link));
      if (link->starts_with("/dev/vfio/devices/vfio")) {
        const auto device = root.read_link(("sys/class/vfio-dev/" + name + "/device").c_str());
        if (device) devices.emplace_back(base_name(*device));
      } else if (whole_number(name)) {
        auto members = root.list(("sys/kernel/iommu_groups/" + name + "/devices").c_str());
        if (members) std::ranges::move(*members, std::back_inserter(devices));
      }
    }
    std::erase_if(devices, [](const std::string& d) { return pci_address(d).empty(); });
    std::ranges::sort(devices);
    const auto repeated = std::ranges::unique(devices);
    devices.erase(repeated.begin(), repeated.end());
    return devices;
  }
};

WindowSources::WindowSources(const SysRoot& root) : state_(std::make_unique<State>(root)) {}
WindowSources::WindowSources(WindowSources&&) noexcept = default;
WindowSources::~WindowSources() = default;

const Result<Iomem>& WindowSources::iomem_regions() {
  if (!state_->iomem) state_->iomem = Iomem::read(state_->root);
  return *state_->iomem;
}

const Result<NumaMap>& WindowSources::nodes() {
  if (!state_->nodes) state_->nodes = NumaMap::read(state_->root);
  return *state_->nodes;
}

Result<Window> WindowSources::pci_bar(std::string_view device, unsigned index) {
  const std::string address = pci_address(device);
  if (address.empty()) {
    return std::unexpected(Error{.code = Errc::invalid_argument,
                                 .what = "not a PCI address",
                                 .path = std::string(device),
                                 .hint = "write DOMAIN:BUS:DEVICE.FUNCTION, as lspci -D does"});
  }
  const auto lines = read_pci_device(state_->root, address);
  if (!lines) return std::unexpected(lines.error());
  const std::string path =
      "/sys/bus/pci/devices/" + address + "/resource line " + std::to_string(index);
  if (index >= lines->size())
    return fail(Errc::not_found, "PCI BAR (the device has none such)", path);
  const PciBar& bar = (*lines)[index];
  if (!bar.is_assigned() && index > 0 && (*lines)[index - 1].is_64_bit()) {
    return std::unexpected(Error{.code = Errc::not_found,
                                 .what = "PCI BAR (the upper half of a 64-bit one)",
                                 .path = path,
                                 .hint = "name the BAR before it"});
  }
  if (!bar.is_assigned()) {
    return std::unexpected(Error{.code = Errc::not_found,
                                 .what = "PCI BAR (not assigned)",
                                 .path = path,
                                 .hint = "the device has no such BAR, or it was given no address"});
  }
  if (!bar.is_memory()) return fail(Errc::not_supported, "PCI BAR (I/O ports, not memory)", path);
  return state_->physical(bar.range, "pci:" + address + "/bar" + std::to_string(index), true);
}

Result<Window> WindowSources::uio_map(unsigned device, unsigned index) {
  if (!state_->uio) state_->uio = read_uio_maps(state_->root);
  if (!*state_->uio) return std::unexpected(state_->uio->error());
  const std::string name = "uio" + std::to_string(device) + "/map" + std::to_string(index);
  const auto found = std::ranges::find_if(
      **state_->uio, [&](const UioMap& map) { return map.device == device && map.index == index; });
  const std::string path =
      "/sys/class/uio/uio" + std::to_string(device) + "/maps/map" + std::to_string(index);
  if (found == (*state_->uio)->end()) return fail(Errc::not_found, "UIO map", path);
  if (found->range.start.value >> 56 != 0)
    return fail(Errc::not_supported, "UIO map (its address is the kernel's, not physical)", path);
  if (found->range.bytes() == 0) return fail(Errc::not_found, "UIO map (of no size)", path);
  return state_->physical(found->range, name, false);
}

Result<Window> WindowSources::published(std::string_view name) {
  auto memory = read_published_memory(state_->root, name);
  if (!memory) return std::unexpected(std::move(memory.error()));
  if (!std::ranges::is_sorted(memory->ranges, {}, &PaRange::start)) {
    return fail(Errc::not_supported,
                "memory of a device (its offsets do not ascend with its addresses)",
                memory->source);
  }
  // The name alone is a window's where it says what it is.
  std::string text(name);
  if (std::ranges::none_of(published_prefixes, [&](auto p) { return name.starts_with(p); })) {
    const std::string_view folder =
        std::string_view(memory->source).substr(0, memory->source.rfind('/'));
    const std::string_view kind = folder.starts_with("/sys/bus/dax/") ? "dax" : base_name(folder);
    text = std::string(kind) + ":" + text;
  }
  return Window{.kind = Window::Kind::physical,
                .ranges = whole_pages(std::move(memory->ranges), state_->page_size(), false),
                .device = false,
                .text = std::move(text)};
}

Result<Window> WindowSources::iomem(std::string_view name) {
  const Result<Iomem>& iomem = iomem_regions();
  if (!iomem) return std::unexpected(iomem.error());
  std::vector<PaRange> ranges;
  bool ram = false;
  const auto take = [&](auto is) {
    for (const IomemRegion& region : iomem->regions()) {
      if (!is(region.name)) continue;
      ranges.push_back(region.range);
      ram = region.is_ram();
    }
  };
  take([&](std::string_view region) { return region == name; });
  if (ranges.empty()) take([&](std::string_view region) { return same_word(region, name); });
  ranges = whole_pages(std::move(ranges), state_->page_size(), ram);
  if (ranges.empty())
    return fail(Errc::not_found, "region of that name", "/proc/iomem: " + std::string(name));
  return Window{.kind = Window::Kind::physical,
                .ranges = std::move(ranges),
                .device = false,
                .text = "iomem:" + std::string(name)};
}

Result<Window> WindowSources::ram() {
  const Result<Iomem>& iomem = iomem_regions();
  if (!iomem) return std::unexpected(iomem.error());
  std::vector<PaRange> ranges;
  for (const IomemRegion& region : iomem->regions()) {
    if (region.is_ram()) ranges.push_back(region.range);
  }
  return Window{.kind = Window::Kind::ram,
                .ranges = whole_pages(std::move(ranges), state_->page_size(), true),
                .device = false,
                .text = "ram"};
}

Result<Check> WindowSources::derive(const Process& process, const Vma& vma, Classification what) {
  Check check;
  check.name = vma.path;
  check.select = {.form = Selector::Form::address, .text = {}, .address = vma.range.start};
  const auto with = [&](Result<Window> window, std::string_view cache) -> Result<Check> {
    if (!window) return std::unexpected(std::move(window.error()));
    check.window = std::move(*window);
    check.cache = *cache_set(cache);
    return check;
  };
  const auto of_bar = [&](const PciBar& bar, std::string_view cache) {
    return with(pci_bar(bar.device, bar.index), cache);
  };
  const auto holds_offset = [&](const PciBar& bar) { return bar.range.contains({vma.offset}); };
  switch (what.kind) {
    case VmaKind::pci_bar: {
      if (vma.path.starts_with("/proc/")) {
        // BUS/DEV.FN; a domain stands before BUS where it is not 0.
        std::string device(base_name(vma.path));
        std::string_view bus = std::string_view(vma.path).substr(0, vma.path.rfind('/'));
        device = pci_address(std::string(base_name(bus)) + ":" + device);
        const auto bar = state_->bar_of(device, holds_offset);
        if (bar) return of_bar(*bar, "any");
        return fail(Errc::not_supported, "no BAR of the device is there", vma.path);
      }
      const std::size_t slash = vma.path.rfind('/');
      std::string_view file = std::string_view(vma.path).substr(slash + 1);
      const std::string_view device = base_name(std::string_view(vma.path).substr(0, slash));
      file.remove_prefix(std::string_view("resource").size());
      const bool combining = file.ends_with("_wc");
      const auto index = whole_number(file.substr(0, file.size() - (combining ? 3 : 0)));
      if (!index) return fail(Errc::not_supported, "not a PCI resource file", vma.path);
      return with(pci_bar(device, *index), combining ? "wc" : "uc");
    }
    case VmaKind::uio: {
      const auto device = whole_number(std::string_view(vma.path).substr(8));
      if (!device) return fail(Errc::not_supported, "not a UIO device", vma.path);
      const std::uint64_t index = vma.offset >> state_->page_size().shift();
      if (index > 4)
        return fail(Errc::not_found, "UIO map of that offset", vma.path);  // MAX_UIO_MAPS
      return with(uio_map(*device, static_cast<unsigned>(index)), "uc");
    }
    case VmaKind::vfio: {
      const auto index = static_cast<unsigned>(vma.offset >> vfio_region_shift);
      const auto region = [&](const PciBar& bar) { return bar.index == index; };
      check.sparse = true;  // pages come when they are touched
      const std::vector<std::string> devices = state_->vfio_devices(process);
      for (const std::string& device : devices) {
        if (const auto bar = state_->bar_of(device, holds_offset)) return of_bar(*bar, "uc");
      }
      if (devices.size() == 1) {
        if (const auto bar = state_->bar_of(devices[0], region)) return of_bar(*bar, "uc");
      }
      return fail(Errc::not_supported,
                  devices.size() > 1 ? "vfio mapping (of which of its devices is not known)"
                                     : "vfio mapping (its device is not known)",
                  vma.path);
    }
    case VmaKind::devmem: {
      // What begins in a region ends in it: a device's BAR, or whatever else is outermost.
      const PaRange asked{{vma.offset}, {vma.offset + vma.range.bytes()}};
      if (asked.end < asked.start) return fail(Errc::malformed, "offset of /dev/mem", vma.path);
      const Result<Iomem>& iomem = iomem_regions();
      if (!iomem) return std::unexpected(iomem.error());
      const IomemRegion* outermost = nullptr;
      for (const IomemRegion& region : iomem->regions()) {
        if (region.range.contains(asked.start) && !region.name.starts_with("PCI Bus") &&
            (outermost == nullptr || region.depth < outermost->depth)) {
          outermost = &region;
        }
      }
      const bool bar = outermost != nullptr && !pci_address(outermost->name).empty();
      Window window =
          Window::literal(outermost != nullptr ? outermost->range : asked, state_->page_size());
      window.device = true;
      auto derived = with(std::move(window), "any");
      if (bar) derived->cache = static_cast<CacheSet>(*cache_set("uc") | *cache_set("wc"));
      return derived;
    }
    case VmaKind::dma_buf: {
      const auto exporter = read_dma_buf_exporter(state_->root, vma.inode);
      if (!exporter) {
        return fail(Errc::not_supported, "a dma-buf whose exporter is not known",
                    to_string(exporter.error()));
      }
      if (std::ranges::find(ram_exporters, *exporter) != std::end(ram_exporters)) {
        check.sparse = true;  // udmabuf's pages come when they are touched
        return with(ram(), "any");
      }
      return fail(Errc::not_supported, "a dma-buf whose exporter alone knows where it must be",
                  *exporter);
    }
    case VmaKind::gpu:
      return fail(Errc::not_supported, "the GPU's driver alone knows where its buffers must be",
                  vma.path);
    default:
      break;
  }
  constexpr std::string_view deleted = " (deleted)";
  std::string_view name = vma.path;
  if (name.ends_with(deleted)) name.remove_suffix(deleted.size());
  if (name.starts_with("/dev/")) {
    auto window = published(base_name(name));
    if (window || window.error().code != Errc::not_found) {
      check.sparse = true;  // some of these drivers bring pages when they are touched
      return with(std::move(window), "any");
    }
  }
  if (vma.path.empty())
    return fail(Errc::not_supported, "only the driver that made it knows where it must be", {});
  const std::string said = state_->unproven_address(base_name(name));
  return fail(Errc::not_supported, "only its driver knows where it must be",
              said.empty() ? vma.path : said);
}

}  // namespace vmem
