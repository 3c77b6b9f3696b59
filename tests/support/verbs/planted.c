/* SPDX-License-Identifier: MIT */
/*
 * planted [memlock]: makes buffers, some of which no device can be given, prints "buffer NAME VA
 * BYTES ACCESS" (VA in hexadecimal, ACCESS rw or ro) for each and "ready"; after a line of input it
 * registers them with the first RDMA device and prints "result NAME ERRNO", then "done", and waits
 * for the end of its input. With memlock, it does so as nobody with a limit of 64 KiB.
 *
 * libibverbs is opened at run time, so that building takes neither it nor its headers.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { page = 4096, reads = 0, writes = 1 /* IBV_ACCESS_LOCAL_WRITE */ };

struct buffer {
  const char* name;
  void* at;
  size_t bytes;
  int access;
};
static struct buffer buffers[16];
static int count;

static void fail(const char* what) {
  printf("failed %s: %s\n", what, strerror(errno));
  exit(1);
}

static void add(const char* name, void* at, size_t bytes, int access) {
  if (at == MAP_FAILED) fail(name);
  buffers[count++] = (struct buffer){name, at, bytes, access};
}

static void* memory(size_t bytes, int protection) {
  return mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int memfd(size_t bytes) {
  const int fd = memfd_create("planted", MFD_CLOEXEC);

  if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0) fail("memfd");
  return fd;
}

static void plant(void) {
  const int both = PROT_READ | PROT_WRITE;
  const int mem = open("/dev/mem", O_RDWR | O_CLOEXEC | O_SYNC);
  char* hole = memory(4 * page, both);

  add("anonymous", memory(4 * page, both), 4 * page, writes);
  add("memfd", mmap(NULL, 4 * page, both, MAP_SHARED, memfd(4 * page), 0), 4 * page, writes);
  add("pfnmap", mmap(NULL, 4 * page, both, MAP_SHARED, mem, 0x90000000), 4 * page, writes);
  add("no-access", memory(4 * page, PROT_NONE), 4 * page, writes);
  munmap(hole + page, page);
  add("hole", hole, 4 * page, writes);
  add("read-only", memory(4 * page, PROT_READ), 4 * page, writes);
  add("read-only-read", memory(4 * page, PROT_READ), 4 * page, reads);
  add("shared-read-only-read", mmap(NULL, 4 * page, PROT_READ, MAP_SHARED, memfd(4 * page), 0),
      4 * page, reads);
  add("short-file", mmap(NULL, 4 * page, both, MAP_SHARED, memfd(2 * page), 0), 4 * page, writes);
  add("short-file-private", mmap(NULL, 4 * page, both, MAP_PRIVATE, memfd(page + 1), 0), 4 * page,
      writes);
}

typedef void** device_list_fn(int*);
typedef void* pointer_fn(void*);
typedef void* reg_mr_fn(void*, void*, size_t, int);

static void* function(void* library, const char* name) {
  void* const found = dlsym(library, name);

  if (found == NULL) fail(name);
  return found;
}

int main(int argc, char** argv) {
  void* const library = dlopen("libibverbs.so.1", RTLD_NOW);
  device_list_fn* list;
  pointer_fn *open_device, *alloc_pd;
  reg_mr_fn* reg_mr;
  void *address, **devices, *context, *pd;
  char line[64];
  int i, found = 0;

  if (library == NULL) fail("libibverbs");
  /* Not by a cast: ISO C knows none from objects to functions. */
  address = function(library, "ibv_get_device_list"), memcpy(&list, &address, sizeof(list));
  address = function(library, "ibv_open_device"), memcpy(&open_device, &address, sizeof(address));
  address = function(library, "ibv_alloc_pd"), memcpy(&alloc_pd, &address, sizeof(address));
  address = function(library, "ibv_reg_mr"), memcpy(&reg_mr, &address, sizeof(address));
  devices = list(&found);
  if (devices == NULL || found == 0) fail("device list");
  if ((context = open_device(devices[0])) == NULL || (pd = alloc_pd(context)) == NULL)
    fail("device");

  if (argc > 1 && strcmp(argv[1], "memlock") == 0) {
    const struct rlimit limit = {16 * page, 16 * page};

    add("within-limit", memory(16 * page, PROT_READ | PROT_WRITE), 16 * page, writes);
    add("over-limit", memory(17 * page, PROT_READ | PROT_WRITE), 17 * page, writes);
    if (setrlimit(RLIMIT_MEMLOCK, &limit) != 0 || setresgid(65534, 65534, 65534) != 0 ||
        setresuid(65534, 65534, 65534) != 0) {
      fail("nobody");
    }
  } else {
    plant();
  }
  for (i = 0; i < count; ++i)
    printf("buffer %s %lx %zu %s\n", buffers[i].name, (unsigned long)buffers[i].at,
           buffers[i].bytes, buffers[i].access == writes ? "rw" : "ro");
  puts("ready");
  fflush(stdout);
  if (fgets(line, sizeof(line), stdin) == NULL) return 1;
  for (i = 0; i < count; ++i) {
    errno = 0;
    void* const mr = reg_mr(pd, buffers[i].at, buffers[i].bytes, buffers[i].access);

    printf("result %s %d\n", buffers[i].name, mr != NULL ? 0 : errno);
    /* Each alone is held against the limit. */
    if (mr != NULL) {
      int (*dereg_mr)(void*);

      address = function(library, "ibv_dereg_mr"), memcpy(&dereg_mr, &address, sizeof(address));
      dereg_mr(mr);
    }
  }
  puts("done");
  fflush(stdout);
  while (fgets(line, sizeof(line), stdin) != NULL) {
  }
  return 0;
}
