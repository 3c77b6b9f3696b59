// SPDX-License-Identifier: MIT
#include "bpf_program.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "errors.hpp"
#include "vmem/physmap.hpp"

namespace vmem {
namespace {

/// System RAM, neighbours merged. Its holes have no direct map, and device memory must not be read.
Result<std::vector<PaRange>> system_ram(const SysRoot& root) {
  auto iomem = Iomem::read(root);
  if (!iomem) return std::unexpected(std::move(iomem.error()));
  std::vector<PaRange> ram;
  for (const IomemRegion& region : iomem->regions()) {
    if (!region.is_ram()) continue;
    constexpr std::uint64_t page = 4096;
    const PaRange range{{(region.range.start.value + page - 1) & ~(page - 1)},
                        {region.range.end.value & ~(page - 1)}};
    if (range.start < range.end) ram.push_back(range);
  }
  std::ranges::sort(ram, {}, &PaRange::start);
  std::vector<PaRange> merged;
  for (const PaRange& range : ram) {
    if (!merged.empty() && range.start <= merged.back().end)
      merged.back().end = std::max(merged.back().end, range.end);
    else
      merged.push_back(range);
  }
  if (merged.size() > VMEM_RAM_RANGES)
    merged.resize(VMEM_RAM_RANGES);  // what is not known is not read
  if (merged.empty()) return fail(Errc::not_found, "looking for System RAM", "/proc/iomem");
  return merged;
}

}  // namespace

// Its errno says little, so what is known to stand in the way is looked up.
Error why_not_loaded(const SysRoot& root, int os_errno) {
  Error error = make_error(os_errno, "loading the BPF program", {});
  const auto says = [&](const char* path, const char* word) {
    const auto text = root.read_file(path, 4096);
    return text && text->find(word) != std::string::npos;
  };
  if (says("sys/kernel/security/lockdown", "[confidentiality]")) {
    error.code = Errc::permission;
    error.hint = "the kernel is locked down (confidentiality): no program may read its memory";
  } else if (error.code == Errc::permission) {
    error.hint = "page tables through BPF need CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN";
  } else if (os_errno == ENOMEM || os_errno == EMFILE || os_errno == ENFILE) {
    error.code = Errc::io;
  } else {
    error.code = Errc::not_supported;
    if (os_errno == ENOSYS)
      error.hint = "this kernel is built without BPF";
    else if (says("proc/sys/net/core/bpf_jit_enable", "0"))
      error.hint = "net.core.bpf_jit_enable is 0: the kernel's BPF interpreter cannot run this";
    else if (const auto btf = root.open_file("sys/kernel/btf/vmlinux"); !btf)
      error.hint = "this kernel is built without BTF (CONFIG_DEBUG_INFO_BTF)";
    else
      error.hint = "this kernel's BPF cannot do this: it takes Linux 6.1 or newer";
  }
  return error;
}

Result<std::unique_ptr<BpfProgram>> BpfProgram::load(const SysRoot& root) {
  auto ram = system_ram(root);
  if (!ram) return std::unexpected(std::move(ram.error()));
  std::unique_ptr<BpfProgram> program(new BpfProgram);
  int error = EAGAIN;
  // The verifier gives up where a signal is pending (bpf_check() in kernel/bpf/verifier.c).
  for (int left = 8; left > 0 && error == EAGAIN; --left)
    error = vmem_program_load(&program->program_);
  if (error != 0) return std::unexpected(why_not_loaded(root, error));
  program->owner_ = getpid();
  program->use(std::move(*ram));
  return program;
}

void BpfProgram::use(std::vector<PaRange> ram) {
  ram_ = std::move(ram);
  vmem_ram* const shared = program_.ram;
  for (std::size_t i = 0; i < VMEM_RAM_RANGES; ++i) {
    constexpr std::uint64_t none = ~std::uint64_t{0};
    shared[i] =
        i < ram_.size() ? vmem_ram{ram_[i].start.value, ram_[i].end.value} : vmem_ram{none, none};
  }
}

bool BpfProgram::refresh_ram(const SysRoot& root) {
  auto ram = system_ram(root);
  if (!ram || *ram == ram_) return false;
  use(std::move(*ram));
  return true;
}

BpfProgram::~BpfProgram() {
  if (program_.skeleton != nullptr) vmem_program_unload(&program_);
}

bool BpfProgram::ours() const { return owner_ == getpid(); }

Result<Fd> BpfProgram::link(pid_t pid, vmem_filter filter) const {
  Fd fd{vmem_program_link(&program_, pid, filter)};
  // A task that is not there is refused with EINVAL or ESRCH by some kernels.
  if (!fd.valid()) return failed(errno == EINVAL ? ESRCH : errno, "attaching to the process", {});
  return fd;
}

Result<Fd> BpfProgram::iterate(const Fd& link) const {
  Fd fd{vmem_program_iterate(link.get())};
  if (!fd.valid()) return failed(errno, "iterating over the process's VMAs", {});
  return fd;
}

void BpfProgram::use(const DirectMap& map) {
  direct_map_ = map;
  vmem_run& run = *program_.run;
  run.direct_map = map.base;
  run.address_mask = 0x000ffffffffff000 & ~map.format.encryption_mask;
  run.levels = map.format.levels;
}

Result<void> BpfProgram::read(const Fd& iterator) {
  vmem_run& run = *program_.run;
  run.seen = run.ended = run.lost = 0;
  run.records = run.tables = run.covers = run.vmas = run.pointer_count = 0;
  run.show = run.closed = 0;
  for (vmem_path& path : run.path) path.show = 0;
  char nothing[64];
  const ssize_t n = ::read(iterator.get(), nothing, sizeof nothing);
  // EAGAIN is how the program ends a run (bpf_iter_run_prog() in kernel/bpf/bpf_iter.c).
  if (n < 0 && errno != EAGAIN) return failed(errno, "reading page tables", {});
  return {};
}

Result<void> BpfProgram::read(const Fd& iterator, VaRange range, bool continued) {
  vmem_run& run = *program_.run;
  run.mode = vmem_mode_walk;
  run.cursor = range.start.value;
  run.end = range.end.value;
  run.continued = continued ? 1 : 0;
  return read(iterator);
}

Result<void> BpfProgram::read_vmas(const Fd& iterator, VirtAddr from, bool continued) {
  vmem_run& run = *program_.run;
  run.mode = vmem_mode_vmas;
  run.cursor = from.value;
  run.continued = continued ? 1 : 0;
  return read(iterator);
}

Result<std::vector<std::uint64_t>> BpfProgram::read_pointers(const Fd& iterator) {
  vmem_run& run = *program_.run;
  run.mode = vmem_mode_pointers;
  run.continued = 0;
  if (auto read_it = read(iterator); !read_it) return std::unexpected(std::move(read_it.error()));
  return std::vector<std::uint64_t>(run.pointers, run.pointers + run.pointer_count);
}

Result<std::vector<std::uint64_t>> BpfProgram::read_vm_ops(const Fd& iterator, VirtAddr address) {
  vmem_run& run = *program_.run;
  run.mode = vmem_mode_vm_ops;
  run.continued = 0;
  run.cursor = address.value;
  // A run may end before it gets there, at one of very many VMAs.
  do {
    if (auto read_it = read(iterator); !read_it) return std::unexpected(std::move(read_it.error()));
  } while (run.ended == 0 && run.seen != 0);
  return std::vector<std::uint64_t>(run.pointers, run.pointers + run.pointer_count);
}

Result<std::uint64_t> BpfProgram::read_symbol(const Fd& iterator, std::uint64_t address) {
  vmem_run& run = *program_.run;
  run.mode = vmem_mode_symbol;
  run.continued = 0;
  run.cursor = address;
  if (auto read_it = read(iterator); !read_it) return std::unexpected(std::move(read_it.error()));
  if (run.pointer_count == 0) return fail(Errc::not_found, "reading a kernel symbol", {});
  return run.pointers[0];
}

}  // namespace vmem
