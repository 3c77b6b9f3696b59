// SPDX-License-Identifier: MIT
/// Which source of page facts serves which question.
#include <sys/utsname.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <utility>

#include "backends.hpp"

namespace vmem {
namespace {

/// From so many resident pages on, page tables through BPF pay: loading the program takes
/// some 9 ms, and pagemap 30 ns a page (bench/README.md).
constexpr std::uint64_t long_walk_pages = std::uint64_t{1} << 18;

/// Field 2 of /proc/PID/statm, in pages (proc(5)). 0 where it cannot be told.
std::uint64_t resident_pages(const Process& process) {
  const auto text = process.read_file("statm", 4096);
  if (!text) return 0;
  const std::size_t space = text->find(' ');
  if (space == std::string::npos) return 0;
  std::uint64_t pages = 0;
  std::from_chars(text->data() + space + 1, text->data() + text->size(), pages);
  return pages;
}

/// The architecture whose page tables no backend reads, in words; empty: it is another one, or a
/// recorded system does not say.
std::string_view unread_architecture(const SysRoot& root) {
  std::string_view machine;
  std::string manifest;
  utsname name{};
  if (!root.recorded()) {
    if (uname(&name) == 0) machine = name.machine;
  } else if (auto text = root.read_file("manifest", 1 << 16)) {
    manifest = "\n" + std::move(*text);
    constexpr std::string_view key = "\narch ";
    if (const std::size_t at = manifest.find(key); at != std::string::npos) {
      machine = std::string_view(manifest).substr(at + key.size());
      machine = machine.substr(0, machine.find('\n'));
    }
  }
  if (machine.empty() || machine == "x86_64" || machine == "amd64" || machine == "aarch64" ||
      machine == "arm64")
    return {};
  // As uname names it: armv6l, armv7l, armv8l; a 32-bit program on arm64 sees armv8l, too.
  return machine.starts_with("arm") ? "32-bit arm" : "another architecture";
}

/// pagemap, which costs nothing to open; page tables where pagemap is blind, and for long
/// walks that do not ask for what pagemap alone tells.
class Automatic final : public Translator {
 public:
  Automatic(const Process& process, std::unique_ptr<Translator> pagemap)
      : process_(process), pagemap_(std::move(pagemap)) {}

  Backend backend() const override { return pagemap_->backend(); }
  std::uint8_t known_bits() const override { return pagemap_->known_bits(); }
  bool sees_pfnmap() const override { return pagemap_->sees_pfnmap(); }

  Result<void> walk(VaRange range, const WalkOptions& options, ExtentSink sink) override {
    return pagemap_->walk(range, options, sink);
  }

  Result<PageWalk> page_walk(VirtAddr page) override {
    if (process_.root().recorded()) return pagemap_->page_walk(page);
    if (Translator* const tables = page_tables()) return tables->page_walk(page);
    return why_blind_ ? std::unexpected(*why_blind_) : Translator::page_walk(page);
  }

  Result<std::string> vm_ops(VirtAddr address) override {
    Translator* const tables = page_tables();
    return tables != nullptr ? tables->vm_ops(address) : Translator::vm_ops(address);
  }

  Result<std::vector<FlaggedVma>> vm_flags(VirtAddr from) override {
    Translator* const tables = page_tables();
    return tables != nullptr ? tables->vm_flags(from) : Translator::vm_flags(from);
  }

  Translator& for_walk(std::uint64_t bytes, const WalkOptions& options) override {
    const std::uint64_t pages = process_.root().page_size().pages(bytes);
    if (options.page_bits || process_.root().recorded() || pages < long_walk_pages ||
        resident_pages(process_) < long_walk_pages) {
      return *pagemap_;
    }
    Translator* const tables = page_tables();
    // The module answers entry by entry and is no faster than pagemap.
    return tables != nullptr && tables->backend() == Backend::bpf ? *tables : *pagemap_;
  }

  Translator* page_tables() override {
    if (asked_) return tables_.get();
    asked_ = true;
    const std::string_view unread =
        pagemap_->sees_pfnmap() ? std::string_view{} : unread_architecture(process_.root());
    if (!unread.empty()) {
      const bool arm = unread == "32-bit arm";
      why_blind_ = Error{
          .code = Errc::not_supported,
          .what = arm ? "reading page tables of 32-bit arm" : "reading page tables",
          .path = {},
          .hint = arm ? "no backend of arm reads page tables: BPF reads x86-64's, vmem.ko x86-64's "
                        "and arm64's"
                      : "no backend of this architecture reads page tables: BPF reads x86-64's, "
                        "vmem.ko x86-64's and arm64's"};
    } else if (!process_.root().recorded()) {
      auto bpf = open_bpf(process_);
      if (bpf) {
        tables_ = std::move(*bpf);
      } else if (auto kmod = open_kmod(process_)) {
        tables_ = std::move(*kmod);
      } else {
        why_blind_ = std::move(bpf.error());
      }
    }
    return tables_.get();
  }

