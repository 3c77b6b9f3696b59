// SPDX-License-Identifier: MIT
/// What a VMA is: a table over what its line and the known facts say. The order of the
/// tests matters and is the order of certainty: hugetlb, names that only the kernel
/// gives, kernel-internal files, devices, files, anonymous memory.
#include <array>

#include "device_paths.hpp"
#include "vmem/maps.hpp"

namespace vmem {
namespace {

using enum VmaKind;

struct NameRule {
  std::string_view prefix;
  VmaKind kind;
};

/// Names in brackets of VMAs without a file, and of files that no path leads to.
/// Sources: get_vma_name() in fs/proc/task_mmu.c, anon_inode_getfile() callers.
constexpr auto kernel_names = std::to_array<NameRule>({
    {"[heap]", heap},
    {"[stack", stack},  // also "[stack:TID]" (before 4.5)
    // Android's C library, and others after it: [anon:stack_and_tls:TID].
    {"[anon:stack", stack},
    {"[anon:", anon},
    {"[anon_shmem:", shm},
    {"[vdso]", vdso},
    {"[vvar", vvar},  // also "[vvar_vclock]" (6.13)
    {"[vsyscall]", vsyscall},
    {"[uprobes]", uprobes},
    {"[vectors]", vectors},  // with [sigpage]: 32-bit arm
    {"[sigpage]", vectors},
    {"anon_inode:[io_uring]", io_uring},
    {"anon_inode:[perf_event]", perf},
    {"anon_inode:bpf", bpf},
    {"anon_inode:[vfio", vfio},
    {"anon_inode:dmabuf", dma_buf},
    {"anon_inode:kvm", kvm},  // kvm-vcpu:0, kvm-vm
    {"anon_inode:[kvm", kvm},  // [kvm-gmem]
    {"anon_inode:i915.gem", gpu},
    {"anon_inode:[i915", gpu},
});

/// Files on the kernel's own mounts. A real file may have such a path: see on_real_mount.
constexpr auto internal_names = std::to_array<NameRule>({
    {"/memfd:", memfd},
    {"/SYSV", sysv},
    {"/dev/zero (deleted)", shm},
    // The driver's node is never mapped itself: ashmem_mmap() puts a file of shmem in its place.
    {"/dev/ashmem", shm},
    {"/[aio]", aio},
    {"/secretmem", secretmem},
    {"/dmabuf:", dma_buf},
    {"/i915", gpu},
    {"/drm mm object", gpu},
});

const NameRule* match(const auto& rules, std::string_view name) {
  for (const NameRule& rule : rules) {
    if (name.starts_with(rule.prefix)) return &rule;
  }
  return nullptr;
}

VmaClass class_of(VmaKind kind) {
  switch (kind) {
    case heap:
    case stack:
    case anon:
    case shm:
    case memfd:
    case sysv:
    case guard:
    case reserve:
      return VmaClass::anonymous;
    case file:
    case dax:
      return VmaClass::file;
    case hugetlb:
      return VmaClass::hugepage;
    case device_pfnmap:
    case device_mixed:
    case pci_bar:
    case uio:
    case vfio:
    case devmem:
    case gpu:
    case dma_buf:
    case rdma:
      return VmaClass::device;
    default:
      return VmaClass::special;
  }
}

Classification of(VmaKind kind) { return {class_of(kind), kind}; }

bool has_flag(const VmaFacts& facts, std::string_view code) {
  return facts.flags && facts.flags->has(code);
}

bool is_pfnmap(const VmaFacts& facts) { return facts.pfnmap || has_flag(facts, "pf"); }

/// Whether a path below /dev leads to memory: the file is none of a device file system, and nothing
/// of the VMA is a driver's.
bool is_memory_below_dev(const Vma& vma, const VmaFacts& facts) {
  return vma.path.starts_with("/dev/") && facts.filesystem == "tmpfs" && facts.flags &&
         !facts.device_node && !has_flag(facts, "io") && !is_pfnmap(facts) &&
         !has_flag(facts, "mm");
}

/// PROT_NONE memory of nobody's file: a guard when small, else address space held back.
/// The kernel does not record the purpose; glibc, the JVM and Go use at most 16 pages
/// for a guard.
VmaKind inaccessible(const Vma& vma, PageSize page_size) {
  return vma.range.bytes() <= 16 * page_size.bytes() ? guard : reserve;
}

Classification anonymous(const Vma& vma, const VmaFacts& facts, PageSize page_size) {
  if (!vma.readable && !vma.writable && !vma.executable) return of(inaccessible(vma, page_size));
  return of(facts.thread_stack.value_or(false) ? stack : anon);
}

Classification device(const Vma& vma, const VmaFacts& facts) {
  switch (device_path(vma.path)) {
    case DevicePath::pci:
      return of(pci_bar);
    case DevicePath::uio:
      return of(uio);
    case DevicePath::vfio:
      return of(vfio);
    case DevicePath::mem:
      return of(devmem);
    case DevicePath::gpu:
      return of(gpu);
    case DevicePath::rdma:
      return of(rdma);
    case DevicePath::dax:
      return of(dax);
    case DevicePath::other:
    case DevicePath::none:
      break;
  }
  if (is_pfnmap(facts)) return of(device_pfnmap);
  if (has_flag(facts, "mm")) return of(device_mixed);
  return {VmaClass::device, unknown};
}

}  // namespace

Classification classify(const Vma& vma, const VmaFacts& facts, PageSize page_size) {
  const std::string_view name = vma.path;
  // Names of unnamed mounts are believed unless the device number is a mount's that
  // somebody made: then "/memfd:x" is a file in a root directory.
  const bool on_real_mount = facts.filesystem && !facts.filesystem->empty();
  const bool larger_pages =
      facts.kernel_page_size && facts.kernel_page_size->bytes() > page_size.bytes();
  const bool device_dax = device_path(name) == DevicePath::dax;

  if (facts.filesystem == "hugetlbfs" || has_flag(facts, "ht") || (larger_pages && !device_dax) ||
      (name.starts_with("/anon_hugepage") && !on_real_mount)) {
    return of(hugetlb);
  }

  if (const NameRule* rule = match(kernel_names, name)) {
    if (rule->kind == anon || name.starts_with("[anon:")) {
      const Classification answer = anonymous(vma, facts, page_size);
      return answer.kind == anon ? of(rule->kind) : answer;
    }
    return of(rule->kind);
  }
  if (name.starts_with("socket:["))
    return of(facts.packet_socket.value_or(false) ? packet : unknown);
  // Android fills up pages of 16 KiB where a file's part ends within one.
  if (name == "[page size compat]" && !vma.readable && !vma.writable && !vma.executable)
    return of(guard);
  if (name.starts_with('[') || name.starts_with("anon_inode:")) return of(unknown);

  if (!on_real_mount) {
    if (const NameRule* rule = match(internal_names, name)) return of(rule->kind);
  }

  if (vma.inode == 0 && name.empty()) {
    // Drivers may map without a file; VM_PFNMAP is then the only sign.
    if (is_pfnmap(facts)) return of(device_pfnmap);
    return anonymous(vma, facts, page_size);
  }

  // A private mapping of /dev/zero is anonymous memory (drivers/char/mem.c, mmap_zero()).
  if (name == "/dev/zero" && !vma.shared) return anonymous(vma, facts, page_size);

  const bool in_dev_shm = name.starts_with("/dev/shm/");
  if (in_dev_shm && (!facts.filesystem || facts.filesystem == "tmpfs") &&
      !facts.device_node.value_or(false)) {
    return of(shm);
  }
  // A BAR's file in sysfs is a regular one: of it only the path and the filesystem tell.
  const bool bar = device_path(name) == DevicePath::pci && looks_like_device(vma, facts);
  if (bar || facts.device_node.value_or(looks_like_device(vma, facts)) || is_pfnmap(facts)) {
    if (!is_memory_below_dev(vma, facts)) return device(vma, facts);
    return of(file);
  }
  if (facts.filesystem == "tracefs" || facts.filesystem == "debugfs" ||
      facts.filesystem == "proc" || facts.filesystem == "sysfs") {
    return of(unknown);
  }
  // Pages of a regular file that are not page cache: direct access to persistent memory.
  if (facts.dax || has_flag(facts, "mm")) return of(dax);
  return of(file);
}

std::string_view to_string(VmaClass c) {
  switch (c) {
    case VmaClass::file:
      return "file";
    case VmaClass::anonymous:
      return "anonymous";
    case VmaClass::device:
      return "device";
    case VmaClass::hugepage:
      return "hugepage";
    case VmaClass::special:
      return "special";
  }
  return "special";
}

std::string_view to_string(VmaKind k) {
  switch (k) {
    case heap:
      return "heap";
    case stack:
      return "stack";
    case anon:
      return "anon";
    case shm:
      return "shm";
    case memfd:
      return "memfd";
    case sysv:
      return "sysv";
    case file:
      return "file";
    case dax:
      return "dax";
    case hugetlb:
      return "hugetlb";
    case device_pfnmap:
      return "device-pfnmap";
    case device_mixed:
      return "device-mixed";
    case pci_bar:
      return "pci-bar";
    case uio:
      return "uio";
    case vfio:
      return "vfio";
    case devmem:
      return "devmem";
    case gpu:
      return "gpu";
    case dma_buf:
      return "dma-buf";
    case io_uring:
      return "io_uring";
    case perf:
      return "perf";
    case packet:
      return "packet";
    case bpf:
      return "bpf";
    case aio:
      return "aio";
    case secretmem:
      return "secretmem";
    case kvm:
      return "kvm";
    case rdma:
      return "rdma";
    case uprobes:
      return "uprobes";
    case vectors:
      return "vectors";
    case vdso:
      return "vdso";
    case vvar:
      return "vvar";
    case vsyscall:
      return "vsyscall";
    case guard:
      return "guard";
    case reserve:
      return "reserve";
    case unknown:
      return "unknown";
  }
  return "unknown";
}

}  // namespace vmem
