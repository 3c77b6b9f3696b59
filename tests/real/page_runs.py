# SPDX-License-Identifier: MIT
"""Runs of pages from two readers, and where they differ."""

import os
import subprocess

PAGE = os.sysconf("SC_PAGESIZE")
COUNTING = ("resident", "swapped")  # values that go up by one from page to page


class Run:
    """Pages [first, last) by number. `key`: what is equal for all of them."""
    __slots__ = ("first", "last", "state", "base", "type")

    def __init__(self, first, last, state, value, kind):
        self.first, self.last, self.state, self.type = first, last, state, kind
        # The value less the page's number is the same along a run.
        self.base = value - first if state in COUNTING else value


def plain(reader, pid):
    """{(start, end): [Run]} by VMA, from plain-pagemap."""
    out = subprocess.run([reader, str(pid)], check=True, stdout=subprocess.PIPE).stdout
    vmas, runs = {}, None
    lines = out.split(b"\n")
    if lines[-2:] != [b"end", b""]:
        raise ValueError("plain-pagemap: output is cut short")
    for line in lines[:-2]:
        word = line.split(b" ", 7)
        if word[0] == b"vma":
            runs = vmas.setdefault((int(word[1], 16), int(word[2], 16)), [])
        else:
            first = int(word[1], 16) // PAGE
            runs.append(Run(first, first + int(word[2]), word[3].decode(), int(word[4], 16),
                            int(word[5])))
    return vmas


def from_extent(extent):
    """A Run from an extent of vtop's JSON."""
    first = int(extent["va"], 16) // PAGE
    state, value, kind = extent["state"], 0, 0
    if state == "resident":
        value = int(extent["pfn"], 16)
        if int(extent["pa"], 16) != value * PAGE:
            raise ValueError(f"pa and pfn differ at {extent['va']}")
    elif state == "swapped":
        value, kind = extent["swap"]["offset"], extent["swap"]["type"]
    elif extent["pfn"] is not None or extent["pa"] is not None:
        raise ValueError(f"{state} with a frame at {extent['va']}")
    return Run(first, first + extent["bytes"] // PAGE, state, value, kind)


def overlaps(left, right):
    """(first, last, left run, right run) of every stretch; None where one has nothing."""
    i = j = 0
    at = None
    while i < len(left) or j < len(right):
        a = left[i] if i < len(left) else None
        b = right[j] if j < len(right) else None
        start = min(r.first for r in (a, b) if r)
        at = start if at is None else max(at, start)
        use_a = a if a and a.first <= at else None
        use_b = b if b and b.first <= at else None
        ends = [r.last for r in (use_a, use_b) if r]
        ends += [r.first for r in (a, b) if r and r.first > at]
        last = min(ends)
        yield at, last, use_a, use_b
        at = last
        if a and a.last <= at:
            i += 1
        if b and b.last <= at:
            j += 1


def same(a, b):
    return (a is not None and b is not None and a.state == b.state
            and (a.state not in COUNTING or (a.base == b.base and a.type == b.type)))


def moved(before, after):
    """Page ranges [first, last) that two plain readings tell differently."""
    return [(first, last) for first, last, a, b in overlaps(before, after) if not same(a, b)]
