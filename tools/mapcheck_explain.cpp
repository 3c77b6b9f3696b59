// SPDX-License-Identifier: MIT
/// Why /dev/mem can be mapped or not: mmap_mem() in drivers/char/mem.c, devmem_is_allowed(),
/// iomem_is_exclusive() in kernel/resource.c, and arch/x86/mm/pat/memtype.c.
#include "mapcheck_explain.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <iterator>
#include <limits>
#include <optional>

#include "addresses.hpp"
#include "render.hpp"
#include "targets.hpp"
#include "text_table.hpp"

namespace vmem::tools {
namespace {

/// More runs than these of one question are not tried one by one.
constexpr std::size_t most_tries = 256;

/// A line "KEY VALUE" or "KEY=VALUE" of a text; empty: there is none.
std::optional<std::string> value_of(std::string_view text, std::string_view key) {
  for (std::size_t at = 0; (at = text.find(key, at)) != std::string_view::npos; at += key.size()) {
    if (at != 0 && text[at - 1] != '\n') continue;
    const std::string_view rest = text.substr(at + key.size());
    return std::string(rest.substr(0, rest.find('\n')));
  }
  return {};
}

/// The kernel's configuration, where a file has it as text.
class KernelConfig {
 public:
  explicit KernelConfig(const SysRoot& root) {
    const std::string release = root.kernel_release();
    if (release.find('/') != std::string::npos) return;
    for (const std::string& path :
         {"boot/config-" + release, "lib/modules/" + release + "/config",
          "usr/lib/modules/" + release + "/config", "lib/modules/" + release + "/build/.config"}) {
      auto text = root.read_file(path.c_str(), 4 << 20);
      if (!text) continue;
      text_ = std::move(*text);
      path_ = "/" + path;
      return;
    }
    compressed_ = root.open_file("proc/config.gz").has_value();
  }

  /// "CONFIG_…": y, or not set; empty: not known.
  std::optional<bool> has(std::string_view option) const {
    if (text_.empty()) return {};
    return value_of(text_, std::string(option) + "=") == "y";
  }
  /// Why it is not known.
  std::string unknown() const {
    return compressed_ ? "only `zgrep DEVMEM /proc/config.gz` tells whether the kernel has it"
                       : "no file tells whether the kernel has it";
  }

 private:
  std::string text_, path_;
  bool compressed_ = false;
};

std::string machine_of(const SysRoot& root) {
  if (!root.recorded()) {
    utsname name{};
    return uname(&name) == 0 ? name.machine : "";
  }
  const auto manifest = root.read_file("manifest", 1 << 16);
  return manifest ? value_of(*manifest, "arch ").value_or("") : "";
}

/// "none [integrity] confidentiality"
std::string chosen_word(std::string_view text) {
  const std::size_t open = text.find('['), close = text.find(']');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open) return {};
  return std::string(text.substr(open + 1, close - open - 1));
}

bool is_pci_address(std::string_view name) {
  // "0000:03:00.0"
  return name.size() >= 12 && name[name.size() - 2] == '.' && name[name.size() - 5] == ':' &&
         name[name.size() - 8] == ':' &&
         name.find_first_not_of("0123456789abcdef:.") == std::string_view::npos;
}

/// Regions that nobody holds: what buses, firmware and the kernel's map of devices put there.
bool is_free(const IomemRegion& region) {
  return is_pci_address(region.name) || region.name.starts_with("PCI Bus ") ||
         region.name.starts_with("CXL Window") || region.name == "Reserved" ||
         region.name == "reserved" || region.name == "Soft Reserved" ||
         region.name.starts_with("Persistent Memory");
}

class Explainer {
 public:
  Explainer(const SysRoot& root, const Iomem& iomem)
      : root_(root), iomem_(iomem), config_(root), machine_(machine_of(root)) {
    x86_ = machine_ == "x86_64" || (machine_.size() == 4 && machine_.ends_with("86"));
    if (const auto text = root.read_file("sys/kernel/security/lockdown", 4096))
      lockdown_ = chosen_word(*text);
    if (const auto text = root.read_file("proc/cmdline", 1 << 16)) {
      const std::string padded = " " + text->substr(0, text->find('\n')) + " ";
      relaxed_ = padded.find(" iomem=relaxed ") != std::string::npos;
    }
    if (const auto text = root.read_file("proc/cpuinfo", 16 << 20); text && x86_) {
      constexpr std::string_view key = "address sizes\t: ";
      if (const std::size_t at = text->find(key); at != std::string::npos) {
        const char* const first = text->data() + at + key.size();
        std::from_chars(first, text->data() + text->size(), physical_bits_);
      }
    }
    if (auto text = root.read_file("sys/kernel/debug/x86/pat_memtype_list", 16 << 20))
      memory_types_ = std::move(*text);
    if (auto bars = read_pci_bars(root)) bars_ = std::move(*bars);
    if (!root.recorded()) {
      memory_ = Fd{open("/dev/mem", O_RDONLY | O_CLOEXEC)};
      open_errno_ = memory_.valid() ? 0 : errno;
    }
  }