  const Error* why_blind() const override { return why_blind_ ? &*why_blind_ : nullptr; }

 private:
  const Process& process_;
  std::unique_ptr<Translator> pagemap_;
  std::unique_ptr<Translator> tables_;
  bool asked_ = false;
  std::optional<Error> why_blind_;
};

}  // namespace

#if !VMEM_BPF
Result<std::unique_ptr<Translator>> open_bpf(const Process&) {
  return std::unexpected(Error{.code = Errc::not_supported,
                               .what = "backend bpf",
                               .path = {},
                               .hint = "libvmem was built without it (option bpf)"});
}
#endif

Translator::~Translator() = default;

Result<PageWalk> Translator::page_walk(VirtAddr page) {
  return std::unexpected(Error{.code = Errc::not_supported,
                               .what = "walking page tables",
                               .path = {},
                               .address = page.value,
                               .hint = "pagemap shows none: use --backend auto, bpf or kmod"});
}

Result<std::string> Translator::vm_ops(VirtAddr address) {
  return std::unexpected(Error{.code = Errc::not_supported,
                               .what = "asking for the operations of a mapping",
                               .path = {},
                               .address = address.value,
                               .hint = "only BPF tells them"});
}

Result<std::vector<FlaggedVma>> Translator::vm_flags(VirtAddr) {
  return std::unexpected(Error{.code = Errc::not_supported,
                               .what = "asking for the flags of mappings",
                               .path = {},
                               .hint = "only BPF tells them, beside smaps"});
}

Translator& Translator::for_walk(std::uint64_t, const WalkOptions&) { return *this; }
Translator* Translator::page_tables() { return sees_pfnmap() ? this : nullptr; }
const Error* Translator::why_blind() const { return nullptr; }

namespace {

/// Of a recorded system: pagemap, or the extents that stand in its place.
Result<std::unique_ptr<Translator>> open_recorded(const Process& process) {
  auto extents = open_recorded_extents(process);
  if (!extents && extents.error().code == Errc::not_found) {
    auto pagemap = open_pagemap(process);
    if (!pagemap && pagemap.error().code == Errc::not_found) {
      pagemap.error().hint =
          "a recording needs maps, and pagemap or extents, of each process "
          "(docs/recorded-systems.md; scripts/capture-fixture records them)";
    }
    return pagemap;
  }
  if (!extents) return extents;
  // One that cannot be opened is there all the same.
  if (const auto pagemap = process.open_file("pagemap");
      pagemap || pagemap.error().code != Errc::not_found) {
    return std::unexpected(Error{.code = Errc::malformed,
                                 .what = "opening recorded extents",
                                 .path = process.path("extents"),
                                 .hint = "there is a pagemap, too: which one holds?"});
  }
  return extents;
}

}  // namespace

Result<std::unique_ptr<Translator>> open_translator(const Process& process, Backend backend) {
  if (process.root().recorded()) {
    auto recorded = open_recorded(process);
    if (!recorded || (*recorded)->backend() == backend) return recorded;
    const bool tables = (*recorded)->sees_pfnmap();
    return std::unexpected(
        Error{.code = Errc::not_supported,
              .what = backend == Backend::bpf    ? "backend bpf"
                      : backend == Backend::kmod ? "backend kmod"
                                                 : "backend pagemap",
              .path = {},
              .hint = tables ? "this was recorded from page tables: use --backend auto"
                             : "a recorded system has no page tables: use --backend pagemap"});
  }
  switch (backend) {
    case Backend::pagemap:
      return open_pagemap(process);
    case Backend::bpf:
      return open_bpf(process);
    case Backend::kmod:
      return open_kmod(process);
  }
  std::unreachable();
}

Result<std::unique_ptr<Translator>> open_translator(const Process& process) {
  auto pagemap = process.root().recorded() ? open_recorded(process) : open_pagemap(process);
  if (!pagemap) return pagemap;
  return std::make_unique<Automatic>(process, std::move(*pagemap));
}

VmFlagsSource vm_flags_source(const Process& process, Translator& translator) {
  if (process.root().recorded()) return nullptr;
  return [&process, &translator, own = std::shared_ptr<Translator>(),
          asked = false](VirtAddr from) mutable -> Result<std::vector<FlaggedVma>> {
    if (own) return own->vm_flags(from);
    auto told = translator.vm_flags(from);
    if (told || told.error().code != Errc::not_supported || asked) return told;
    asked = true;
    auto bpf = open_bpf(process);
    if (!bpf) return std::unexpected(std::move(bpf.error()));
    own = std::move(*bpf);
    return own->vm_flags(from);
  };
}

}  // namespace vmem
