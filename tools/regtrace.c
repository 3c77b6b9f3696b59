/* SPDX-License-Identifier: MIT */
/*
 * What `regaudit trace` preloads: it stands before libibverbs, calls it, and notes what was
 * registered. A call gains an atomic addition and 64 bytes of shared memory: no system call but
 * getpid(), no lock, no allocation; errno and results are the library's.
 */
#define _GNU_SOURCE
#include "regtrace.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The public heads of libibverbs' structures (infiniband/verbs.h; 1.0: compat-1_0.c). */
struct mr {
  void *context, *pd, *addr;
  size_t length;
  uint32_t handle, lkey, rkey;
};
struct mr_1_0 {
  void *context, *pd;
  uint32_t lkey, rkey;
};

static struct regtrace_header* header;
static struct regtrace_record* records;
static uint64_t capacity;
/* libibverbs calls some of its own functions through its symbols: only the outermost call counts.
 */
static _Thread_local int depth __attribute__((tls_model("initial-exec")));

static struct regtrace_record* slot(void) {
  const uint64_t taken =
      atomic_fetch_add_explicit((_Atomic uint64_t*)&header->next, 1, memory_order_relaxed);
  return taken < capacity ? &records[taken] : NULL;
}

static void note(uint32_t op, struct regtrace_record what) {
  const int saved = errno;
  struct timespec now;
  struct regtrace_record* to;

  if (header == NULL || (to = slot()) == NULL) return;
  clock_gettime(CLOCK_MONOTONIC, &now);
  what.op = 0;
  what.pid = getpid();
  what.time_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
  *to = what;
  atomic_store_explicit((_Atomic uint32_t*)&to->op, op, memory_order_release);
  errno = saved;
}

static void note_start(void) { note(regtrace_start, (struct regtrace_record){0}); }

__attribute__((constructor)) static void open_log(void) {
  const char* path = getenv(REGTRACE_ENVIRONMENT);
  const int saved = errno;
  struct stat info;
  int fd;

  if (path == NULL || (fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)) < 0) goto out;
  if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0 &&
      (size_t)info.st_size >= sizeof(*header)) {
    const size_t bytes = (size_t)info.st_size;
    void* map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (map != MAP_FAILED) {
      struct regtrace_header* found = map;
      const uint64_t fit = (bytes - sizeof(*found)) / sizeof(struct regtrace_record);

      if (memcmp(found->magic, REGTRACE_MAGIC, sizeof(found->magic)) == 0 &&
          found->record_bytes == sizeof(struct regtrace_record)) {
        capacity = found->capacity < fit ? found->capacity : fit;
        records = (struct regtrace_record*)(found + 1);
        header = found;
        note_start();
        pthread_atfork(NULL, NULL, note_start);
      } else {
        munmap(map, bytes);
      }
    }
  }
  close(fd);
out:
  errno = saved;
}

/*
 * The next definition. A program may have loaded libibverbs by dlopen(3) without making its symbols
 * global: then it is not behind this library, but it is there.
 */
static void* next_of(_Atomic(void*)* cache, const char* name, const char* version) {
  void* found = atomic_load_explicit(cache, memory_order_acquire);
  void* library;

  if (found != NULL) return found;
  found = dlvsym(RTLD_NEXT, name, version);
  if (found == NULL && (library = dlopen("libibverbs.so.1", RTLD_LAZY)) != NULL)
    found = dlvsym(library, name, version);
  atomic_store_explicit(cache, found, memory_order_release);
  return found;
}

/* Declares `next`, the function behind; without one, the wrapper returns `otherwise`. */
#define NEXT(type, name, version, otherwise)            \
  static _Atomic(void*) cache;                          \
  void* const address = next_of(&cache, name, version); \
  type next;                                            \
  if (address == NULL) {                                \
    errno = EOPNOTSUPP;                                 \
    return otherwise;                                   \
  }                                                     \
  memcpy(&next, &address, sizeof(next))

static void note_result(const struct mr* mr, uint32_t op, uint64_t address, uint64_t length,
                        uint64_t iova, unsigned access) {
  struct regtrace_record what = {
      .address = address, .length = length, .iova = iova, .access = access};

  if (depth != 0) return;
  if (mr == NULL) {
    what.error = errno;
    note(regtrace_failed, what);
    return;
  }
  what.lkey = mr->lkey;
  what.rkey = mr->rkey;
  what.id = (uintptr_t)mr;
  note(op, what);
}

typedef struct mr* reg_mr_fn(void*, void*, size_t, int);
typedef struct mr* reg_mr_iova_fn(void*, void*, size_t, uint64_t, int);
typedef struct mr* reg_mr_iova2_fn(void*, void*, size_t, uint64_t, unsigned);
typedef struct mr* reg_dmabuf_fn(void*, uint64_t, size_t, uint64_t, int, int);
typedef struct mr_1_0* reg_mr_1_0_fn(void*, void*, size_t, int);
typedef int dereg_fn(void*);
typedef int rereg_fn(struct mr*, int, void*, void*, size_t, int);
typedef int fork_init_fn(void);

struct mr* trace_reg_mr(void* pd, void* addr, size_t length, int access);
struct mr* trace_reg_mr(void* pd, void* addr, size_t length, int access) {
  NEXT(reg_mr_fn*, "ibv_reg_mr", "IBVERBS_1.1", NULL);
  ++depth;
  struct mr* const mr = next(pd, addr, length, access);
  --depth;
  note_result(mr, regtrace_register, (uintptr_t)addr, length, (uintptr_t)addr, (unsigned)access);
  return mr;
}

