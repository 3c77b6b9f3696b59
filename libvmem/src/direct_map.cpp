// SPDX-License-Identifier: MIT
#include "direct_map.hpp"

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "errors.hpp"
#include "pagemap_bits.hpp"

namespace vmem {
namespace {

/// The kernel's own image is mapped from here on, apart from the direct map
/// (Documentation/arch/x86/x86_64/mm.rst).
constexpr std::uint64_t kernel_text = 0xffffffff80000000;
/// KASLR moves the direct map in steps of a PUD (kernel_randomize_memory() in arch/x86/mm/kaslr.c).
constexpr std::uint64_t alignment = std::uint64_t{1} << 30;
constexpr std::uint64_t page_bytes = 4096;
constexpr std::uint64_t kpf_slab = std::uint64_t{1} << 7;

bool in_ram(const std::vector<PaRange>& ram, std::uint64_t address) {
  return std::ranges::any_of(ram, [&](const PaRange& r) { return r.contains({address}); });
}

/// A page of our own, written.
class OwnPage {
 public:
  OwnPage()
      : at_(mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (at_ != MAP_FAILED) std::memset(at_, 1, page_bytes);
  }
  ~OwnPage() {
    if (at_ != MAP_FAILED) munmap(at_, page_bytes);
  }
  OwnPage(const OwnPage&) = delete;
  OwnPage& operator=(const OwnPage&) = delete;
  bool valid() const { return at_ != MAP_FAILED; }
  bool make_read_only() const { return mprotect(at_, page_bytes, PROT_READ) == 0; }
  VirtAddr address() const { return {reinterpret_cast<std::uint64_t>(at_)}; }

