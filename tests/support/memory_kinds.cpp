// SPDX-License-Identifier: MIT
// memory-kinds DIR [NAME...]: makes one mapping of every kind of memory that this machine has,
// says what a reader of page tables must find there, and waits until its stdin ends.
//
// DIR is an empty directory for its files. Without NAMEs everything is made except what needs
// the caller's preparations: `swap` (a swap area is on), `ksm` (ksmd runs), `many-vmas`.
// Output, tab separated:
//   map NAME CLASS KIND START END PAGES   addresses in hex; "-" is no expectation
//   skip NAME WHY                         this machine, or this user, cannot
//   ready
// PAGES: "FIRST+COUNT=STATE[:LEAF]", comma separated, in base pages from START; LEAF is 4K or
// 2M. Pages not named can be anything.
#include "support/memory_kinds.hpp"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

namespace memory_kinds {
namespace {

// --- Anonymous memory

void anon() {
  char* const at = map_anon(16);
  write_pages(at, 0, 4);
  write_pages(at, 8, 1);
  say("anon", "anonymous", "anon", at, 16 * page,
      "0+4=resident:4K,4+4=absent,8+1=resident:4K,9+7=absent");
}

/// Patterns that a reader meets in parts: more pieces than fit a buffer, and no two alike.
void sparse() {
  constexpr std::size_t pages = 1 << 18;
  char* const at = map_anon(pages);
  if (madvise(at, pages * page, MADV_NOHUGEPAGE) != 0) skip("MADV_NOHUGEPAGE");
  for (std::size_t i = 0; i < pages; i += 64) write_page(at + i * page);
  say("sparse", "anonymous", "anon", at, pages * page,
      "0+1=resident:4K,1+63=absent,64+1=resident:4K,262080+1=resident:4K,262081+63=absent");
  char* const stripes = map_anon(8192);
  for (std::size_t i = 0; i < 8192; i += 2) write_page(stripes + i * page);
  say("stripes", "anonymous", "anon", stripes, 8192 * page,
      "0+1=resident:4K,1+1=absent,8190+1=resident:4K,8191+1=absent");
  // Growing groups with growing gaps.
  constexpr std::size_t wide = 1 << 16;
  char* const groups = map_anon(wide);
  for (std::size_t at_page = 0, n = 1; at_page + n < wide; at_page += 3 * n + 200, ++n) {
    write_pages(groups, at_page, n);
  }
  say("groups", "anonymous", "anon", groups, wide * page, "0+1=resident:4K,1+202=absent");
}

void zero_page() {
  char* const at = map_anon(8);
  read_pages(at, 0, 4);
  say("zero-page", "anonymous", "anon", at, 8 * page, "0+4=resident:4K,4+4=absent");
}

void dev_zero() {
  const int fd = check(open("/dev/zero", O_RDWR | O_CLOEXEC), "/dev/zero");
  char* const at = map(8 * page, read_write, MAP_PRIVATE, fd);
  write_pages(at, 0, 4);
  say("dev-zero", "anonymous", "anon", at, 8 * page, "0+4=resident:4K,4+4=absent");
}

void heap() {
  char* const end = static_cast<char*>(sbrk(static_cast<intptr_t>(16 * page)));
  if (end == reinterpret_cast<char*>(-1)) skip("sbrk");
  std::memset(end, 1, 8 * page);
  if (!say_named("heap", "[heap]", "anonymous", "heap", "-")) throw Skip{"no [heap] in maps"};
}

void stack() {
  if (!say_named("stack", "[stack]", "anonymous", "stack", "-")) throw Skip{"no [stack] in maps"};
}

void* blocked(void* /*unused*/) {
  for (;;) pause();
}

void thread_stack() {
  constexpr std::size_t pages = 64;
  char* const at = map_anon(pages, read_write, MAP_PRIVATE | MAP_STACK);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstack(&attributes, at, pages * page);
  pthread_t thread{};
  if (pthread_create(&thread, &attributes, blocked, nullptr) != 0) skip("pthread_create");
  say("thread-stack", "anonymous", "stack", at, pages * page, "63+1=resident:4K");
}

void executable() {
  char* const at = map_anon(4, read_write | PROT_EXEC);
  write_pages(at, 0, 4);
  say("jit", "anonymous", "anon", at, 4 * page, all(4, "resident:4K"));
}

void locked() {
  char* const at = map_anon(4);
  if (mlock(at, 4 * page) != 0) skip("mlock");
  say("locked", "anonymous", "anon", at, 4 * page, all(4, "resident:4K"));
}

void droppable() {
  char* const at = map_anon(4, read_write, map_droppable);
  write_pages(at, 0, 4);
  say("droppable", "anonymous", "anon", at, 4 * page, "-");
}

void thp() {
  char* const at = huge_pages(2);
  say("thp", "anonymous", "anon", at, 2 * huge, all(1024, "resident:2M"));
}

void thp_then_absent() {
  char* const at = map_anon(3 * huge / page);
  if (madvise(at, 3 * huge, MADV_HUGEPAGE) != 0) skip("MADV_HUGEPAGE");
  write_page(at);
  write_page(at + 2 * huge);
  if (madvise(at, huge, madv_collapse) != 0) skip("MADV_COLLAPSE");
  if (madvise(at + 2 * huge, huge, madv_collapse) != 0) skip("MADV_COLLAPSE");
  say("thp-gap", "anonymous", "anon", at, 3 * huge,
      "0+512=resident:2M,512+512=absent,1024+512=resident:2M");
}

void thp_split() {
  char* const at = huge_pages(2);
  // One page given back: the kernel maps the rest of that huge page by 4 KiB entries.
  if (madvise(at + 7 * page, page, MADV_DONTNEED) != 0) skip("MADV_DONTNEED");
  // khugepaged would put it together again, also in a stopped process.
  if (madvise(at, 2 * huge, MADV_NOHUGEPAGE) != 0) skip("MADV_NOHUGEPAGE");
  say("thp-split", "anonymous", "anon", at, 2 * huge,
      "0+7=resident:4K,7+1=absent,8+504=resident:4K,512+512=resident:2M");
}

void thp_partial() {
  char* const at = huge_pages(1);
  // Half of it unmapped: the rest of the folio stays where it was, mapped by 4 KiB entries.
  if (munmap(at + huge / 2, huge / 2) != 0) skip("munmap");
  say("thp-partial", "anonymous", "anon", at, huge / 2, all(256, "resident:4K"));
}

void thp_zero() {
  char* const at = map_anon(huge / page);
  if (madvise(at, huge, MADV_HUGEPAGE) != 0) skip("MADV_HUGEPAGE");
  read_pages(at, 0, 1);
  say("thp-zero", "anonymous", "anon", at, huge, "0+1=resident");
}

void guard_and_reserve() {
  char* const small = map_anon(1, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
  say("prot-none-guard", "anonymous", "guard", small, page, "0+1=absent");
  constexpr std::size_t bytes = std::size_t{64} << 30;
  char* const large = map(bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  say("prot-none-reserve", "anonymous", "reserve", large, bytes, all(bytes / page, "absent"));
  char* const populated = map_anon(16);
  write_pages(populated, 0, 8);
  if (mprotect(populated, 16 * page, PROT_NONE) != 0) skip("mprotect");
  say("prot-none-populated", "anonymous", "guard", populated, 16 * page,
      "0+8=resident:4K,8+8=absent");
  char* const leaf = huge_pages(1);
  if (mprotect(leaf, huge, PROT_NONE) != 0) skip("mprotect");
  say("prot-none-thp", "anonymous", "reserve", leaf, huge, all(512, "resident:2M"));
}

void guard_pages() {
  char* const at = map_anon(16);
  write_pages(at, 0, 16);
  if (madvise(at + 4 * page, 4 * page, madv_guard_install) != 0) skip("MADV_GUARD_INSTALL");
  if (madvise(at + 15 * page, page, madv_guard_install) != 0) skip("MADV_GUARD_INSTALL");
  say("guard-pages", "anonymous", "anon", at, 16 * page,
      "0+4=resident:4K,4+4=guard,8+7=resident:4K,15+1=guard");
}

void guard_in_file() {
  const int fd = make_file(directory + "/guarded", 8);
  char* const at = map(8 * page, PROT_READ, MAP_PRIVATE, fd);
  if (madvise(at + 2 * page, 2 * page, madv_guard_install) != 0) skip("MADV_GUARD_INSTALL");
  say("guard-in-file", "file", "file", at, 8 * page, "2+2=guard");
}

// --- Shared memory without a file system

void shm_anon() {
  char* const at = map_anon(16, read_write, MAP_SHARED);
  write_pages(at, 0, 8);
  say("shm-anon", "anonymous", "shm", at, 16 * page, "0+8=resident:4K,8+8=absent");
}

void shm_posix() {
  const std::string name = "/vmem-memory-kinds-" + std::to_string(getpid());
  const int fd = check(shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600), "shm_open");
  const bool sized = ftruncate(fd, static_cast<off_t>(16 * page)) == 0;
  char* const named = map(8 * page, read_write, MAP_SHARED, fd);
  shm_unlink(name.c_str());
  if (!sized) skip("ftruncate");
  write_pages(named, 0, 4);
  say("shm-posix", "anonymous", "shm", named, 8 * page, "0+4=resident:4K,4+4=absent");
}

void memfd() {
  const int fd = check(memfd_create("a memfd", MFD_CLOEXEC), "memfd_create");
  if (ftruncate(fd, static_cast<off_t>(16 * page)) != 0) skip("ftruncate");
  char* const at = map(16 * page, read_write, MAP_SHARED, fd);
  write_pages(at, 0, 8);
  say("memfd", "anonymous", "memfd", at, 16 * page, "0+8=resident:4K,8+8=absent");
  char* const copy = map(16 * page, read_write, MAP_PRIVATE, fd);
  write_pages(copy, 0, 2);
  say("memfd-private", "anonymous", "memfd", copy, 16 * page, "0+2=resident:4K");
}

void sysv() {
  const int id = check(shmget(IPC_PRIVATE, 2 * huge, IPC_CREAT | 0600), "shmget");
  char* const at = attach_sysv(id);
  write_pages(at, 0, 8);
  say("sysv", "anonymous", "sysv", at, 2 * huge, "0+8=resident:4K,8+1016=absent");
}

// --- hugetlb: four huge pages asked for, two touched

void use_hugetlb(const char* name, char* at) {
  write_page(at);
  say(name, "hugepage", "hugetlb", at, 2 * huge, "0+512=resident:2M,512+512=absent");
}

void hugetlb_anon() {
  use_hugetlb("hugetlb-anon", map(2 * huge, read_write, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB));
}

void hugetlb_shared() {
  use_hugetlb("hugetlb-shared",
              map(2 * huge, read_write, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB));
}

void hugetlb_memfd() {
  const int fd = check(memfd_create("huge memfd", MFD_HUGETLB | MFD_CLOEXEC), "memfd_create");
  if (ftruncate(fd, static_cast<off_t>(2 * huge)) != 0) skip("ftruncate");
  use_hugetlb("hugetlb-memfd", map(2 * huge, read_write, MAP_SHARED, fd));
}

void hugetlb_sysv() {
  const int id = check(shmget(IPC_PRIVATE, 2 * huge, IPC_CREAT | SHM_HUGETLB | 0600), "shmget");
  use_hugetlb("hugetlb-sysv", attach_sysv(id));
}

void hugetlb_file() {
  const std::string path = mount_private("hugetlbfs") + "/pages";
  const int fd = check(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600), "open");
  use_hugetlb("hugetlb-file", map(2 * huge, read_write, MAP_SHARED, fd));
  use_hugetlb("hugetlb-file-private", map(2 * huge, read_write, MAP_PRIVATE, fd));
}

// --- Files

/// The page cache may give the pages of a clean file back at any time: it is kept mapped and
/// locked where that is allowed.
void say_file(const char* name, char* at, std::size_t pages, const char* kind = "file") {
  if (madvise(at, pages * page, madv_populate_read) != 0) skip("MADV_POPULATE_READ");
  (void)mlock(at, pages * page);
  say(name, "file", kind, at, pages * page, all(pages, "resident"));
}

void files() {
  const int fd = make_file(directory + "/plain", 16);
  say_file("file-private", map(8 * page, PROT_READ, MAP_PRIVATE, fd), 8);
  say_file("file-offset", map(8 * page, PROT_READ, MAP_PRIVATE, fd, 8 * page), 8);
  char* const shared = map(16 * page, read_write, MAP_SHARED, fd);
  write_pages(shared, 0, 16);
  say_file("file-shared", shared, 16);
  char* const copy = map(16 * page, read_write, MAP_PRIVATE, fd);
  write_pages(copy, 3, 2);
  say_file("file-cow", copy, 16);
  // A mapping may be longer than its file: what lies past the end is never there.
  char* const past = map(32 * page, PROT_READ, MAP_SHARED, fd);
  if (madvise(past, 16 * page, madv_populate_read) != 0) skip("MADV_POPULATE_READ");
  (void)mlock(past, 16 * page);
  say("file-past-end", "file", "file", past, 32 * page, "0+16=resident,16+16=absent");
}

void file_names() {
  for (const char* name : {"two words", "line\nbreak", "not (deleted)", "back\\slash", "\xff\x01",
                           " leading", "trailing ", "[heap]", "memfd:x"}) {
    const int fd = make_file(directory + "/" + name, 4);
    say_file("file-name", map(4 * page, PROT_READ, MAP_PRIVATE, fd), 4);
  }
}

void file_deleted() {
  const std::string path = directory + "/gone";
  const int fd = make_file(path, 4);
  char* const at = map(4 * page, PROT_READ, MAP_SHARED, fd);
  if (unlink(path.c_str()) != 0) skip("unlink");
  say_file("file-deleted", at, 4);
}

void file_tmpfs() {
  const int fd = make_file(mount_private("tmpfs") + "/file", 8);
  char* const at = map(8 * page, read_write, MAP_SHARED, fd);
  if (madvise(at, 8 * page, madv_populate_read) != 0) skip("MADV_POPULATE_READ");
  say("file-tmpfs", "file", "file", at, 8 * page, all(8, "resident:4K"));
}

// --- Memory that the kernel lends

void secretmem() {
  const int fd = check(syscall(SYS_memfd_secret, 0), "memfd_secret");
  if (ftruncate(fd, static_cast<off_t>(8 * page)) != 0) skip("ftruncate");
  char* const at = map(8 * page, read_write, MAP_SHARED, fd);
  write_pages(at, 0, 4);
  say("secretmem", "special", "secretmem", at, 8 * page, "0+4=resident:4K,4+4=absent");
}

void io_uring() {
  io_uring_params parameters{};
  const int fd = check(syscall(SYS_io_uring_setup, 64, &parameters), "io_uring_setup");
  const std::size_t rings =
      (parameters.cq_off.cqes + parameters.cq_entries * sizeof(io_uring_cqe) + page - 1) &
      ~(page - 1);
  const std::size_t entries =
      (parameters.sq_entries * sizeof(io_uring_sqe) + page - 1) & ~(page - 1);
  char* at = map_anywhere(rings, fd, IORING_OFF_SQ_RING);
  say("io-uring-rings", "special", "io_uring", at, rings, all(rings / page, "resident"));
  at = map_anywhere(entries, fd, IORING_OFF_SQES);
  say("io-uring-entries", "special", "io_uring", at, entries, all(entries / page, "resident"));
}

void packet() {
  const int fd = check(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0), "socket(AF_PACKET)");
  tpacket_req ring{};
  ring.tp_block_size = static_cast<unsigned>(4 * page);
  ring.tp_block_nr = 4;
  ring.tp_frame_size = 2048;
  ring.tp_frame_nr = ring.tp_block_size / ring.tp_frame_size * ring.tp_block_nr;
  if (setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &ring, sizeof ring) != 0) skip("PACKET_RX_RING");
  char* const at = map(16 * page, read_write, MAP_SHARED, fd);
  say("packet-ring", "special", "packet", at, 16 * page, all(16, "resident:4K"));
}

