/* SPDX-License-Identifier: MIT */
/* The part of infiniband/verbs.h that the tests need: there need be no libibverbs to build them. */
#ifndef VMEM_TEST_VERBS_H
#define VMEM_TEST_VERBS_H

#include <stddef.h>
#include <stdint.h>

struct ibv_mr {
  void *context, *pd, *addr;
  size_t length;
  uint32_t handle, lkey, rkey;
};
struct ibv_mr_1_0 {
  void *context, *pd;
  uint32_t lkey, rkey;
  struct ibv_mr* real_mr;
};

struct ibv_mr* ibv_reg_mr_iova(void* pd, void* addr, size_t length, uint64_t iova, int access);
struct ibv_mr* ibv_reg_mr_iova2(void* pd, void* addr, size_t length, uint64_t iova,
                                unsigned access);
struct ibv_mr* ibv_reg_dmabuf_mr(void* pd, uint64_t offset, size_t length, uint64_t iova, int fd,
                                 int access);
int ibv_rereg_mr(struct ibv_mr* mr, int flags, void* pd, void* addr, size_t length, int access);
int ibv_fork_init(void);
struct ibv_mr* reg_mr_1_1(void* pd, void* addr, size_t length, int access);
struct ibv_mr_1_0* reg_mr_1_0(void* pd, void* addr, size_t length, int access);
int dereg_mr_1_1(struct ibv_mr* mr);
int dereg_mr_1_0(struct ibv_mr_1_0* old);

#endif
