# SPDX-License-Identifier: MIT
"""vmastat on a stopped process against the kernel's smaps and smaps_rollup."""

import json
import mmap
import subprocess

import classes

KB = 1024
PAGE = mmap.PAGESIZE
PAGE_SUMS = ("rss", "uss", "swap", "hugetlb")


class Outcome:
    def __init__(self):
        self.vmas = self.rss = self.hugetlb = self.moved = self.wrong = 0
        self.examples = []

    def mismatch(self, text):
        self.wrong += 1
        if len(self.examples) < 8:
            self.examples.append(text)

    def add(self, other):
        for name in ("vmas", "rss", "hugetlb", "moved", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.examples += other.examples[:8 - len(self.examples)]


def expected(fields):
    """What the kernel says of one VMA, in bytes."""
    def get(*names):
        return sum(fields.get(n, 0) for n in names) * KB
    return {"rss": get("Rss"), "pss": get("Pss"), "uss": get("Private_Clean", "Private_Dirty"),
            "swap": get("Swap"), "hugetlb": get("Shared_Hugetlb", "Private_Hugetlb"),
            "hugetlb_private": get("Private_Hugetlb")}


def read_rollup(pid):
    fields = {}
    with open(f"/proc/{pid}/smaps_rollup", "rb") as f:
        for line in f:
            key, _, value = line.partition(b":")
            if value.endswith(b" kB\n"):
                fields[key.decode()] = int(value[:-3])
    return fields


def vdso_share(pid, vmas):
    """Bytes of pss that the process has less while vmastat runs, which maps the same [vdso] as everybody."""
    less = 0
    with open(f"/proc/{pid}/pagemap", "rb") as pagemap, open("/proc/kpagecount", "rb") as counts:
        for vma in (v for v in vmas if v.name == b"[vdso]"):
            pagemap.seek(vma.start // PAGE * 8)
            for entry in memoryview(pagemap.read((vma.end - vma.start) // PAGE * 8)).cast("Q"):
                if not entry >> 63:
                    continue
                counts.seek((entry & (1 << 55) - 1) * 8)
                sharers = max(int.from_bytes(counts.read(8), "little"), 1)
                less += PAGE // (sharers * (sharers + 1)) + 1
    return less


def run_vmastat(vmastat, *arguments):
    done = subprocess.run([vmastat, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False)
    if done.returncode != 0:
        raise ValueError(f"vmastat {arguments}: exit status {done.returncode}: {done.stderr.decode()}")
    return json.loads(done.stdout)


def compare_vma(outcome, vma, got, before, after):
    for name, value in expected(vma.fields).items():
        if name == "pss":
            good = got[name] is not None and value <= got[name] < value + KB
        else:
            good = got[name] == value
        if good:
            continue
        if before != after:  # The kernel itself tells two things: reclaim, another process's fork.
            outcome.moved += 1
            continue
        outcome.mismatch(f"{name} of {vma.start:x} {vma.name!r} {got['class']}/{got['kind']}: "
                         f"smaps {value}, vmastat {got[name]}")


def compare_process(vmastat, pid):
    """Twice more where something differs: others map and leave the same libraries meanwhile."""
    for _ in range(3):
        outcome = look(vmastat, pid)
        if outcome.wrong == 0:
            break
    return outcome


def look(vmastat, pid):
    outcome = Outcome()
    before = classes.read_smaps(pid)
    rollup = read_rollup(pid)
    document = run_vmastat(vmastat, "-J", pid)
    groups = run_vmastat(vmastat, "-J", "--by", "class", pid)
    after = classes.read_smaps(pid)
    rollup_after = read_rollup(pid)
    process, = document["processes"]
    got = {(int(v["start"], 16), int(v["end"], 16)): v for v in process["vmas"]}
    later = {(v.start, v.end): v.fields for v in after}
    if len(got) != len(process["vmas"]):
        outcome.mismatch("a VMA is there twice")
    for vma in before:
        key = vma.start, vma.end
        outcome.vmas += 1
        if key not in got or key not in later:
            outcome.mismatch(f"VMA {vma.start:x}-{vma.end:x} is missing")
            continue
        mine = got.pop(key)
        outcome.rss += mine["rss"] or 0
        outcome.hugetlb += mine["hugetlb"] or 0
        if mine["flags"] != vma.flags or mine["size"] != vma.end - vma.start:
            outcome.mismatch(f"flags or size of {vma.start:x}: {mine}")
        if sum(mine["leaf"].values()) != mine["mapped"]:
            outcome.mismatch(f"leaf sizes and mapped of {vma.start:x}: {mine}")
        compare_vma(outcome, vma, mine, vma.fields, later[key])
    for key in got:
        outcome.mismatch(f"vmastat shows a VMA {key[0]:x}-{key[1]:x} that smaps does not have")

    quiet = rollup == rollup_after
    less = vdso_share(pid, before)
    kernel = expected(rollup)
    sums = {name: sum(g[name] for g in groups["groups"]) for name in kernel}
    for where, mine in (("totals", process["totals"]), ("classes", sums)):
        for name, value in kernel.items():
            # The classes' pss are cut to bytes, one by one.
            slack = KB + len(groups["groups"]) if name == "pss" else 1
            if mine[name] is not None and value - (len(groups["groups"]) + less) * (name == "pss") \
                    <= mine[name] < value + slack:
                continue
            if quiet:
                outcome.mismatch(f"{name} of {where}: smaps_rollup {value}, vmastat {mine[name]}")
            else:
                outcome.moved += 1
    outcome.examples = [f"vmastat: {e}" for e in outcome.examples]
    return outcome
