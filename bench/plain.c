/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "plain.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { batch = 8192 };

int plain_pagemap(int fd, uint64_t start, uint64_t end, uint64_t page_size, struct plain_sum* sum) {
  uint64_t entries[batch];
  const struct plain_sum none = {0, 0, 0};
  *sum = none;
  for (uint64_t page = start / page_size, last = end / page_size; page < last;) {
    const uint64_t want = last - page < batch ? last - page : batch;
    errno = 0;
    const ssize_t got = pread(fd, entries, want * 8, (off_t)(page * 8));
    if (got < 8) return -1;
    const uint64_t count = (uint64_t)got / 8;
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t entry = entries[i];
      if (entry >> 63) {
        ++sum->present;
        sum->pfns += entry & ((UINT64_C(1) << 55) - 1);
      } else if (entry >> 62) {
        ++sum->swapped;
      }
    }
    page += count;
  }
  return 0;
}

int64_t plain_read_all(int fd) {
  static char buffer[65536];
  int64_t total = 0;
  for (;;) {
    const ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0) return -1;
    if (got == 0) return total;
    total += got;
  }
}

int plain_frames(const int* fds, size_t files, const uint64_t* pfns, size_t count, uint64_t* sums) {
  for (size_t file = 0; file < files; ++file) {
    sums[file] = 0;
    for (size_t i = 0; i < count; ++i) {
      uint64_t value = 0;
      if (pread(fds[file], &value, sizeof value, (off_t)(pfns[i] * 8)) != sizeof value) return -1;
      sums[file] += value;
    }
  }
  return 0;
}

uint64_t plain_lookup(const char* pagemap_path, uint64_t address, uint64_t page_size) {
  uint64_t entry = 0;
  const int fd = open(pagemap_path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  if (pread(fd, &entry, sizeof entry, (off_t)(address / page_size * 8)) != sizeof entry) entry = 0;
  close(fd);
  return entry;
}
