// SPDX-License-Identifier: MIT
/// Every class and kind, as a table: a line as the kernel writes it, the facts, the answer.
#include <set>

#include "support/catch.hpp"
#include "support/recorded.hpp"
#include "vmem/maps.hpp"

using namespace vmem;
using namespace vmem::test;

namespace {

using enum VmaKind;
constexpr auto file_class = VmaClass::file;
constexpr auto anonymous = VmaClass::anonymous;
constexpr auto device = VmaClass::device;
constexpr auto hugepage = VmaClass::hugepage;
constexpr auto special = VmaClass::special;

struct Row {
  const char* perms;
  std::uint64_t pages;
  std::uint64_t inode;
  const char* path;
  VmaFacts facts;
  Classification expected;
};

VmaFacts on(const char* filesystem) {
  VmaFacts facts;
  facts.filesystem = filesystem;
  return facts;
}
VmaFacts flags(const char* codes) {
  VmaFacts facts;
  facts.flags = VmFlags(codes);
  return facts;
}
VmaFacts on(const char* filesystem, const char* codes) {
  VmaFacts facts;
  facts.filesystem = filesystem;
  facts.flags = VmFlags(codes);
  return facts;
}
VmaFacts node(const char* filesystem, bool is_node, const char* codes = nullptr) {
  VmaFacts facts;
  facts.filesystem = filesystem;
  facts.device_node = is_node;
  if (codes != nullptr) facts.flags = VmFlags(codes);
  return facts;
}
VmaFacts huge() {
  VmaFacts facts;
  facts.filesystem = "";
  facts.kernel_page_size = PageSize{2 << 20};
  return facts;
}
VmaFacts thread_stack(bool is) {
  VmaFacts facts;
  facts.thread_stack = is;
  return facts;
}
VmaFacts packet_socket(bool is) {
  VmaFacts facts;
  facts.packet_socket = is;
  return facts;
}
VmaFacts dax_mount() {
  VmaFacts facts;
  facts.filesystem = "ext4";
  facts.dax = true;
  return facts;
}

void check(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    Vma vma;
    vma.range = {{0x7f0000000000}, {0x7f0000000000 + row.pages * 4096}};
    vma.readable = row.perms[0] == 'r';
    vma.writable = row.perms[1] == 'w';
    vma.executable = row.perms[2] == 'x';
    vma.shared = row.perms[3] == 's';
    vma.inode = row.inode;
    vma.dev_minor = row.inode != 0 ? 1 : 0;
    vma.path = row.path;
    const Classification got = classify(vma, row.facts, PageSize{4096});
    INFO(row.perms << ' ' << row.path << " on " << row.facts.filesystem.value_or("?"));
    CHECK(to_string(got.vma_class) == to_string(row.expected.vma_class));
    CHECK(to_string(got.kind) == to_string(row.expected.kind));
  }
}

}  // namespace

TEST_CASE("anonymous memory") {
  check({
      {"rw-p", 33, 0, "[heap]", {}, {anonymous, heap}},
      {"rw-p", 33, 0, "[stack]", {}, {anonymous, stack}},
      {"rw-p", 33, 0, "[stack:4711]", {}, {anonymous, stack}},
      {"rw-p", 4, 0, "", {}, {anonymous, anon}},
      {"rwxp", 4, 0, "", {}, {anonymous, anon}},
      {"r--p", 4, 0, "", {}, {anonymous, anon}},
      {"rw-p", 4, 0, "[anon: dalvik-heap]", {}, {anonymous, anon}},
      {"rw-p", 4, 0, "[anon:]", {}, {anonymous, anon}},
      {"rw-p", 4, 0, "[anon:scudo:primary]", {}, {anonymous, anon}},
      {"rw-p", 4, 0, "[anon:libc_malloc]", {}, {anonymous, anon}},
      {"rw-s", 4, 0, "[anon_shmem:x]", {}, {anonymous, shm}},
      // Names that C libraries give to threads' stacks.
      {"rw-p", 256, 0, "[anon:stack_and_tls:1234]", {}, {anonymous, stack}},
      {"rw-p", 256, 0, "[anon:stack:1234]", {}, {anonymous, stack}},
      {"---p", 1, 0, "[anon:stack_and_tls:1234]", {}, {anonymous, guard}},
      {"---p", 3, 0, "[page size compat]", {}, {anonymous, guard}},
      {"r--p", 3, 0, "[page size compat]", {}, {special, unknown}},
      {"rw-p", 2048, 0, "", thread_stack(true), {anonymous, stack}},
      {"rw-p", 2048, 0, "", thread_stack(false), {anonymous, anon}},
      {"rw-p", 2048, 0, "[anon: stack]", thread_stack(true), {anonymous, stack}},
  });
}

