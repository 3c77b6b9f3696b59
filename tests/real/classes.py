# SPDX-License-Identifier: MIT
"""What a VMA is, told from smaps and mountinfo: a second opinion on the library's answer.

Written from the words of the class list alone: file (a file of a mounted file system),
anonymous (memory that swap backs, private or shared), device (a device's or driver's mapping),
hugepage (hugetlb), special (memory that the kernel itself lends: vdso, io_uring and its like).
"""

import os
import re

HEADER = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ([rwxsp-]{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+)"
                    rb" (\d+)[ ]*(.*)\n", re.DOTALL)
BASE_PAGE = os.sysconf("SC_PAGESIZE")


class Vma:
    """One entry of smaps."""

    def __init__(self, match):
        self.start, self.end = int(match[1], 16), int(match[2], 16)
        self.perms = match[3].decode()
        self.offset = int(match[4], 16)
        self.dev = f"{int(match[5], 16)}:{int(match[6], 16)}"
        self.inode = int(match[7])
        self.name = match[8]
        self.fields = {}
        self.flags = []


def read_smaps(pid):
    vmas = []
    with open(f"/proc/{pid}/smaps", "rb") as f:
        for line in f:
            if match := HEADER.fullmatch(line):
                vmas.append(Vma(match))
                continue
            key, _, value = line.partition(b":")
            if key == b"VmFlags":
                vmas[-1].flags = value.decode().split()
            elif value.endswith(b" kB\n"):
                vmas[-1].fields[key.decode()] = int(value[:-3])
    return vmas


def read_mounts(pid):
    """Device number to file system type."""
    mounts = {}
    with open(f"/proc/{pid}/mountinfo", "rb") as f:
        for line in f:
            before, _, after = line.partition(b" - ")
            mounts[before.split()[2].decode()] = after.split()[0].decode()
    return mounts


def expected_class(vma, mounts):
    if "ht" in vma.flags or vma.fields.get("KernelPageSize", 0) * 1024 > BASE_PAGE:
        return "hugepage"
    if vma.inode == 0 and vma.dev == "0:0":
        own_pages = (b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]")
        return "special" if vma.name in own_pages else "anonymous"
    if vma.name == b"/dev/zero":  # A private mapping of it is anonymous memory.
        return "anonymous"
    if vma.name.startswith((b"anon_inode:", b"socket:")):
        return "special"
    if {"pf", "mm", "io"} & set(vma.flags):
        return "device"
    filesystem = mounts.get(vma.dev)
    if filesystem is None:
        # No mount has this number: the kernel's own tmpfs (memfd, System V and anonymous
        # shared memory) or another file system that nobody can mount.
        internal = (b"/memfd:", b"/SYSV", b"/dev/zero (deleted)")
        return "anonymous" if vma.name.startswith(internal) else "special"
    if filesystem == "devtmpfs" and vma.name.startswith(b"/dev/"):
        return "device"
    if vma.name.startswith(b"/dev/shm/"):
        return "anonymous"
    return "file"
