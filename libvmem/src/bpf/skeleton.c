/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE /* syscall() */
#include "bpf/skeleton.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmem.lskel.h>

static const size_t tables_size = sizeof(uint64_t) * VMEM_ENTRIES * VMEM_TABLES;
static const size_t records_size = sizeof(struct vmem_record) * VMEM_RECORDS;
static const size_t covers_size = sizeof(struct vmem_cover) * VMEM_COVERS;
static const size_t vmas_size = sizeof(struct vmem_vma) * VMEM_VMAS;

/* Elements of an array map follow each other without gaps if their size is a multiple of 8. */
_Static_assert(sizeof(struct vmem_record) % 8 == 0 && sizeof(struct vmem_cover) % 8 == 0 &&
                   sizeof(struct vmem_vma) % 8 == 0,
               "gaps");

/* Maps an array for reading. Its descriptor is not needed any more then. */
static const void* map_array(struct bpf_map_desc* map, size_t size) {
  const void* const at = mmap(NULL, size, PROT_READ, MAP_SHARED, map->map_fd, 0);
  (void)skel_closenz(map->map_fd);
  map->map_fd = 0;
  return at == MAP_FAILED ? NULL : at;
}

static void unmap(const void* at, size_t size) {
  if (at != NULL) (void)munmap((void*)(uintptr_t)at, size);
}

int vmem_program_load(struct vmem_program* program) {
  memset(program, 0, sizeof *program);
  struct vmem_bpf* const skeleton = vmem_bpf__open();
  if (skeleton == NULL) return ENOMEM;
  /* The skeleton takes descriptor 0 for none. */
  const int stand_in = fcntl(STDIN_FILENO, F_GETFD) < 0 && errno == EBADF
                           ? open("/dev/null", O_RDONLY | O_CLOEXEC)
                           : -1;
  const int error = vmem_bpf__load(skeleton);
  if (stand_in >= 0) (void)close(stand_in);
  program->skeleton = skeleton;
  if (error != 0) {
    vmem_program_unload(program);
    return -error;
  }
  program->tables = map_array(&skeleton->maps.tables, tables_size);
  program->records = map_array(&skeleton->maps.records, records_size);
  program->covers = map_array(&skeleton->maps.covers, covers_size);
  program->vmas = map_array(&skeleton->maps.vmas, vmas_size);
  if (program->tables == NULL || program->records == NULL || program->covers == NULL ||
      program->vmas == NULL) {
    vmem_program_unload(program);
    return ENOMEM;
  }
  program->run = &skeleton->bss->run;
  program->ram = skeleton->bss->ram;
  program->fd = skeleton->progs.walk.prog_fd;
  return 0;
}

void vmem_program_unload(struct vmem_program* program) {
  unmap(program->tables, tables_size);
  unmap(program->records, records_size);
  unmap(program->covers, covers_size);
  unmap(program->vmas, vmas_size);
  vmem_bpf__destroy(program->skeleton);
  memset(program, 0, sizeof *program);
}

int vmem_program_link(const struct vmem_program* program, pid_t pid, enum vmem_filter filter) {
  union bpf_iter_link_info info;
  union bpf_attr attr;
  memset(&info, 0, sizeof info);
  memset(&attr, 0, sizeof attr);
  if (filter == vmem_filter_task)
    info.task.tid = (unsigned)pid;
  else
    info.task.pid = (unsigned)pid;
  attr.link_create.prog_fd = (unsigned)program->fd;
  attr.link_create.attach_type = BPF_TRACE_ITER;
  attr.link_create.iter_info = (uintptr_t)&info;
  attr.link_create.iter_info_len = sizeof info;
  return skel_sys_bpf(BPF_LINK_CREATE, &attr,
                      offsetofend(union bpf_attr, link_create.iter_info_len));
}

int vmem_program_iterate(int link_fd) {
  union bpf_attr attr;
  memset(&attr, 0, sizeof attr);
  attr.iter_create.link_fd = (unsigned)link_fd;
  return skel_sys_bpf(BPF_ITER_CREATE, &attr, offsetofend(union bpf_attr, iter_create.flags));
}