TEST_CASE("memory without any permission is a guard or a reserve, by its size") {
  check({
      {"---p", 1, 0, "", {}, {anonymous, guard}},
      {"---p", 16, 0, "", {}, {anonymous, guard}},
      {"---p", 17, 0, "", {}, {anonymous, reserve}},
      {"---p", 1ULL << 32, 0, "", {}, {anonymous, reserve}},
      {"---p", 1ULL << 20, 0, "[anon: cage]", {}, {anonymous, reserve}},
      // A file's part without permissions is the file's.
      {"---p", 1, 7, "/usr/lib/libc.so.6", on("ext4"), {file_class, file}},
  });
}

TEST_CASE("memory of the kernel's own files") {
  check({
      {"rw-s", 4, 5, "/memfd:name (deleted)", on(""), {anonymous, memfd}},
      {"rw-p", 4, 5, "/memfd: (deleted)", on(""), {anonymous, memfd}},
      {"rw-s", 4, 5, "/memfd:name (deleted)", {}, {anonymous, memfd}},
      {"rw-s", 4, 5, "/SYSV0000002a (deleted)", on(""), {anonymous, sysv}},
      {"rw-s", 4, 5, "/dev/zero (deleted)", on(""), {anonymous, shm}},
      {"rw-s", 4, 5, "/secretmem (deleted)", on(""), {special, secretmem}},
      {"rw-s", 4, 5, "/[aio] (deleted)", on(""), {special, aio}},
      // ashmem puts a file of shmem in the place of the node.
      {"rw-s", 4, 5, "/dev/ashmem/region-1 (deleted)", on(""), {anonymous, shm}},
      {"rw-s", 4, 5, "/dev/ashmem (deleted)", {}, {anonymous, shm}},
      {"rw-s", 4, 5, "/dev/ashmem", node("devtmpfs", true), {device, unknown}},
      // Files of a memory file system below /dev, of which nothing is a driver's.
      {"r--s", 4, 5, "/dev/__properties__/u:object_r:x:s0", {}, {file_class, file}},
      {"r--s", 4, 5, "/dev/__properties__/u:object_r:x:s0", on("tmpfs"), {file_class, file}},
      {"rw-s", 4, 5, "/dev/x", on("tmpfs", "rd wr sh mr mw me ms"), {file_class, file}},
      {"rw-s", 4, 5, "/dev/x (deleted)", on("", "rd wr sh mr mw me ms"), {file_class, file}},
      {"rw-s", 4, 5, "/dev/x", on("tmpfs", "rd wr sh io pf"), {device, device_pfnmap}},
      {"rw-s", 4, 5, "/dev/x", on("tmpfs", "rd wr sh io"), {device, unknown}},
      {"rw-s", 4, 5, "/dev/x", on("tmpfs"), {device, unknown}},
      {"rw-s", 4, 5, "/dev/x", on("devtmpfs", "rd wr sh"), {device, unknown}},
      {"rw-s", 4, 5, "/dev/x", node("tmpfs", true, "rd wr sh"), {device, unknown}},
      {"rw-s", 4, 5, "/dev/shm/segment", on("tmpfs"), {anonymous, shm}},
      {"rw-s", 4, 5, "/dev/shm/segment (deleted)", on("tmpfs"), {anonymous, shm}},
  });
}