  Explanation run(PaRange range) {
    Explanation said{.range = range, .region = {}, .why = {}, .instead = {}};
    std::vector<const IomemRegion*> regions;
    // Of a page the kernel asks what any of it is.
    for (const IomemRegion& region : iomem_.regions())
      if (region.range.start < range.end && range.start < region.range.end)
        regions.push_back(&region);
    std::ranges::sort(regions, {}, &IomemRegion::depth);
    for (const IomemRegion* const region : regions)
      said.region += (said.region.empty() ? "" : "/") + region->name;
    by_rules(said, regions);
    by_trying(said);
    if (said.answer != Mappable::allowed) said.instead = other_way(range.start);
    return said;
  }

 private:
  void say(Explanation& said, Mappable answer, std::string why) const {
    said.answer = answer;
    said.why = std::move(why);
  }

  void by_rules(Explanation& said, const std::vector<const IomemRegion*>& regions) const {
    if (!lockdown_.empty() && lockdown_ != "none") {
      return say(said, Mappable::refused,
                 "the kernel is locked down (" + lockdown_ + "): nobody may open /dev/mem");
    }
    if (config_.has("CONFIG_DEVMEM") == false)
      return say(said, Mappable::refused, "the kernel has no /dev/mem (CONFIG_DEVMEM is not set)");
    if (physical_bits_ != 0 && physical_bits_ < 64 &&
        ((said.range.end.value - 1) >> physical_bits_) != 0) {
      return say(said, Mappable::refused,
                 fmt::format("the processor has {} bits of physical addresses", physical_bits_));
    }
    const bool ram = std::ranges::any_of(regions, [](const IomemRegion* r) { return r->is_ram(); });
    const bool low = x86_ && said.range.end.value <= 1 << 20;
    if (low) {
      return say(said, Mappable::allowed,
                 "the first MiB of x86 is allowed, whatever lies there" + memory_type(said.range));
    }
    const auto strict = config_.has("CONFIG_STRICT_DEVMEM");
    if (ram) {
      if (strict == true)
        return say(said, Mappable::refused, "System RAM: the kernel has CONFIG_STRICT_DEVMEM");
      if (strict == false) {
        return say(
            said, Mappable::allowed,
            "System RAM, and the kernel has no CONFIG_STRICT_DEVMEM" + memory_type(said.range));
      }
      return say(
          said, Mappable::unknown,
          "System RAM: refused if the kernel has CONFIG_STRICT_DEVMEM; " + config_.unknown());
    }
    const auto holder = std::ranges::find_if(regions.rbegin(), regions.rend(),
                                             [](const IomemRegion* r) { return !is_free(*r); });
    if (holder == regions.rend()) {
      return say(said, Mappable::allowed,
                 (regions.empty() ? "no region of /proc/iomem is there: nobody holds it"
                                  : "no driver holds it") +
                     memory_type(said.range));
    }
    const std::string held = "busy: " + (*holder)->name + " holds it";
    if (relaxed_)
      return say(said, Mappable::allowed,
                 held + ", but the kernel was booted with iomem=relaxed" + memory_type(said.range));
    const auto io_strict = strict == false ? strict : config_.has("CONFIG_IO_STRICT_DEVMEM");
    if (io_strict == true) {
      return say(said, Mappable::refused,
                 held +
                     ", and the kernel has CONFIG_IO_STRICT_DEVMEM (iomem=relaxed on its "
                     "command line lifts that)");
    }
    if (io_strict == false) {
      return say(
          said, Mappable::allowed,
          held + ", but the kernel has no CONFIG_IO_STRICT_DEVMEM" + memory_type(said.range));
    }
    say(said, Mappable::unknown,
        held + ": refused if the kernel has CONFIG_IO_STRICT_DEVMEM; " + config_.unknown());
  }