void xdp() {
  // linux/if_xdp.h, spelled out: XDP_RX_RING, 64 descriptors of 16 bytes at XDP_PGOFF_RX_RING.
  const int fd = check(socket(af_xdp, SOCK_RAW | SOCK_CLOEXEC, 0), "socket(AF_XDP)");
  const int entries = 64;
  if (setsockopt(fd, 283, 2, &entries, sizeof entries) != 0) skip("XDP_RX_RING");
  char* const at = map(page, read_write, MAP_SHARED | MAP_POPULATE, fd, 0);
  say("xdp-ring", "special", "unknown", at, page, "-");
}

void perf() {
  perf_event_attr attributes{};
  attributes.size = sizeof attributes;
  attributes.type = PERF_TYPE_SOFTWARE;
  attributes.config = PERF_COUNT_SW_CPU_CLOCK;
  attributes.sample_period = 1000000;
  attributes.disabled = 1;
  attributes.exclude_kernel = 1;
  const int fd = check(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, PERF_FLAG_FD_CLOEXEC),
                       "perf_event_open");
  char* const at = map(9 * page, read_write, MAP_SHARED, fd);
  read_pages(at, 0, 9);
  say("perf-ring", "special", "perf", at, 9 * page, "-");
}

/// linux/udmabuf.h, which older headers lack.
void dma_buf() {
  struct {
    std::uint32_t memfd, flags;
    std::uint64_t offset, size;
  } create{};
  const std::size_t bytes = 16 * page;
  const int memory =
      check(memfd_create("dma-buf", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
  check(ftruncate(memory, static_cast<off_t>(bytes)), "ftruncate");
  check(fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK), "F_SEAL_SHRINK");
  const int device = check(open("/dev/udmabuf", O_RDWR | O_CLOEXEC), "/dev/udmabuf");
  create.memfd = static_cast<std::uint32_t>(memory);
  create.size = bytes;
  const int buffer = check(ioctl(device, _IOW('u', 0x42, create), &create), "UDMABUF_CREATE");
  char* const at = map(bytes, read_write, MAP_SHARED, buffer);
  write_pages(at, 0, 16);
  say("dma-buf", "device", "dma-buf", at, bytes, "-");
}

int bpf_map(std::uint32_t type, std::uint32_t key, std::uint32_t value, std::uint32_t entries,
            std::uint32_t flags) {
  bpf_attr attributes{};
  attributes.map_type = type;
  attributes.key_size = key;
  attributes.value_size = value;
  attributes.max_entries = entries;
  attributes.map_flags = flags;
  return check(syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes), "BPF_MAP_CREATE");
}