TEST_CASE("huge pages, however they are told") {
  check({
      {"rw-s", 1024, 5, "/dev/hugepages/x", on("hugetlbfs"), {hugepage, hugetlb}},
      {"rw-s", 1024, 5, "/mnt/huge/rtemap_0", on("hugetlbfs"), {hugepage, hugetlb}},
      {"rw-p", 1024, 5, "/anon_hugepage (deleted)", on(""), {hugepage, hugetlb}},
      {"rw-p", 1024, 5, "/anon_hugepage (deleted)", {}, {hugepage, hugetlb}},
      {"rw-s", 1024, 5, "/SYSV00000000 (deleted)", huge(), {hugepage, hugetlb}},
      {"rw-s", 1024, 5, "/memfd:x (deleted)", huge(), {hugepage, hugetlb}},
      {"rw-s", 1024, 5, "/SYSV00000000 (deleted)", on("", "rd wr sh ht"), {hugepage, hugetlb}},
      {"---p", 1024, 5, "/anon_hugepage (deleted)", on(""), {hugepage, hugetlb}},
  });
}

TEST_CASE("files") {
  check({
      {"r-xp", 40, 7, "/usr/bin/cat", on("ext4"), {file_class, file}},
      {"r-xp", 40, 7, "/usr/bin/cat", {}, {file_class, file}},
      {"rw-s", 40, 7, "/var/lib/db (deleted)", on("xfs"), {file_class, file}},
      {"rw-s", 40, 7, "/tmp/on tmpfs", on("tmpfs"), {file_class, file}},
      {"r--p", 40, 7, "/lib/overlay.so", on("overlay"), {file_class, file}},
      {"rw-s", 40, 7, "/pmem/x", dax_mount(), {file_class, dax}},
      {"rw-s", 40, 7, "/pmem/x", on("ext4", "rd wr sh mm hg"), {file_class, dax}},
      {"rw-s", 512, 7, "/dev/dax0.0", node("devtmpfs", true), {file_class, dax}},
      // Not every file below /dev is a device.
      {"rw-s", 40, 7, "/dev/.lock/file", node("devtmpfs", false), {file_class, file}},
  });
}

TEST_CASE("a name proves nothing: real files with the kernel's names") {
  check({
      {"rw-s", 4, 5, "/memfd:x", on("ext4"), {file_class, file}},
      {"rw-s", 4, 5, "/memfd:x (deleted)", on("ext4"), {file_class, file}},
      {"rw-s", 4, 5, "/SYSV0000002a (deleted)", on("tmpfs"), {file_class, file}},
      {"rw-s", 4, 5, "/secretmem", on("xfs"), {file_class, file}},
      {"rw-s", 4, 5, "/[aio]", on("btrfs"), {file_class, file}},
      {"rw-s", 4, 5, "/anon_hugepage", on("ext4"), {file_class, file}},
      {"rw-s", 4, 5, "/tmp/[heap]", on("ext4"), {file_class, file}},
      {"rw-s", 4, 5, "/tmp/socket:[5]", on("ext4"), {file_class, file}},
      {"rw-s", 4, 5, "/sysfs/resource0", on("ext4"), {file_class, file}},
      {"rw-s", 4, 5, "/sys/resource0", on("ext4"), {file_class, file}},
      {"rw-s", 4, 5, "/devices/uio0", on("ext4"), {file_class, file}},
      {"rw-p", 4, 5, "/memfdx", on("ext4"), {file_class, file}},
  });
}

TEST_CASE("/dev/zero: shared memory if shared, anonymous if private") {
  check({
      {"rw-p", 4, 5, "/dev/zero", node("devtmpfs", true), {anonymous, anon}},
      {"rw-p", 4, 5, "/dev/zero", {}, {anonymous, anon}},
      {"rw-s", 4, 5, "/dev/zero (deleted)", on(""), {anonymous, shm}},
  });
}

