# SPDX-License-Identifier: MIT
"""vtop on a stopped process against plain readers: every page, every VMA, single addresses."""

import bisect
import json
import random
import subprocess

import classes
import page_runs
from page_runs import PAGE

GATE = (b"[vsyscall]",)
SHOWN = 8  # mismatches that are printed for each process


class Outcome:
    """What was compared, and what was wrong."""

    def __init__(self):
        self.vmas = self.pages = self.resident = self.addresses = self.summed = self.moved = 0
        self.checks = 0
        self.wrong = 0
        self.classes = {}
        self.examples = []

    def mismatch(self, text):
        self.wrong += 1
        if len(self.examples) < SHOWN:
            self.examples.append(text)

    def add(self, other):
        for name in ("vmas", "pages", "resident", "addresses", "summed", "moved",
                     "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, count in other.classes.items():
            self.classes[name] = self.classes.get(name, 0) + count
        self.examples += other.examples[:SHOWN - len(self.examples)]


def run_vtop(vtop, *arguments):
    # From pagemap, as the plain reader has it: page tables see more.
    done = subprocess.run([vtop, "--backend", "pagemap", *map(str, arguments)], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    return done.returncode, done.stdout, done.stderr.decode(errors="replace").strip()


def expected_runs(vma, runs):
    """What vtop must say of a VMA, from what pagemap says and smaps adds."""
    if vma.name in GATE or "pf" in vma.flags:
        return [page_runs.Run(vma.start // PAGE, vma.end // PAGE, "unseen", 0, 0)]
    return runs


def compare_pages(outcome, vma, expected, got, unstable):
    at = vma.start // PAGE
    for extent in got:
        if extent.first != at:
            outcome.mismatch(f"gap or overlap before page {extent.first * PAGE:x}")
        at = extent.last
    if at != vma.end // PAGE:
        outcome.mismatch(f"extents of {vma.start:x} end at {at * PAGE:x}")
    for first, last, plain, run in page_runs.overlaps(expected, got):
        outcome.pages += last - first
        if plain and plain.state == "resident":
            outcome.resident += last - first
        if page_runs.same(plain, run):
            continue
        excused = sum(min(last, m[1]) - max(first, m[0]) for m in unstable
                      if m[0] < last and first < m[1])
        outcome.moved += excused
        if excused < last - first:
            describe = [f"{r.state} {r.base + first if r.state in page_runs.COUNTING else r.base:x}"
                        if r else "nothing" for r in (plain, run)]
            outcome.mismatch(f"page {first * PAGE:x} (+{last - first} pages) of "
                             f"{vma.name.decode(errors='replace')!r}: plain {describe[0]}, "
                             f"vtop {describe[1]}")


def compare_process(vtop, reader, pid):
    """Everything that `vtop -J PID` says."""
    outcome = Outcome()
    before = page_runs.plain(reader, pid)
    status, out, err = run_vtop(vtop, "-J", pid)
    after = page_runs.plain(reader, pid)
    vmas = classes.read_smaps(pid)
    mounts = classes.read_mounts(pid)
    if status != 0:
        outcome.mismatch(f"vtop -J {pid}: exit status {status}: {err}")
        return outcome, vmas, before
    document = json.loads(out)
    if document["process"]["pid"] != pid or document["host"]["pfn_access"] != "full":
        outcome.mismatch(f"process {document['process']}, host {document['host']}")

    groups = {}
    for group in document["results"]:
        if group["vma"] is None:
            outcome.mismatch("a whole process has a group without a VMA")
            continue
        key = int(group["vma"]["start"], 16), int(group["vma"]["end"], 16)
        if key in groups:
            outcome.mismatch(f"VMA {key[0]:x} is there twice")
        groups[key] = group
    for vma in vmas:
        key = vma.start, vma.end
        outcome.vmas += 1
        group = groups.pop(key, None)
        if group is None or key not in before or key not in after:
            outcome.mismatch(f"VMA {vma.start:x}-{vma.end:x} is missing in vtop or maps")
            continue
        facts = group["vma"]
        wanted = classes.expected_class(vma, mounts)
        outcome.classes[wanted] = outcome.classes.get(wanted, 0) + 1
        if facts["class"] != wanted:
            outcome.mismatch(f"class of {vma.start:x} {vma.name!r} {vma.flags}: "
                             f"{facts['class']}/{facts['kind']}, expected {wanted}")
        if facts["perms"] != vma.perms or facts["offset"] != vma.offset or \
                facts["inode"] != vma.inode or facts["flags"] != vma.flags:
            outcome.mismatch(f"facts of {vma.start:x}: {facts}, smaps {vma.flags}")
        if "pf" in vma.flags and all(e["backend"] != "pagemap" for e in group["extents"]):
            # Page tables show what the plain reader is blind to.
            if any(e["state"] not in ("resident", "absent") for e in group["extents"]):
                outcome.mismatch(f"through page tables, {vma.start:x}: {group['extents']}")
            continue
        compare_pages(outcome, vma, expected_runs(vma, before[key]),
                      [page_runs.from_extent(e) for e in group["extents"]],
                      page_runs.moved(before[key], after[key]))
    for key in groups:
        outcome.mismatch(f"vtop shows a VMA {key[0]:x}-{key[1]:x} that maps does not have")
    return outcome, vmas, before


def plain_at(runs, page):
    index = bisect.bisect_right([r.first for r in runs], page) - 1
    return runs[index]


def pick_addresses(vmas, runs, count, seed):
    """(address, VMA or None): borders of VMAs, resident pages, anywhere, and holes."""
    rng = random.Random(seed)
    starts = {v.start for v in vmas}
    picked = []
    for _ in range(count):
        vma = rng.choice(vmas)
        kind = rng.randrange(5)
        inside = runs[vma.start, vma.end]
        resident = [r for r in inside if r.state == "resident"]
        if kind == 0:
            picked.append((vma.start, vma))
        elif kind == 1:
            picked.append((vma.end - 1, vma))
        elif kind == 2 and resident:
            run = rng.choice(resident)
            picked.append((rng.randrange(run.first, run.last) * PAGE + rng.randrange(PAGE), vma))
        elif kind == 3 and vma.end < 1 << 63 and vma.end not in starts:
            picked.append((vma.end, None))
        else:
            picked.append((rng.randrange(vma.start, vma.end), vma))
    return picked


def compare_addresses(vtop, reader, pid, vmas, runs, count, seed):
    """`vtop PID ADDR`, one process for each address; a few in the form for people."""
    outcome = Outcome()
    vmas = [v for v in vmas if (v.start, v.end) in runs]
    picked = pick_addresses(vmas, runs, count, seed)
    compare_batch(outcome, vtop, reader, pid, runs, picked)
    for number, (address, vma) in enumerate(picked):
        outcome.addresses += 1
        page = address // PAGE
        wanted, state = expected_at(vma, runs, address)
        pa = (wanted.base + page) * PAGE + address % PAGE if state == "resident" else None
        as_text = number % 5 == 0
        status, out, err = run_vtop(vtop, *([] if as_text else ["-J"]), pid, f"{address:x}")
        if as_text:
            text = out.decode(errors="replace")
            good = state in text and (pa is None or f"{pa:x}" in text)
            said = text
        else:
            said = json.loads(out) if out else None
            good = said is not None and fits(said, address, vma, wanted, state)
        # Not resident is a negative answer; what cannot be seen is no answer.
        wanted_status = {"resident": 0, "unseen": 2}.get(state, 1)
        if status != wanted_status or not good:
            if vma is not None and page_moved(reader, pid, vma, page, wanted):
                outcome.moved += 1
                continue
            outcome.mismatch(f"vtop {pid} {address:x}: plain {state} "
                             f"{'' if pa is None else hex(pa)}; status {status}, {err} {said}")
    return outcome


def compare_batch(outcome, vtop, reader, pid, runs, picked):
    """The same addresses through stdin: one document a line, in the order asked."""
    done = subprocess.run([vtop, "--backend", "pagemap", "-J", str(pid), "-"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, timeout=120,
                          input="".join(f"{a:x}\n" for a, _ in picked).encode(), check=False)
    lines = done.stdout.decode().splitlines()
    if len(lines) != len(picked):
        outcome.mismatch(f"vtop {pid} -: {len(picked)} addresses, {len(lines)} lines")
        return
    for (address, vma), line in zip(picked, lines):
        wanted, state = expected_at(vma, runs, address)
        if fits(json.loads(line), address, vma, wanted, state):
            continue
        if vma is not None and page_moved(reader, pid, vma, address // PAGE, wanted):
            outcome.moved += 1
        else:
            outcome.mismatch(f"vtop {pid} -: {address:x}: plain {state}: {line}")


def expected_at(vma, runs, address):
    if vma is None:
        return None, "unmapped"
    wanted = plain_at(expected_runs(vma, runs[vma.start, vma.end]), address // PAGE)
    return wanted, wanted.state


def fits(document, address, vma, wanted, state):
    if len(document["results"]) != 1 or len(document["results"][0]["extents"]) != 1:
        return False
    group = document["results"][0]
    extent = group["extents"][0]
    if extent["bytes"] != PAGE or extent["state"] != state:
        return False
    if vma is None:
        return group["vma"] is None
    if int(group["vma"]["start"], 16) != vma.start or int(extent["va"], 16) // PAGE != address // PAGE:
        return False
    if state != "resident":
        return extent["pfn"] is None and extent["pa"] is None
    pfn = wanted.base + address // PAGE
    return int(extent["pfn"], 16) == pfn and int(extent["pa"], 16) // PAGE == pfn


def page_moved(reader, pid, vma, page, wanted):
    """The page has left where the plain reader saw it: the kernel reclaimed or migrated it."""
    now = page_runs.plain(reader, pid).get((vma.start, vma.end))
    return now is None or not page_runs.same(plain_at(now, page), wanted) and \
        wanted.state not in ("unseen",)