void bpf_array() {
  const int fd =
      bpf_map(BPF_MAP_TYPE_ARRAY, 4, static_cast<std::uint32_t>(page), 16, BPF_F_MMAPABLE);
  char* const at = map(16 * page, read_write, MAP_SHARED, fd);
  write_pages(at, 0, 16);
  say("bpf-array", "special", "bpf", at, 16 * page, all(16, "resident:4K"));
}

void bpf_ringbuf() {
  const int fd = bpf_map(BPF_MAP_TYPE_RINGBUF, 0, 0, static_cast<std::uint32_t>(4 * page), 0);
  char* const at = map(page, read_write, MAP_SHARED, fd);
  say("bpf-ringbuf", "special", "bpf", at, page, all(1, "resident:4K"));
}

void aio() {
  aio_context_t context = 0;
  check(syscall(SYS_io_setup, 128, &context), "io_setup");
  // The context is the ring's address. Mapped at the first touch.
  read_pages(reinterpret_cast<char*>(context), 0, 1);  // NOLINT(performance-no-int-to-ptr)
  if (!say_named("aio-ring", "/[aio] (deleted)", "special", "aio", "0+1=resident:4K") &&
      !say_named("aio-ring", "/[aio]", "special", "aio", "0+1=resident:4K")) {
    throw Skip{"no /[aio] in maps"};
  }
}