TEST_CASE("devices") {
  check({
      {"rw-s",
       1,
       5,
       "/sys/devices/pci0000:00/0000:00:03.0/resource0",
       on("sysfs"),
       {device, pci_bar}},
      {"rw-s",
       1,
       5,
       "/sys/devices/pci0000:00/0000:00:03.0/resource2_wc",
       on("sysfs"),
       {device, pci_bar}},
      {"rw-s", 1, 5, "/proc/bus/pci/00/03.0", on("proc"), {device, pci_bar}},
      // Live, the file can be looked at: it is a regular one.
      {"rw-s",
       1,
       5,
       "/sys/devices/pci0000:00/0000:00:03.0/resource2_wc",
       node("sysfs", false),
       {device, pci_bar}},
      {"rw-s", 1, 5, "/proc/bus/pci/00/03.0", node("proc", false), {device, pci_bar}},
      {"rw-s", 1, 5, "/root/proc/bus/resource2", node("ext4", false), {VmaClass::file, file}},
      {"rw-s", 1, 5, "/dev/uio0", node("devtmpfs", true), {device, uio}},
      {"rw-s", 1, 5, "/dev/vfio/12", node("devtmpfs", true), {device, vfio}},
      {"rw-s", 1, 5, "anon_inode:[vfio-device]", {}, {device, vfio}},
      {"rw-s", 1, 5, "/dev/mem", node("devtmpfs", true), {device, devmem}},
      {"rw-s", 1, 5, "/dev/dri/renderD128", node("devtmpfs", true), {device, gpu}},
      {"rw-s", 1, 5, "/dev/nvidia0", node("devtmpfs", true), {device, gpu}},
      {"rw-s", 1, 5, "/dev/kgsl-3d0", node("tmpfs", true), {device, gpu}},
      {"rw-s", 1, 5, "/dev/mali0", node("tmpfs", true), {device, gpu}},
      {"rw-s", 1, 5, "/dev/kfd", node("devtmpfs", true), {device, gpu}},
      {"rw-s", 1, 5, "/dev/nvidia-uvm", node("devtmpfs", true), {device, gpu}},
      {"rw-s", 1, 5, "anon_inode:i915.gem", {}, {device, gpu}},
      {"rw-s", 1, 5, "/dev/infiniband/uverbs0", node("devtmpfs", true), {device, rdma}},
      {"rw-s", 1, 5, "/dev/infiniband/uverbs0", {}, {device, rdma}},
      {"rw-s", 1, 5, "/dmabuf:", on(""), {device, dma_buf}},
      {"rw-s", 1, 5, "anon_inode:dmabuf", {}, {device, dma_buf}},
      {"rw-s",
       1,
       5,
       "/dev/mem_mmap1",
       node("devtmpfs", true, "rd wr sh pf io"),
       {device, device_pfnmap}},
      {"rw-s", 1, 5, "/dev/mixed", node("devtmpfs", true, "rd wr sh mm"), {device, device_mixed}},
      {"rw-s", 1, 5, "/tmp/node", node("ext4", true, "rd wr sh pf io"), {device, device_pfnmap}},
      {"rw-s", 1, 0, "", flags("rd wr sh pf io"), {device, device_pfnmap}},
      // Flags unknown: a device, of no known kind.
      {"rw-s", 1, 5, "/dev/something", node("devtmpfs", true), {device, unknown}},
      {"rw-s", 1, 5, "/dev/something", {}, {device, unknown}},
  });
}

TEST_CASE("what the kernel makes for a process") {
  check({
      {"r-xp", 2, 0, "[vdso]", {}, {special, vdso}},
      {"r--p", 4, 0, "[vvar]", {}, {special, vvar}},
      {"r--p", 2, 0, "[vvar_vclock]", {}, {special, vvar}},
      {"--xp", 1, 0, "[vsyscall]", {}, {special, vsyscall}},
      {"rw-s", 4, 5, "anon_inode:[io_uring]", {}, {special, io_uring}},
      {"rw-s", 4, 5, "anon_inode:[perf_event]", {}, {special, perf}},
      {"rw-s", 4, 5, "anon_inode:bpf-map", {}, {special, bpf}},
      {"rw-s", 4, 5, "socket:[777]", packet_socket(true), {special, packet}},
      {"rw-s", 4, 5, "socket:[777]", packet_socket(false), {special, unknown}},
      {"rw-s", 4, 5, "socket:[777]", {}, {special, unknown}},
      {"rw-s", 4, 5, "anon_inode:[new thing]", {}, {special, unknown}},
      {"--xp", 1, 0, "[uprobes]", {}, {special, uprobes}},
      {"r-xp", 1, 0, "[vectors]", {}, {special, vectors}},
      {"r-xp", 1, 0, "[sigpage]", {}, {special, vectors}},
      {"rw-s", 3, 5, "anon_inode:kvm-vcpu:0", {}, {special, kvm}},
      {"rw-s", 3, 5, "anon_inode:[kvm-gmem]", {}, {special, kvm}},
      {"rw-s",
       4,
       5,
       "/sys/kernel/tracing/per_cpu/cpu0/trace_pipe_raw",
       on("tracefs"),
       {special, unknown}},
  });
}

