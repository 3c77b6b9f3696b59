/* SPDX-License-Identifier: MIT */
/*
 * plain-pagemap PID [START-END...]: what /proc/PID/pagemap says, entry by entry.
 *
 * The oracle of the live tests: it shares no code with the library, knows no shortcut (no
 * PAGEMAP_SCAN, no huge leaves, no threads) and reads every entry of every VMA. It does not
 * know VM_PFNMAP: what such a VMA holds is printed `absent`, as pagemap shows it.
 *
 * Output, addresses and frame numbers in hex, counts in decimal, one record a line:
 *   vma START END PERMS OFFSET DEV INODE NAME...      the line of maps; NAME may be missing
 *   run START PAGES STATE VALUE TYPE BITS             pages of that VMA, in order, no gaps
 * STATE VALUE TYPE
 *   resident  frame number of the first page, one more for each further page
 *   hidden    0: in memory, frame number not shown (it reads 0)
 *   swapped   swap offset of the first page, likewise; TYPE is the swap type
 *   guard     0
 *   special   the entry's swap offset; TYPE tells what it is
 *   absent    0
 *   eof       0: pagemap ends before this page ([vsyscall])
 * BITS: 1 soft-dirty, 2 exclusive, 4 uffd-wp, 8 file: entry bits 55, 56, 57, 61.
 * With ranges, only the pages inside one of them are read; `vma` lines without any are left out.
 * Ends with "end" when everything was read; exit status 1 if not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ENTRIES = 1 << 16 };

static uint64_t entries[ENTRIES];
static uint64_t page_bytes;

enum state { ABSENT, RESIDENT, HIDDEN, SWAPPED, GUARD, SPECIAL, END_OF_FILE };
static const char* const state_names[] = {"absent", "resident", "hidden", "swapped",
                                          "guard",  "special",  "eof"};

struct page {
  enum state state;
  uint64_t value;
  unsigned type;
  unsigned bits;
};

static int bit(uint64_t entry, int number) { return (int)((entry >> number) & 1); }

static struct page decode(uint64_t entry) {
  struct page page = {ABSENT, 0, 0, 0};
  uint64_t low55 = entry & 0x7fffffffffffffULL;

  page.bits =
      (unsigned)(bit(entry, 55) + 2 * bit(entry, 56) + 4 * bit(entry, 57) + 8 * bit(entry, 61));
  if (bit(entry, 63)) {
    page.state = low55 == 0 ? HIDDEN : RESIDENT;
    page.value = low55;
  } else if (bit(entry, 58)) {
    page.state = GUARD;
  } else if (bit(entry, 62)) {
    page.type = (unsigned)(low55 & 31);
    page.value = low55 >> 5;
    /* Linux has 32 swap types and keeps the last up to 9 for entries that are no swap. 31 is
     * a marker; its value 4 is a guard page, also where bit 58 does not say so (before 6.15). */
    if (page.type == 31 && page.value == 4) {
      page.state = GUARD;
      page.type = 0;
      page.value = 0;
    } else {
      page.state = page.type < 23 ? SWAPPED : SPECIAL;
    }
  }
  return page;
}

static struct page run;
static uint64_t run_start, run_pages;

static void flush_run(void) {
  if (run_pages != 0)
    printf("run %" PRIx64 " %" PRIu64 " %s %" PRIx64 " %u %u\n", run_start, run_pages,
           state_names[run.state], run.value, run.type, run.bits);
  run_pages = 0;
}

static void add_page(uint64_t address, struct page page) {
  int counts_up = page.state == RESIDENT || page.state == SWAPPED;
  uint64_t expected = run.value + (counts_up ? run_pages : 0);

  if (run_pages != 0 && page.state == run.state && page.type == run.type && page.bits == run.bits &&
      page.value == expected) {
    run_pages++;
    return;
  }
  flush_run();
  run = page;
  run_start = address;
  run_pages = 1;
}

/* 0: all of it was read. */
static int read_pages(int pagemap, uint64_t start, uint64_t end) {
  uint64_t address = start;

  while (address < end) {
    uint64_t wanted = (end - address) / page_bytes;
    if (wanted > ENTRIES) wanted = ENTRIES;

    ssize_t got = pread(pagemap, entries, wanted * 8, (off_t)(address / page_bytes * 8));
    if (got < 0 || got % 8 != 0) {
      fprintf(stderr, "plain-pagemap: reading pagemap at %" PRIx64 ": %s\n", address,
              got < 0 ? strerror(errno) : "half an entry");
      return 1;
    }
    if (got == 0) {
      struct page eof = {END_OF_FILE, 0, 0, 0};
      add_page(address, eof);
      address += page_bytes;
      continue;
    }
    for (ssize_t i = 0; i < got / 8; i++) {
      add_page(address, decode(entries[i]));
      address += page_bytes;
    }
  }
  return 0;
}

struct range {
  uint64_t start, end;
};

int main(int argc, char** argv) {
  static struct range whole = {0, UINT64_MAX};
  struct range* ranges = &whole;
  int range_count = 1;
  char path[64];
  char* line = NULL;
  size_t capacity = 0;
  int failed = 0;

  if (argc < 2) {
    fprintf(stderr, "usage: plain-pagemap PID [START-END...]\n");
    return 2;
  }
  page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
  if (argc > 2) {
    range_count = argc - 2;
    ranges = calloc((size_t)range_count, sizeof *ranges);
    for (int i = 0; i < range_count; i++) {
      if (sscanf(argv[i + 2], "%" SCNx64 "-%" SCNx64, &ranges[i].start, &ranges[i].end) != 2) {
        fprintf(stderr, "plain-pagemap: not START-END: %s\n", argv[i + 2]);
        return 2;
      }
    }
  }

  snprintf(path, sizeof path, "/proc/%s/maps", argv[1]);
  FILE* maps = fopen(path, "r");
  if (maps == NULL) {
    fprintf(stderr, "plain-pagemap: %s: %s\n", path, strerror(errno));
    return 1;
  }
  snprintf(path, sizeof path, "/proc/%s/pagemap", argv[1]);
  int pagemap = open(path, O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) {
    fprintf(stderr, "plain-pagemap: %s: %s\n", path, strerror(errno));
    return 1;
  }

  while (getline(&line, &capacity, maps) > 0) {
    uint64_t start, end;
    int rest = 0;

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %n", &start, &end, &rest) != 2 || rest == 0) {
      fprintf(stderr, "plain-pagemap: not a line of maps: %s", line);
      return 1;
    }
    int named = 0;
    for (int i = 0; i < range_count; i++) {
      uint64_t from = start > ranges[i].start ? start : ranges[i].start;
      uint64_t to = end < ranges[i].end ? end : ranges[i].end;
      if (from >= to) continue;
      if (!named) printf("vma %" PRIx64 " %" PRIx64 " %s", start, end, line + rest);
      named = 1;
      failed |= read_pages(pagemap, from, to);
      flush_run();
    }
  }
  if (!failed) printf("end\n");
  if (fflush(stdout) != 0) failed = 1;
  return failed;
}