void kernel_pages() {
  if (!say_named("vdso", "[vdso]", "special", "vdso", "-")) throw Skip{"no [vdso] in maps"};
  if (!say_named("vvar", "[vvar]", "special", "vvar", "-")) throw Skip{"no [vvar] in maps"};
  (void)say_named("vvar", "[vvar_vclock]", "special", "vvar", "-");
}

void vsyscall() {
  if (!say_named("vsyscall", "[vsyscall]", "special", "vsyscall", "0+1=unseen")) {
    throw Skip{"no [vsyscall] in maps"};
  }
}

// --- Sharing, userfaultfd, swap

/// Children that hold the same pages until this process ends.
void forked() {
  char* const shared = map_anon(8);
  write_pages(shared, 0, 8);
  char* const copied = map_anon(8);
  write_pages(copied, 0, 8);
  for (int i = 0; i < 3; ++i) {
    const pid_t child = fork();
    if (child < 0) skip("fork");
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      // What a parent that has already ended would have sent.
      if (getppid() == 1) _exit(0);
      for (;;) pause();
    }
  }
  write_pages(copied, 0, 4);
  say("forked", "anonymous", "anon", shared, 8 * page, all(8, "resident:4K"));
  say("copied-on-write", "anonymous", "anon", copied, 8 * page, all(8, "resident:4K"));
}