struct mr_1_0* trace_reg_mr_1_0(void* pd, void* addr, size_t length, int access);
struct mr_1_0* trace_reg_mr_1_0(void* pd, void* addr, size_t length, int access) {
  NEXT(reg_mr_1_0_fn*, "ibv_reg_mr", "IBVERBS_1.0", NULL);
  ++depth;
  struct mr_1_0* const old = next(pd, addr, length, access);
  --depth;
  if (old == NULL) {
    note_result(NULL, regtrace_register, (uintptr_t)addr, length, (uintptr_t)addr,
                (unsigned)access);
  } else if (depth == 0) {
    note(regtrace_register, (struct regtrace_record){.address = (uintptr_t)addr,
                                                     .length = length,
                                                     .iova = (uintptr_t)addr,
                                                     .lkey = old->lkey,
                                                     .rkey = old->rkey,
                                                     .access = (unsigned)access,
                                                     .id = (uintptr_t)old});
  }
  return old;
}

struct mr* trace_reg_mr_iova(void* pd, void* addr, size_t length, uint64_t iova, int access);
struct mr* trace_reg_mr_iova(void* pd, void* addr, size_t length, uint64_t iova, int access) {
  NEXT(reg_mr_iova_fn*, "ibv_reg_mr_iova", "IBVERBS_1.7", NULL);
  ++depth;
  struct mr* const mr = next(pd, addr, length, iova, access);
  --depth;
  note_result(mr, regtrace_register, (uintptr_t)addr, length, iova, (unsigned)access);
  return mr;
}

struct mr* trace_reg_mr_iova2(void* pd, void* addr, size_t length, uint64_t iova, unsigned access);
struct mr* trace_reg_mr_iova2(void* pd, void* addr, size_t length, uint64_t iova, unsigned access) {
  NEXT(reg_mr_iova2_fn*, "ibv_reg_mr_iova2", "IBVERBS_1.8", NULL);
  ++depth;
  struct mr* const mr = next(pd, addr, length, iova, access);
  --depth;
  note_result(mr, regtrace_register, (uintptr_t)addr, length, iova, access);
  return mr;
}

struct mr* trace_reg_dmabuf_mr(void* pd, uint64_t offset, size_t length, uint64_t iova, int fd,
                               int access);
struct mr* trace_reg_dmabuf_mr(void* pd, uint64_t offset, size_t length, uint64_t iova, int fd,
                               int access) {
  NEXT(reg_dmabuf_fn*, "ibv_reg_dmabuf_mr", "IBVERBS_1.12", NULL);
  ++depth;
  struct mr* const mr = next(pd, offset, length, iova, fd, access);
  --depth;
  note_result(mr, regtrace_dmabuf, offset, length, iova, (unsigned)access);
  return mr;
}

static int dereg(dereg_fn* next, void* mr) {
  const struct regtrace_record what = {.id = (uintptr_t)mr};

  if (depth == 0) note(regtrace_deregister, what);
  ++depth;
  const int result = next(mr);
  --depth;
  if (depth == 0 && result != 0) note(regtrace_kept, what);
  return result;
}

int trace_dereg_mr(void* mr);
int trace_dereg_mr(void* mr) {
  NEXT(dereg_fn*, "ibv_dereg_mr", "IBVERBS_1.1", EOPNOTSUPP);
  return dereg(next, mr);
}

int trace_dereg_mr_1_0(void* mr);
int trace_dereg_mr_1_0(void* mr) {
  NEXT(dereg_fn*, "ibv_dereg_mr", "IBVERBS_1.0", EOPNOTSUPP);
  return dereg(next, mr);
}

int trace_rereg_mr(struct mr* mr, int flags, void* pd, void* addr, size_t length, int access);
int trace_rereg_mr(struct mr* mr, int flags, void* pd, void* addr, size_t length, int access) {
  NEXT(rereg_fn*, "ibv_rereg_mr", "IBVERBS_1.1", EOPNOTSUPP);
  ++depth;
  const int result = next(mr, flags, pd, addr, length, access);
  --depth;
  /* IBV_REREG_MR_CHANGE_TRANSLATION: the registration lies elsewhere now. */
  if (depth == 0 && result == 0 && (flags & 1) != 0) {
    note(regtrace_deregister, (struct regtrace_record){.id = (uintptr_t)mr});
    note_result(mr, regtrace_register, (uintptr_t)addr, length, (uintptr_t)addr, (unsigned)access);
  }
  return result;
}

int trace_fork_init(void);
int trace_fork_init(void) {
  NEXT(fork_init_fn*, "ibv_fork_init", "IBVERBS_1.1", EOPNOTSUPP);
  const int result = next();
  if (result == 0) note(regtrace_fork_init, (struct regtrace_record){0});
  return result;
}

/* As libibverbs exports them: a program bound to 1.0 gets the 1.0 functions. */
__asm__(".symver trace_reg_mr, ibv_reg_mr@@IBVERBS_1.1");
__asm__(".symver trace_reg_mr_1_0, ibv_reg_mr@IBVERBS_1.0");
__asm__(".symver trace_reg_mr_iova, ibv_reg_mr_iova@@IBVERBS_1.7");
__asm__(".symver trace_reg_mr_iova2, ibv_reg_mr_iova2@@IBVERBS_1.8");
__asm__(".symver trace_reg_dmabuf_mr, ibv_reg_dmabuf_mr@@IBVERBS_1.12");
__asm__(".symver trace_dereg_mr, ibv_dereg_mr@@IBVERBS_1.1");
__asm__(".symver trace_dereg_mr_1_0, ibv_dereg_mr@IBVERBS_1.0");
__asm__(".symver trace_rereg_mr, ibv_rereg_mr@@IBVERBS_1.1");
__asm__(".symver trace_fork_init, ibv_fork_init@@IBVERBS_1.1");