 private:
  void* at_;
};

/// The kernel gives addresses above 2^47 only to who asks for one, and only with five levels
/// (Documentation/arch/x86/x86_64/5level-paging.rst).
std::uint8_t page_table_levels() {
  constexpr std::uint64_t high = std::uint64_t{1} << 52;
  void* const hint = reinterpret_cast<void*>(high);  // NOLINT(performance-no-int-to-ptr)
  void* const at = mmap(hint, page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return 4;
  munmap(at, page_bytes);
  return reinterpret_cast<std::uint64_t>(at) >> 47 != 0 ? 5 : 4;
}

/// Booted without PAT, the page attribute table is what the processor starts with (Intel SDM 3A,
/// table 12-12).
void consider_nopat(const SysRoot& root, page_table::Format& format) {
  const auto text = root.read_file("proc/cmdline", 1 << 16);
  if (!text) return;
  std::string_view rest = *text;
  while (!rest.empty()) {
    const std::size_t end = rest.find_first_of(" \n");
    if (rest.substr(0, end) == "nopat") {
      using enum CacheAttribute;
      format.pat = {wb, wt, uc_minus, uc, wb, wt, uc_minus, uc};
    }
    if (end == std::string_view::npos) break;
    rest.remove_prefix(end + 1);
  }
}

/// Whether what the iterator shows for our own PID is us. Kernels before 6.1 know no filter and
/// show everybody.
bool is_self(const SysRoot& root, const vmem_run& run) {
  const auto self = root.self();
  return self && self->start_time() && run.seen != 0 &&
         started_at(root, run.start_boottime, *self->start_time());
}

/// One walk over our own page. What it found as the frame of it.
struct OwnWalk {
  std::optional<std::uint64_t> frame;
  std::uint64_t root_entry = 0;
  std::uint64_t leaf = 0;  ///< its entry
};
Result<OwnWalk> walk_own(BpfProgram& program, const Fd& link, VirtAddr page, const DirectMap& map) {
  auto iterator = program.iterate(link);
  if (!iterator) return std::unexpected(std::move(iterator.error()));
  program.use(map);
  // A run may end before it gets there, at one of very many VMAs.
  bool continued = false;
  do {
    auto read = program.read(*iterator, {page, page + page_bytes}, continued);
    if (!read) return std::unexpected(std::move(read.error()));
    continued = true;
  } while (program.run().cursor == page.value && program.run().seen != 0 &&
           program.run().ended == 0 && program.run().lost == 0);
  OwnWalk walk;
  const auto records = program.records();
  for (const vmem_record& record : records) {
    if (record.status != vmem_copied) return walk;
    const std::uint64_t entry = program.table(record)[map.format.index(record.level, page)];
    if (&record == records.data()) walk.root_entry = entry;
    if (record.level != 0) continue;
    const page_table::Entry decoded = page_table::decode(map.format, 0, entry);
    if (decoded.kind == page_table::Kind::leaf) {
      walk.frame = decoded.value / page_bytes;
      walk.leaf = entry;
    }
  }
  return walk;
}

/// What pagemap says of our own page; 0 if it does not tell.
std::uint64_t frame_by_pagemap(const Fd& pagemap, VirtAddr page) {
  std::uint64_t entry = 0;
  const auto n = read_at(pagemap, &entry, sizeof entry, page.value / page_bytes * sizeof entry);
  if (!n || *n != sizeof entry || !pagemap::present(entry)) return 0;
  return pagemap::pfn(entry).value;
}

/// Tries one way to see memory. `map` gets the encryption mask that it took.
Result<bool> try_map(const SysRoot& root, BpfProgram& program, DirectMap& map, bool mask_known) {
  const OwnPage page;
  if (!page.valid()) return failed(errno, "mapping a page", {});
  auto pagemap = root.open_file("proc/self/pagemap");
  if (!pagemap) return std::unexpected(std::move(pagemap.error()));
  auto link = program.link(getpid(), vmem_filter_task);
  if (!link) return std::unexpected(std::move(link.error()));
  for (int attempt = 0; attempt < 8; ++attempt) {
    const std::uint64_t before = frame_by_pagemap(*pagemap, page.address());
    auto walk = walk_own(program, *link, page.address(), map);
    if (!walk) return std::unexpected(std::move(walk.error()));
    if (before != frame_by_pagemap(*pagemap, page.address())) continue;  // it was migrated
    if (before != 0 && walk->frame == before) return true;
    // A bit above all memory in an entry of ours: that is how SME marks what is encrypted.
    const std::uint64_t top = std::bit_ceil(program.ram().back().end.value);
    const std::uint64_t above = walk->root_entry & 0x000ffffffffff000 & ~(top - 1);
    if (mask_known || !std::has_single_bit(above) || map.format.encryption_mask == above) break;
    map.format.encryption_mask = above;
  }
  return false;
}

/// Whether a written page that becomes read-only keeps its dirty bit elsewhere: tried on our own.
bool keeps_dirty(BpfProgram& program, const DirectMap& map) {
  const OwnPage page;
  if (!page.valid() || !page.make_read_only()) return false;
  const auto link = program.link(getpid(), vmem_filter_task);
  if (!link) return false;
  const auto walk = walk_own(program, *link, page.address(), map);
  return walk && walk->frame && page_table::shows_saved_dirty(walk->leaf);
}

}  // namespace

bool started_at(const SysRoot& root, std::uint64_t start_boottime, std::uint64_t ticks) {
  // As do_task_stat() in fs/proc/array.c; USER_HZ is 100 on every architecture here.
  constexpr std::uint64_t tick = 10'000'000;
  if (start_boottime / tick == ticks) return true;
  // A time namespace shifts what is shown: "boottime  SECONDS NANOSECONDS".
  const auto text = root.read_file("proc/self/timens_offsets", 4096);
  if (!text) return false;
  const std::size_t at = text->find("boottime");
  long long seconds = 0, nanoseconds = 0;
  if (at == std::string::npos ||
      std::sscanf(text->c_str() + at, "boottime %lld %lld", &seconds, &nanoseconds) != 2) {
    return false;
  }
  const auto shift = static_cast<std::uint64_t>(seconds * 1'000'000'000 + nanoseconds);
  return (start_boottime + shift) / tick == ticks;
}

Result<Kcore> read_kcore(const Fd& fd) {
  constexpr std::size_t most_headers = 4096, most_notes = 1 << 20;
  const auto malformed = [] { return fail(Errc::malformed, "reading", "/proc/kcore"); };
  Elf64_Ehdr header{};
  const auto got = read_at(fd, &header, sizeof header, 0);
  if (!got || *got != sizeof header || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 ||
      header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_phentsize != sizeof(Elf64_Phdr) ||
      header.e_phnum > most_headers) {
    return malformed();
  }
  std::vector<Elf64_Phdr> segments(header.e_phnum);
  const std::size_t bytes = segments.size() * sizeof(Elf64_Phdr);
  const auto read = read_at(fd, segments.data(), bytes, header.e_phoff);
  if (!read || *read != bytes) return malformed();
  Kcore kcore;
  for (const Elf64_Phdr& segment : segments) {
    if (segment.p_type == PT_LOAD && segment.p_paddr != ~Elf64_Addr{0} &&
        segment.p_vaddr < kernel_text && segment.p_vaddr >= segment.p_paddr) {
      const std::uint64_t base = segment.p_vaddr - segment.p_paddr;
      if (std::ranges::find(kcore.bases, base) == kcore.bases.end()) kcore.bases.push_back(base);
    }
    if (segment.p_type != PT_NOTE || segment.p_filesz > most_notes) continue;
    std::string notes(segment.p_filesz, '\0');
    const auto n = read_at(fd, notes.data(), notes.size(), segment.p_offset);
    if (!n) continue;
    notes.resize(*n);
    // The note VMCOREINFO is text; its keys occur nowhere else.
    constexpr std::string_view key = "NUMBER(sme_mask)=";
    const std::size_t at = notes.find(key);
    if (at == std::string::npos) continue;
    std::uint64_t mask = 0;
    const char* const first = notes.data() + at + key.size();
    if (std::from_chars(first, notes.data() + notes.size(), mask).ec == std::errc{}) {
      kcore.encryption_mask = mask;
    }
  }
  return kcore;
}

std::vector<std::uint64_t> calibrate(const Fd& flags, const std::vector<PaRange>& ram,
                                     const std::vector<std::uint64_t>& pointers) {
  std::vector<std::uint64_t> objects;
  for (const std::uint64_t pointer : pointers) {
    // Some objects of the first processes are part of the kernel's image.
    if (pointer >> 63 != 0 && pointer < kernel_text) objects.push_back(pointer);
  }
  std::ranges::sort(objects);
  // Too few to tell by: every slab would do.
  if (objects.size() < 4 || ram.empty()) return {};
  const auto is_slab = [&](std::uint64_t address) {
    if (!in_ram(ram, address)) return false;
    std::uint64_t entry = 0;
    const auto n = read_at(flags, &entry, sizeof entry, address / page_bytes * sizeof entry);
    return n && *n == sizeof entry && (entry & kpf_slab) != 0;
  };
  std::vector<std::uint64_t> bases;
  const std::uint64_t top = ram.back().end.value;
  for (std::uint64_t base = objects.front() & ~(alignment - 1);
       base >> 63 != 0 && objects.front() - base < top; base -= alignment) {
    if (objects.back() - base >= top) break;
    if (std::ranges::all_of(objects, [&](std::uint64_t p) { return is_slab(p - base); })) {
      bases.push_back(base);
    }
  }
  return bases;
}

std::optional<std::uint64_t> find_symbol(std::string_view kallsyms, std::string_view name) {
  // "ffffffff82a01000 D page_offset_base"
  for (std::size_t at = 0; (at = kallsyms.find(name, at)) != std::string_view::npos;
       at += name.size()) {
    const std::size_t end = at + name.size();
    if (at < 3 || kallsyms[at - 1] != ' ' || (end < kallsyms.size() && kallsyms[end] != '\n'))
      continue;
    const std::size_t newline = kallsyms.rfind('\n', at);
    const std::size_t start = newline == std::string_view::npos ? 0 : newline + 1;
    std::uint64_t address = 0;
    const auto [stop, error] =
        std::from_chars(kallsyms.data() + start, kallsyms.data() + at, address, 16);
    if (error == std::errc{} && *stop == ' ' && address != 0) return address;
  }
  return std::nullopt;
}

std::string symbol_at(std::string_view kallsyms, std::uint64_t address) {
  if (address == 0) return {};  // what kptr_restrict shows of all
  // "ffffffffc0801000 r uio_physical_vm_ops\t[uio]"
  char digits[16];
  const auto count = std::to_chars(digits, std::end(digits), address, 16).ptr - digits;
  std::string wanted(digits, static_cast<std::size_t>(count));
  wanted.insert(0, 16 - wanted.size(), '0');
  wanted += ' ';
  for (std::size_t at = 0; (at = kallsyms.find(wanted, at)) != std::string_view::npos;
       at += wanted.size()) {
    if (at != 0 && kallsyms[at - 1] != '\n') continue;
    std::string_view line = kallsyms.substr(at, kallsyms.find('\n', at) - at);
    line.remove_prefix(std::min(line.size(), wanted.size() + 2));  // and the type
    std::string name(line);
    std::ranges::replace(name, '\t', ' ');
    return name;
  }
  return {};
}

Result<bool> proves(const SysRoot& root, BpfProgram& program, const DirectMap& map) {
  DirectMap tried = map;
  return try_map(root, program, tried, true);
}

Result<void> prove_direct_map(const SysRoot& root, BpfProgram& program) {
  auto link = program.link(getpid(), vmem_filter_task);
  if (!link) return std::unexpected(std::move(link.error()));
  const auto iterate = [&] { return program.iterate(*link); };
  auto iterator = iterate();
  if (!iterator) return std::unexpected(std::move(iterator.error()));
  const auto pointers = program.read_pointers(*iterator);
  if (!pointers) return std::unexpected(pointers.error());
  if (!is_self(root, program.run())) {
    return std::unexpected(Error{
        .code = Errc::not_supported,
        .what = "reading a page of our own through BPF",
        .path = {},
        .hint =
            "the kernel's iterator cannot be held to one task: it takes Linux 6.1 or newer, and a "
            "/proc of this PID namespace"});
  }

  DirectMap map;
  map.format.levels = page_table_levels();
  consider_nopat(root, map.format);
  bool mask_known = false;
  Result<void> failure;
  const auto proven = [&](const std::vector<std::uint64_t>& bases) {
    for (const std::uint64_t base : bases) {
      map.base = base;
      auto good = try_map(root, program, map, mask_known);
      if (!good) failure = std::unexpected(std::move(good.error()));
      if (good && *good && keeps_dirty(program, map)) {
        map.format.saved_dirty = true;
        program.use(map);
      }
      if (!good || *good) return true;
      if (!mask_known) map.format.encryption_mask = 0;
    }
    return false;
  };

  if (const auto fd = root.open_file("proc/kcore")) {
    if (const auto kcore = read_kcore(*fd)) {
      if (kcore->encryption_mask) {
        mask_known = true;
        map.format.encryption_mask = *kcore->encryption_mask;
      }
      if (proven(kcore->bases)) return failure;
    }
  }
  if (const auto flags = root.open_file("proc/kpageflags")) {
    if (proven(calibrate(*flags, program.ram(), *pointers))) return failure;
  }
  if (const auto kallsyms = root.read_file("proc/kallsyms", std::size_t{64} << 20)) {
    if (const auto symbol = find_symbol(*kallsyms, "page_offset_base")) {
      if (auto again = iterate()) {
        const auto base = program.read_symbol(*again, *symbol);
        if (base && proven({*base})) return failure;
      }
    }
  }
  return std::unexpected(
      Error{.code = Errc::not_supported,
            .what = "finding the kernel's direct map of memory",
            .path = {},
            .hint = "neither /proc/kcore nor /proc/kpageflags nor /proc/kallsyms led to a page of "
                    "our own: nothing is read through a guess"});
}

}  // namespace vmem
