/* SPDX-License-Identifier: MIT */
/*
 * registrar MODE: registers memory in one way or another, prints "mr VA LENGTH LKEY" (hexadecimal)
 * for each registration that it still has, "ready", and waits for the end of its input.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "verbs.h"

__asm__(".symver reg_mr_1_1, ibv_reg_mr@IBVERBS_1.1");
__asm__(".symver reg_mr_1_0, ibv_reg_mr@IBVERBS_1.0");
__asm__(".symver dereg_mr_1_1, ibv_dereg_mr@IBVERBS_1.1");
__asm__(".symver dereg_mr_1_0, ibv_dereg_mr@IBVERBS_1.0");

enum { page = 4096, write_access = 1 };

static char* memory(size_t bytes) {
  char* map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

  if (map == MAP_FAILED) exit(3);
  memset(map, 1, bytes);
  madvise(map, bytes, MADV_DONTFORK);
  return map;
}

static void tell(const void* addr, size_t length, uint32_t lkey) {
  printf("mr %lx %zx %x\n", (unsigned long)addr, length, lkey);
}

static void wait_for_end(void) {
  char c;

  puts("ready");
  fflush(stdout);
  while (read(0, &c, 1) > 0) {
  }
}

static void each_way(void) {
  char* at = memory(64 * page);
  struct ibv_mr* mr;
  struct ibv_mr_1_0* old;

  if (ibv_fork_init() != 0) exit(4);
  mr = reg_mr_1_1(NULL, at, page, write_access);
  tell(at, page, mr->lkey);
  mr = ibv_reg_mr_iova(NULL, at + 2 * page, 2 * page, 0x1000, write_access);
  tell(at + 2 * page, 2 * page, mr->lkey);
  mr = ibv_reg_mr_iova2(NULL, at + 5 * page, 100, 0x2000, 0);
  tell(at + 5 * page, 100, mr->lkey);
  old = reg_mr_1_0(NULL, at + 7 * page, page, write_access);
  tell(at + 7 * page, page, old->lkey);
  dereg_mr_1_0(reg_mr_1_0(NULL, at, page, write_access));
  dereg_mr_1_1(reg_mr_1_1(NULL, at + 9 * page, page, write_access));
  mr = reg_mr_1_1(NULL, at + 11 * page, page, write_access);
  mr->handle = 1; /* in use: the deregistration fails, and it goes on */
  if (dereg_mr_1_1(mr) != EBUSY) exit(5);
  tell(at + 11 * page, page, mr->lkey);
  mr = reg_mr_1_1(NULL, at + 13 * page, page, write_access);
  ibv_rereg_mr(mr, 1, NULL, at + 15 * page, 2 * page, write_access);
  tell(at + 15 * page, 2 * page, mr->lkey);
  errno = 0;
  if (reg_mr_1_1(NULL, at + 20 * page, 0, write_access) != NULL || errno != EINVAL) exit(6);
  if (ibv_reg_dmabuf_mr(NULL, 0, page, 0, 1, 0) == NULL) exit(7);
  errno = 123; /* a call that succeeds leaves errno alone */
  mr = reg_mr_1_1(NULL, at + 22 * page, page, write_access);
  if (errno != 123) exit(8);
  tell(at + 22 * page, page, mr->lkey);
}

static void* churn(void* memory_of_thread) {
  char* at = memory_of_thread;

  for (int i = 0; i < 2000; ++i) {
    struct ibv_mr* mr = reg_mr_1_1(NULL, at, page, write_access);

    if (dereg_mr_1_1(mr) != 0) exit(9);
  }
  struct ibv_mr* mr = reg_mr_1_1(NULL, at, 3 * page, write_access);

  flockfile(stdout);
  tell(at, 3 * page, mr->lkey);
  funlockfile(stdout);
  return NULL;
}

static void threads(void) {
  pthread_t all[8];
  char* at = memory(8 * 4 * page);

  for (int i = 0; i < 8; ++i) {
    if (pthread_create(&all[i], NULL, churn, at + i * 4 * page) != 0) exit(10);
  }
  for (int i = 0; i < 8; ++i) pthread_join(all[i], NULL);
}

/* The mean cost of a registration in nanoseconds, with what is noted of it. */
static void cost(void) {
  enum { calls = 200000 };
  struct timespec start, end;

  clock_gettime(CLOCK_MONOTONIC, &start);
  for (int i = 0; i < calls; ++i) reg_mr_1_1(NULL, &start, 1, write_access);
  clock_gettime(CLOCK_MONOTONIC, &end);
  printf("%.0f\n",
         ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec)) /
             (double)calls);
  exit(0);
}

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "each-way";
  char* at;

  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (strcmp(mode, "each-way") == 0) {
    each_way();
  } else if (strcmp(mode, "threads") == 0) {
    threads();
  } else if (strcmp(mode, "cost") == 0) {
    cost();
  } else if (strcmp(mode, "exec") == 0) {
    /* What it registers here is gone with the program. */
    reg_mr_1_1(NULL, memory(page), page, write_access);
    execl("/proc/self/exe", argv[0], "each-way", (char*)NULL);
    exit(11);
  } else if (strcmp(mode, "fork") == 0) {
    /* The child has its own, the parent keeps its own. */
    at = memory(8 * page);
    tell(at, page, reg_mr_1_1(NULL, at, page, write_access)->lkey);
    fflush(stdout);
    int ready[2];
    char c = 0;

    if (pipe(ready) != 0) exit(13);
    const pid_t child = fork();

    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      at = memory(page);
      reg_mr_1_1(NULL, at, page, write_access);
      printf("child %d %lx\n", getpid(), (unsigned long)at);
      fflush(stdout);
      if (write(ready[1], &c, 1) != 1) _exit(1);
      for (;;) pause();
    }
    if (read(ready[0], &c, 1) != 1) exit(14);
    wait_for_end();
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
  } else {
    return 12;
  }
  wait_for_end();
  return 0;
}