void userfault() {
  const int fd = check(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), "userfaultfd");
  constexpr std::uint64_t feature_wp_unpopulated = 1 << 13;
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | feature_wp_unpopulated;
  if (ioctl(fd, UFFDIO_API, &api) != 0) skip("UFFDIO_API");
  char* const at = map_anon(16);
  write_pages(at, 0, 8);
  uffdio_register area{};
  area.range = {reinterpret_cast<std::uintptr_t>(at), 16 * page};
  area.mode = UFFDIO_REGISTER_MODE_WP;
  if (ioctl(fd, UFFDIO_REGISTER, &area) != 0) skip("UFFDIO_REGISTER");
  uffdio_writeprotect protect{};
  protect.range = {reinterpret_cast<std::uintptr_t>(at + 4 * page), 8 * page};
  protect.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  if (ioctl(fd, UFFDIO_WRITEPROTECT, &protect) != 0) skip("UFFDIO_WRITEPROTECT");
  say("userfaultfd-wp", "anonymous", "anon", at, 16 * page,
      "0+8=resident:4K,8+4=special,12+4=absent");
}

void swapped() {
  char* const at = map_anon(64);
  write_pages(at, 0, 64);
  if (madvise(at + 16 * page, 32 * page, MADV_PAGEOUT) != 0) skip("MADV_PAGEOUT");
  say("swap", "anonymous", "anon", at, 64 * page, "-");
  char* const shared = map_anon(64, read_write, MAP_SHARED);
  write_pages(shared, 0, 64);
  if (madvise(shared, 64 * page, MADV_PAGEOUT) != 0) skip("MADV_PAGEOUT");
  say("swap-shm", "anonymous", "shm", shared, 64 * page, "-");
}

