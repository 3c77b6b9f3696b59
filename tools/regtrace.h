/* SPDX-License-Identifier: MIT */
/*
 * The log of `regaudit trace`: a header and records of one size, only ever appended to. The traced
 * processes map it shared and write to it without a system call; it outlives fork(2), and execve(2)
 * opens it again by the path in the environment.
 *
 * A slot is taken by adding 1 to `next`, filled, and becomes valid when `op` is written, last. A
 * reader takes what is valid; a slot without `op` is one that is being written, or whose writer
 * died in the middle.
 */
#ifndef VMEM_REGTRACE_H
#define VMEM_REGTRACE_H

#include <stdint.h>

#define REGTRACE_ENVIRONMENT "VMEM_REGTRACE"
#define REGTRACE_MEMFD "regaudit-trace"
#define REGTRACE_MAGIC "vmregtr1"
#define REGTRACE_CAPACITY (UINT64_C(1) << 20)

// NOLINTBEGIN: C, in the kernel's spelling
struct regtrace_header {
  char magic[8];
  uint32_t record_bytes;
  uint32_t reserved;
  uint64_t capacity; /* in records */
  uint64_t next;     /* slots taken; may pass the capacity: the rest is lost */
  uint64_t padding[4];
};

enum regtrace_op {
  regtrace_start = 1, /* a program begins, or a child of fork(2): nothing of the PID's holds */
  regtrace_register = 2,
  regtrace_deregister = 3, /* by `id`; noted first, since the `id` is free for others afterwards */
  regtrace_failed = 4, /* to register; `error` is errno */
  regtrace_fork_init = 5, /* ibv_fork_init() succeeded */
  regtrace_dmabuf = 6, /* as register; `address` is an offset into the dma-buf */
  regtrace_kept = 7, /* the deregistration of `id` failed: it goes on */
};

struct regtrace_record {
  uint32_t op; /* regtrace_op */
  int32_t pid; /* in the process's own PID namespace */
  uint64_t address;
  uint64_t length;
  uint64_t iova;
  uint32_t lkey, rkey;
  uint32_t access; /* IBV_ACCESS_* */
  int32_t error;
  uint64_t time_ns; /* CLOCK_MONOTONIC */
  uint64_t id; /* of the registration within the process (its struct ibv_mr) */
};

// NOLINTEND

#endif