  /// What was tried outranks what was read.
  void by_trying(Explanation& said) {
    if (root_.recorded()) return;
    if (!memory_.valid()) {
      // Lockdown and a missing driver have been told.
      if (said.answer == Mappable::refused) return;
      const bool denied = open_errno_ == EPERM || open_errno_ == EACCES;
      return say(
          said, denied || open_errno_ == ENOENT ? Mappable::refused : Mappable::unknown,
          fmt::format("opening /dev/mem: {}{}", std::strerror(open_errno_),
                      denied ? ": it needs CAP_SYS_RAWIO, the right to the file, and no lockdown"
                      : open_errno_ == ENOENT ? ": there is none here, as in a container"
                                              : ""));
    }
    if (tries_++ >= most_tries) {
      if (said.answer == Mappable::allowed)
        say(said, Mappable::unknown, "not tried: too many runs");
      return;
    }
    const std::size_t page = root_.page_size().bytes();
    for (const std::uint64_t at : {said.range.start.value, said.range.end.value - page}) {
      if (at > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) return;
      // Without access nothing is cached and no device is touched.
      void* const mapped =
          mmap(nullptr, page, PROT_NONE, MAP_SHARED, memory_.get(), static_cast<off_t>(at));
      const int error = errno;
      if (mapped != MAP_FAILED) {
        munmap(mapped, page);
        continue;
      }
      std::string why =
          fmt::format("mmap was refused when it was tried ({})", std::strerror(error));
      if (said.answer != Mappable::allowed)
        why += ": " + said.why;
      else if (error == EPERM)
        why += ": by CONFIG_STRICT_DEVMEM or a security module";
      return say(said, Mappable::refused, std::move(why));
    }
    if (said.answer != Mappable::allowed) {
      say(said, Mappable::allowed,
          "it was tried, and mmap succeeds: the kernel has not the option that refuses it");
    }
  }

  /// With what attribute the kernel has it mapped already, for O_SYNC must not conflict.
  std::string memory_type(PaRange range) const {
    // "PAT: [mem 0x00000000fe000000-0x00000000fe001000] uncached-minus"
    constexpr std::string_view key = "[mem 0x";
    for (std::size_t at = 0; (at = memory_types_.find(key, at)) != std::string::npos;) {
      at += key.size();
      std::uint64_t start = 0, end = 0;
      const char* const last = memory_types_.data() + memory_types_.size();
      const auto first = std::from_chars(memory_types_.data() + at, last, start, 16);
      if (first.ec != std::errc{} || last - first.ptr < 3 || std::memcmp(first.ptr, "-0x", 3) != 0)
        continue;
      const auto second = std::from_chars(first.ptr + 3, last, end, 16);
      if (second.ec != std::errc{} || start >= range.end.value || end <= range.start.value)
        continue;
      std::string_view type{second.ptr, static_cast<std::size_t>(last - second.ptr)};
      type = type.substr(0, type.find('\n'));
      if (type.starts_with("] ")) type.remove_prefix(2);
      std::string text = "; it is mapped " + std::string(type) + " already, and so it will be";
      if (type == "write-back") text += ", but with O_SYNC mmap fails (EINVAL)";
      return text;
    }
    return {};
  }

  std::string other_way(PhysAddr at) const {
    for (const PciBar& bar : bars_) {
      if (bar.is_memory() && bar.range.contains(at))
        return fmt::format("/sys/bus/pci/devices/{}/resource{}", bar.device, bar.index);
    }
    if (const auto maps = read_uio_maps(root_)) {
      for (const UioMap& map : *maps)
        if (map.range.contains(at))
          return fmt::format("/dev/uio{} (map {})", map.device, map.index);
    }
    return {};
  }

  const SysRoot& root_;
  const Iomem& iomem_;
  KernelConfig config_;
  std::string machine_;
  bool x86_ = false;
  std::string lockdown_;
  bool relaxed_ = false;
  unsigned physical_bits_ = 0;
  std::string memory_types_;
  std::vector<PciBar> bars_;
  Fd memory_;
  int open_errno_ = 0;
  std::size_t tries_ = 0;
};

}  // namespace

std::string_view to_string(Mappable answer) {
  switch (answer) {
    case Mappable::allowed:
      return "allowed";
    case Mappable::refused:
      return "refused";
    case Mappable::unknown:
      return "unknown";
  }
  return "unknown";
}