void merged() {
  char* const at = map_anon(16);
  std::memset(at, 0x5a, 16 * page);
  if (madvise(at, 16 * page, MADV_MERGEABLE) != 0) skip("MADV_MERGEABLE");
  say("ksm", "anonymous", "anon", at, 16 * page, all(16, "resident:4K"));
}

/// Alternately readable and not, so that no two merge.
void many_vmas() {
  constexpr std::size_t count = 60000;
  char* const at = map_anon(count, PROT_READ, MAP_PRIVATE | MAP_NORESERVE);
  for (std::size_t i = 0; i < count; i += 2) {
    if (mprotect(at + i * page, page, read_write) != 0) skip("mprotect");
    if (i % 4 == 0) write_page(at + i * page);
  }
  say("many-vmas", "anonymous", "anon", at, count * page, "0+1=resident:4K,1+3=absent");
}

struct Maker {
  const char* name;
  std::function<void()> make;
  bool on_request = false;  ///< needs the caller's preparations
};

const std::vector<Maker>& makers() {
  // fork first: what comes later is not to be shared with the children.
  static const std::vector<Maker> list = {
      {"forked", forked},
      {"anon", anon},
      {"sparse", sparse},
      {"zero-page", zero_page},
      {"dev-zero", dev_zero},
      {"heap", heap},
      {"stack", stack},
      {"thread-stack", thread_stack},
      {"jit", executable},
      {"locked", locked},
      {"droppable", droppable},
      {"thp", thp},
      {"thp-gap", thp_then_absent},
      {"thp-split", thp_split},
      {"thp-partial", thp_partial},
      {"thp-zero", thp_zero},
      {"prot-none", guard_and_reserve},
      {"guard-pages", guard_pages},
      {"guard-in-file", guard_in_file},
      {"shm-anon", shm_anon},
      {"shm-posix", shm_posix},
      {"memfd", memfd},
      {"sysv", sysv},
      {"hugetlb-anon", hugetlb_anon},
      {"hugetlb-shared", hugetlb_shared},
      {"hugetlb-memfd", hugetlb_memfd},
      {"hugetlb-sysv", hugetlb_sysv},
      {"hugetlb-file", hugetlb_file},
      {"files", files},
      {"file-names", file_names},
      {"file-deleted", file_deleted},
      {"file-tmpfs", file_tmpfs},
      {"secretmem", secretmem},
      {"io-uring", io_uring},
      {"packet-ring", packet},
      {"xdp-ring", xdp},
      {"perf-ring", perf},
      {"dma-buf", dma_buf},
      {"bpf-array", bpf_array},
      {"bpf-ringbuf", bpf_ringbuf},
      {"aio-ring", aio},
      {"vdso", kernel_pages},
      {"vsyscall", vsyscall},
      {"userfaultfd-wp", userfault},
      {"swap", swapped, true},
      {"ksm", merged, true},
      {"many-vmas", many_vmas, true},
  };
  return list;
}

}  // namespace
}  // namespace memory_kinds

int main(int argc, char** argv) {
  if (argc < 2) {
    (void)std::fprintf(stderr, "usage: memory-kinds DIR [NAME...]\n");
    return 2;
  }
  using namespace memory_kinds;
  // What was said is not lost with the process.
  (void)std::setvbuf(stdout, nullptr, _IOLBF, 0);
  directory = argv[1];
  const std::vector<std::string> wanted(argv + 2, argv + argc);
  for (const Maker& maker : makers()) {
    const bool named = std::find(wanted.begin(), wanted.end(), maker.name) != wanted.end();
    if (wanted.empty() ? maker.on_request : !named) continue;
    try {
      maker.make();
    } catch (const Skip& reason) {
      std::printf("skip\t%s\t%s\n", maker.name, reason.why.c_str());
    }
  }
  std::printf("ready\n");
  (void)std::fflush(stdout);
  char byte = 0;
  while (read(0, &byte, 1) > 0) {
  }
  return 0;
}
