/* SPDX-License-Identifier: MIT */
/* The loaded program: what bpftool generates is C, and this is all of it that the rest of the
 * library sees. */
#ifndef VMEM_BPF_SKELETON_H
#define VMEM_BPF_SKELETON_H
/* C, whatever clang-tidy has to say about it as C++: NOLINTBEGIN */

#include <stdint.h>
#include <sys/types.h>

#include "bpf/protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

struct vmem_program {
  int fd;
  struct vmem_run* run;
  struct vmem_ram* ram;
  const uint64_t* tables; /* VMEM_TABLES * VMEM_ENTRIES */
  const struct vmem_record* records;
  const struct vmem_cover* covers;
  const struct vmem_vma* vmas;
  void* skeleton;
};

/* 0 or an errno. */
int vmem_program_load(struct vmem_program* program);
void vmem_program_unload(struct vmem_program* program);

enum vmem_filter {
  vmem_filter_task,  /* the task with this id */
  vmem_filter_group, /* all tasks of this process, one after the other */
};

/* A link that iterates over the VMAs of `pid` (in the caller's PID namespace); -1 with errno. */
int vmem_program_link(const struct vmem_program* program, pid_t pid, enum vmem_filter filter);
/* An iteration from the start; -1 with errno. */
int vmem_program_iterate(int link_fd);

#ifdef __cplusplus
}
#endif
/* NOLINTEND */
#endif
