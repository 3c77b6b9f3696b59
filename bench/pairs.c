/* SPDX-License-Identifier: MIT */
/*
 * vmem-bench-pairs COUNT -- A... -- B...
 *
 * Runs two commands in turn, A B A B ..., COUNT times each after one run of each that is not
 * counted, with stdin and stdout at /dev/null. A run that follows one of over a second is made
 * twice, and the second counts: else it is the waking of a CPU that is measured (in a virtual
 * machine a program of two instructions then takes 0.8 ms, not 0.05). Prints a line for each pair:
 *   A's wall nanoseconds, peak RSS in KiB, exit status (-1: a signal), then B's.
 * It is small itself because a child's peak RSS starts at that of the process that forked it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct run {
  long long nanoseconds;
  long peak_kib;
  int status;
};

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct run run(char** command, int null) {
  struct run result = {now(), 0, -1};
  const pid_t child = vfork();
  if (child < 0) {
    perror("vfork");
    exit(2);
  }
  if (child == 0) {
    dup2(null, 0);
    dup2(null, 1);
    execv(command[0], command);
    _exit(127);
  }
  int status = 0;
  struct rusage usage;
  if (wait4(child, &status, 0, &usage) != child) {
    perror("wait4");
    exit(2);
  }
  result.nanoseconds = now() - result.nanoseconds;
  result.peak_kib = usage.ru_maxrss;
  if (WIFEXITED(status)) result.status = WEXITSTATUS(status);
  return result;
}

/* One that counts, after one of the other that took `before` nanoseconds. */
static struct run run_awake(char** command, int null, long long before) {
  if (before > 1000000000LL) run(command, null);
  return run(command, null);
}

int main(int argc, char** argv) {
  char** commands[2] = {NULL, NULL};
  int found = 0;
  for (int i = 2; i < argc; ++i) {
    if (strcmp(argv[i], "--") != 0) continue;
    argv[i] = NULL;
    if (found < 2) commands[found++] = &argv[i + 1];
  }
  const int count = argc > 1 && argv[1] != NULL ? atoi(argv[1]) : 0;
  if (found != 2 || count < 1 || *commands[0] == NULL || *commands[1] == NULL) {
    fprintf(stderr, "usage: vmem-bench-pairs COUNT -- A... -- B...\n");
    return 2;
  }
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) {
    perror("/dev/null");
    return 2;
  }
  long long before = 0;
  for (int i = -1; i < count; ++i) {
    const struct run a = run_awake(commands[0], null, before);
    const struct run b = run_awake(commands[1], null, a.nanoseconds);
    before = b.nanoseconds;
    if (i < 0) continue;
    printf("%lld %ld %d %lld %ld %d\n", a.nanoseconds, a.peak_kib, a.status, b.nanoseconds,
           b.peak_kib, b.status);
    fflush(stdout);
  }
  return 0;
}