Result<std::vector<Explanation>> explain(const SysRoot& root, PaRange asked) {
  const auto iomem = Iomem::read(root);
  if (!iomem) return std::unexpected(iomem.error());
  const std::uint64_t mask = root.page_size().bytes() - 1;
  asked.start = {asked.start.value & ~mask};
  asked.end = {asked.end.value > UINT64_MAX - mask ? UINT64_MAX & ~mask
                                                   : (asked.end.value + mask) & ~mask};
  Explainer explainer{root, *iomem};
  std::vector<Explanation> all;
  for (PhysAddr at = asked.start; at < asked.end;) {
    // The kernel asks page by page, and what a page holds any of counts.
    PhysAddr end = std::min(asked.end, iomem->run_end(at));
    if (at.value < 1 << 20) end = std::min(end, PhysAddr{1 << 20});
    end = {std::max((end.value & ~mask), at.value + mask + 1)};
    Explanation said = explainer.run({at, end});
    if (!all.empty() && all.back().answer == said.answer && all.back().region == said.region &&
        all.back().why == said.why && all.back().instead == said.instead)
      all.back().range.end = end;
    else
      all.push_back(std::move(said));
    at = end;
  }
  return all;
}

int explain_command(const CommonOptions& options, const std::vector<std::string>& words,
                    const Messages& messages) {
  if (words.empty()) {
    messages.error("explain: what is to be explained", "give PA, PA+LEN or PA-END; see --help");
    return 2;
  }
  std::vector<PaRange> asked;
  for (const std::string& word : words) {
    using Form = AddressExpression::Form;
    const auto parsed = parse_address(word);
    const bool one = parsed && parsed->form == Form::address;
    if (!one && (!parsed || parsed->form != Form::range)) {
      messages.error(
          fmt::format("explain {}: {}", word, parsed ? "not a physical address" : parsed.error()),
          "give PA, PA+LEN or PA-END, in hexadecimal");
      return 2;
    }
    const PhysAddr start{parsed->start.value};
    asked.push_back({start, one ? start + 1 : PhysAddr{parsed->end.value}});
    if (start.value >> 56 != 0 || asked.back().end.value > std::uint64_t{1} << 56) {
      messages.error(fmt::format("explain {}: no physical address is that high", word));
      return 2;
    }
  }
  const auto root = open_root(options, messages);
  if (!root) return 2;
  std::vector<Explanation> all;
  for (const PaRange& range : asked) {
    auto some = explain(*root, range);
    if (!some) {
      messages.error(some.error());
      return 2;
    }
    std::ranges::move(*some, std::back_inserter(all));
  }

  Output out{interrupted};
  Status status = Status::good;
  std::string_view why;
  TextTable table;
  table.column("pa", TextTable::Align::left);
  table.column("size", TextTable::Align::right);
  for (const std::string_view heading : {"answer", "region", "why", "instead"})
    table.column(heading, TextTable::Align::left);
  if (options.json)
    out.append(json_prologue("mapcheck.explain", *root, root->pfn_access(), Backend::pagemap) +
               ",\n\"explanations\":[");
  const auto or_null = [](const std::string& text) {
    return text.empty() ? "null" : json_string(text);
  };
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Explanation& one = all[i];
    if (one.answer == Mappable::refused) status = Status::negative;
    if (one.answer == Mappable::unknown && status == Status::good) {
      status = Status::unanswered;
      why = one.why;
    }
    if (options.json) {
      out.print(
          R"({}{{"start":"{:#x}","end":"{:#x}","answer":"{}","region":{},"why":{},"instead":{}}})",
          i == 0 ? "\n" : ",\n", one.range.start.value, one.range.end.value, to_string(one.answer),
          or_null(one.region), json_string(one.why), or_null(one.instead));
      out.relieve();
      continue;
    }
    table.row({fmt::format("{:#x}", one.range.start.value),
               human_size(one.range.bytes(), options.bytes), std::string(to_string(one.answer)),
               one.region.empty() ? "-" : one.region, one.why,
               one.instead.empty() ? "-" : one.instead});
  }
  if (options.json) {
    out.append("\n]}");
    out.end_line();
  } else {
    table.print(out, !options.no_headings);
  }
  status = finish_output(out, status, messages);
  if (status == Status::unanswered && !out.failed()) messages.error(why);
  return static_cast<int>(status);
}

}  // namespace vmem::tools
