# SPDX-License-Identifier: MIT
"""run.py --vtop PATH --vmastat PATH --mapcheck PATH --plain PATH --memory-kinds PATH --dir TEMP [--only NAME]: called by scripts/real-programs."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time

import compare
import policies
import process_tree
import programs
import stats

HUGE_PAGES = "/proc/sys/vm/nr_hugepages"


def free_huge_pages():
    with open("/proc/meminfo", encoding="ascii") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("HugePages_Free"))


def need_huge_pages(count):
    """Raises the number of free 2 MiB pages; scripts/real-programs restores it."""
    for _ in range(5):  # Others may take some at the same time.
        free = free_huge_pages()
        if free >= count:
            return
        try:
            with open(HUGE_PAGES, encoding="ascii") as f:
                have = int(f.read())
            with open(HUGE_PAGES, "w", encoding="ascii") as f:
                f.write(str(have + count - free))
        except OSError as error:
            raise programs.Unavailable(f"huge pages: {error}") from error
    free = free_huge_pages()
    if free < count:
        raise programs.Unavailable(f"{count} huge pages asked for, {free} to be had")


def check(arguments, name, start, huge_pages):
    """(processes, Outcome) of one program."""
    need_huge_pages(huge_pages)
    directory = tempfile.mkdtemp(prefix="program-", dir=arguments.dir)
    os.chmod(directory, 0o755)
    restart = lambda: start(directory, *extra)  # noqa: E731
    extra = [arguments.memory_kinds] if name in ("memory-kinds", "60,000 VMAs") else []
    held = restart()  # noqa: F841: its stdin stays open
    pids = process_tree.stop()
    if not pids:
        raise programs.Unavailable("it ended by itself")
    total = compare.Outcome()
    for index, pid in enumerate(pids):
        outcome, vmas, runs = compare.compare_process(arguments.vtop, arguments.plain, pid)
        count = max(25, arguments.addresses // len(pids))
        if len(vmas) > 10000:  # Each costs a reading of smaps, and that one is long.
            count //= 4
        outcome.add(compare.compare_addresses(arguments.vtop, arguments.plain, pid, vmas, runs,
                                              count, seed=index))
        sums = stats.compare_process(arguments.vmastat, pid)
        outcome.summed, outcome.wrong = sums.vmas, outcome.wrong + sums.wrong
        outcome.moved += sums.moved
        outcome.examples += sums.examples
        outcome.examples = [f"{process_tree.comm(pid)} {pid}: {e}" for e in outcome.examples]
        total.add(outcome)
    total.checks = check_policies(arguments, directory, restart, pids, total)
    return len(pids), total


def check_policies(arguments, directory, restart, pids, total):
    """The number of checks that the program's first process passed after a restart."""
    comm = process_tree.comm(pids[0])
    policy, wrong = policies.printed(arguments.mapcheck, pids[0])
    process_tree.end()
    shutil.rmtree(directory)
    os.mkdir(directory)
    os.chmod(directory, 0o755)
    held = restart()  # noqa: F841
    again = [pid for pid in process_tree.stop() if process_tree.comm(pid) == comm]
    checks = 0
    if again:
        checks, more = policies.held(arguments.mapcheck, policy, directory, again[0])
        wrong += more
    else:
        wrong.append(f"no {comm} after a restart")
    total.wrong += len(wrong)
    total.examples += [f"{comm}: {w}" for w in wrong]
    return checks


def main():
    parser = argparse.ArgumentParser()
    for option in ("vtop", "vmastat", "mapcheck", "plain", "memory-kinds", "dir"):
        parser.add_argument("--" + option, required=True)
    parser.add_argument("--only", action="append", help="programs whose name begins so")
    parser.add_argument("--addresses", type=int, default=300)
    arguments = parser.parse_args()
    required = "real" in os.environ.get("VMEM_REQUIRE", "").split(",")

    def interrupted(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, interrupted)
    process_tree.adopt_orphans()

    rows, failed = [], False
    for name, start, huge_pages in programs.ALL:
        if arguments.only and not any(name.startswith(o) for o in arguments.only):
            continue
        began = time.monotonic()
        try:
            processes, outcome = check(arguments, name, start, huge_pages)
        except (programs.Unavailable, OSError, KeyError, programs.subprocess.CalledProcessError) \
                as reason:
            detail = getattr(reason, "stderr", None) or b""
            print(f"{'FAILED' if required else 'SKIPPED'}: {name}: {reason} "
                  f"{detail.decode(errors='replace')[-500:]}", file=sys.stderr, flush=True)
            rows.append((name, "-", "-", "-", "-", "-", "-", "-", "-", "failed" if required else "skipped"))
            failed = failed or required
            continue
        finally:
            process_tree.end()
        for example in outcome.examples:
            print(f"MISMATCH: {name}: {example}", file=sys.stderr, flush=True)
        if outcome.resident == 0:
            print(f"MISMATCH: {name}: nothing resident was compared", file=sys.stderr)
        failed = failed or outcome.wrong != 0 or outcome.resident == 0
        rows.append((name, processes, outcome.vmas, outcome.pages, outcome.resident,
                     outcome.addresses, outcome.summed, outcome.checks, outcome.moved, outcome.wrong))
        print(f"{name}: {time.monotonic() - began:.0f} s, classes {outcome.classes}",
              file=sys.stderr, flush=True)

    heads = ("program", "processes", "VMAs", "pages compared", "resident", "addresses",
             "VMAs summed", "policy checks", "moved", "mismatches")
    table = [heads] + [tuple(f"{c:,}" if isinstance(c, int) else c for c in r) for r in rows]
    widths = [max(len(str(r[i])) for r in table) for i in range(len(heads))]
    for row in table:
        print("  ".join(str(c).ljust(w) if i == 0 else str(c).rjust(w)
                        for i, (c, w) in enumerate(zip(row, widths))).rstrip())
    if not rows:
        print("no program was chosen", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
