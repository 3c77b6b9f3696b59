/* SPDX-License-Identifier: MIT */
/* vmem-bench-plain PID START END: the plain loop as a process of its own. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "plain.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: vmem-bench-plain PID START END (hexadecimal addresses)\n");
    return 2;
  }
  char path[64];
  snprintf(path, sizeof path, "/proc/%ld/pagemap", strtol(argv[1], NULL, 10));
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct plain_sum sum;
  if (fd < 0 || plain_pagemap(fd, strtoull(argv[2], NULL, 16), strtoull(argv[3], NULL, 16),
                              (uint64_t)sysconf(_SC_PAGESIZE), &sum) != 0) {
    perror(path);
    return 2;
  }
  printf("present %" PRIu64 " swapped %" PRIu64 " pfns %" PRIx64 "\n", sum.present, sum.swapped,
         sum.pfns);
  return 0;
}
