/* SPDX-License-Identifier: MIT */
/* Stands in for libibverbs.so.1: its symbols and versions, and no device. What it was told it
 * keeps in the structures that callers see. A length of 0 is refused, as the kernel does. */
#include "verbs.h"

#include <errno.h>
#include <stdlib.h>

static _Atomic uint32_t keys = 0x100;

static struct ibv_mr* make(void* pd, void* addr, size_t length) {
  struct ibv_mr* mr;

  if (length == 0) {
    errno = EINVAL;
    return NULL;
  }
  if ((mr = malloc(sizeof(*mr))) == NULL) return NULL;
  *mr = (struct ibv_mr){.pd = pd, .addr = addr, .length = length};
  mr->lkey = mr->rkey = ++keys;
  return mr;
}

struct ibv_mr* ibv_reg_mr_iova2(void* pd, void* addr, size_t length, uint64_t iova,
                                unsigned access) {
  (void)iova;
  (void)access;
  return make(pd, addr, length);
}

struct ibv_mr* ibv_reg_mr_iova(void* pd, void* addr, size_t length, uint64_t iova, int access) {
  return ibv_reg_mr_iova2(pd, addr, length, iova, (unsigned)access);
}

/* Through the symbol, as rdma-core does: a recorder sees both calls. */
struct ibv_mr* reg_mr_1_1(void* pd, void* addr, size_t length, int access) {
  return ibv_reg_mr_iova2(pd, addr, length, (uintptr_t)addr, (unsigned)access);
}

struct ibv_mr* ibv_reg_dmabuf_mr(void* pd, uint64_t offset, size_t length, uint64_t iova, int fd,
                                 int access) {
  (void)offset;
  (void)iova;
  (void)fd;
  (void)access;
  return make(pd, NULL, length);
}

int dereg_mr_1_1(struct ibv_mr* mr) {
  if (mr->handle != 0) return EBUSY; /* the caller marked it as in use */
  free(mr);
  return 0;
}

struct ibv_mr_1_0* reg_mr_1_0(void* pd, void* addr, size_t length, int access) {
  struct ibv_mr_1_0* old = malloc(sizeof(*old));

  if (old == NULL) return NULL;
  *old = (struct ibv_mr_1_0){.pd = pd, .real_mr = reg_mr_1_1(pd, addr, length, access)};
  old->lkey = old->rkey = old->real_mr->lkey;
  return old;
}

int dereg_mr_1_0(struct ibv_mr_1_0* old) {
  free(old->real_mr);
  free(old);
  return 0;
}

int ibv_rereg_mr(struct ibv_mr* mr, int flags, void* pd, void* addr, size_t length, int access) {
  (void)pd;
  (void)access;
  if ((flags & 1) != 0) mr->addr = addr, mr->length = length;
  return 0;
}

int ibv_fork_init(void) { return 0; }

__asm__(".symver reg_mr_1_1, ibv_reg_mr@@IBVERBS_1.1");
__asm__(".symver reg_mr_1_0, ibv_reg_mr@IBVERBS_1.0");
__asm__(".symver dereg_mr_1_1, ibv_dereg_mr@@IBVERBS_1.1");
__asm__(".symver dereg_mr_1_0, ibv_dereg_mr@IBVERBS_1.0");
