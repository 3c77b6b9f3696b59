/* SPDX-License-Identifier: MIT */
/* The yardstick: what anyone would write in C over the same files. Knows nothing of libvmem. */
#ifndef VMEM_BENCH_PLAIN_H
#define VMEM_BENCH_PLAIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a reader saw. Two readers that agree in all three saw the same frames. */
struct plain_sum {
  uint64_t present; /* pages */
  uint64_t swapped; /* pages */
  uint64_t pfns;    /* sum of the PFNs of present pages, modulo 2^64 */
};

/* Reads every entry of [start, end) by preads of 64 KiB. 0, or -1 with errno (0: the file ended
 * early). */
int plain_pagemap(int fd, uint64_t start, uint64_t end, uint64_t page_size, struct plain_sum* sum);

/* Reads a file from its current offset to its end. Returns the bytes, or -1. */
int64_t plain_read_all(int fd);

/* One pread for each frame and file (kpageflags and its like). sums[i]: of the values of fds[i]. 0
 * or -1. */
int plain_frames(const int* fds, size_t files, const uint64_t* pfns, size_t count, uint64_t* sums);

/* One address: opens pagemap and reads one entry. The entry, or 0. */
uint64_t plain_lookup(const char* pagemap_path, uint64_t address, uint64_t page_size);

#ifdef __cplusplus
}
#endif
#endif