TEST_CASE("every class and kind has a name of its own") {
  std::set<std::string_view> names;
  for (int kind = 0; kind <= static_cast<int>(unknown); ++kind)
    names.insert(to_string(static_cast<VmaKind>(kind)));
  CHECK(names == std::set<std::string_view>{
                     "heap",  "stack",   "anon",    "shm",           "memfd",        "sysv",
                     "file",  "dax",     "hugetlb", "device-pfnmap", "device-mixed", "pci-bar",
                     "uio",   "vfio",    "devmem",  "gpu",           "dma-buf",      "io_uring",
                     "perf",  "packet",  "bpf",     "aio",           "secretmem",    "vdso",
                     "kvm",   "rdma",    "uprobes", "vectors",       "vvar",         "vsyscall",
                     "guard", "reserve", "unknown"});
  names.clear();
  for (const VmaClass c : {file_class, anonymous, device, hugepage, special})
    names.insert(to_string(c));
  CHECK(names == std::set<std::string_view>{"file", "anonymous", "device", "hugepage", "special"});
}

TEST_CASE("the inspector gathers the facts that classify needs") {
  SystemModel system = one_process(
      "7f0000000000-7f0000800000 rw-p 00000000 00:00 0 \n"
      "7f0001000000-7f0001800000 rw-p 00000000 00:00 0 \n"
      "7f0002000000-7f0002004000 rw-s 00000000 00:08 4242 socket:[4242]\n"
      "7f0003000000-7f0003004000 rw-s 00000000 00:08 4243 socket:[4243]\n"
      "7f0004000000-7f0004004000 rw-s 00000000 fe:00 90 /memfd:x (deleted)\n"
      "7f0005000000-7f0005004000 rw-s 00000000 00:01 91 /memfd:x (deleted)\n"
      "7f0006000000-7f0006200000 rw-s 00000000 00:0f 92 /SYSV00000007 (deleted)\n"
      "7f0007000000-7f0007001000 rw-s 00000000 00:05 93 /dev/window\n"
      "7f0008000000-7f0008001000 rw-s 00000000 fd:03 94 /pmem/log\n");
  auto& files = system.processes[0].files;
  files["mountinfo"] =
      "27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
      "24 27 0:5 / /dev rw shared:2 master:3 - devtmpfs devtmpfs rw\n"
      "31 27 253:3 / /pmem rw - xfs /dev/pmem0 rw,attr2,dax=always\n";
  files["net/packet"] =
      "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n0000000000000000 3      3  "
      "  0003   2     1 0      0      4242 \n";
  files["task/1/syscall"] = "0 0x0 0x1 0x2 0x3 0x4 0x5 0x7ffd00000000 0x7f00deadbeef\n";
  files["task/2/syscall"] = "-1 0x7f00017ff000 0x0\n";
  files["task/3/syscall"] = "running\n";
  files["smaps"] =
      "7f0006000000-7f0006200000 rw-s 00000000 00:0f 92 /SYSV00000007 (deleted)\nKernelPageSize:   "
      "  2048 kB\nVmFlags: rd wr sh ht\n"
      "7f0007000000-7f0007001000 rw-s 00000000 00:05 93 /dev/window\nKernelPageSize:        4 "
      "kB\nVmFlags: rd wr sh pf io\n";
  const Recorded tree(system);
  const Process process = tree.process(1);
  const auto vmas = read_vmas(process);
  REQUIRE(vmas);
  VmaInspector inspector(process);
  const VmaKind expected[] = {anon,  stack,   packet,        unknown, file,
                              memfd, hugetlb, device_pfnmap, dax};
  REQUIRE(vmas->size() == std::size(expected));
  for (std::size_t i = 0; i < vmas->size(); ++i) {
    CAPTURE(i, vmas->at(i).path);
    CHECK(to_string(inspector.classify(vmas->at(i)).kind) == to_string(expected[i]));
  }
}
