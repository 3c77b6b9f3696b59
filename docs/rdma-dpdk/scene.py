# SPDX-License-Identifier: MIT
"""What the scripts beside this file share: memory of this process, made trouble with, and regaudit's answer."""
import ctypes
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = mmap.PAGESIZE
HUGE = 2 << 20
CANNOT = 77  # this machine cannot show it
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

MADV_DONTNEED, MADV_DONTFORK, MADV_MERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 4, 10, 12, 14, 15


def cannot(why):
    print(f"this machine cannot show it: {why}")
    sys.exit(CANNOT)


def need_root():
    if os.geteuid() != 0:
        cannot("PFNs take root")


def anonymous(size, align=PAGE):
    """The address of private anonymous memory, not yet touched. It stays until the process ends."""
    address = _libc.mmap(None, size + align, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise MemoryError
    return (address + align - 1) // align * align


def madvise(address, size, advice):
    if _libc.madvise(address, size, advice) != 0:
        cannot(f"madvise({advice}): {os.strerror(ctypes.get_errno())}")


def fill(address, size, byte=1):
    ctypes.memset(address, byte, size)


def regaudit(*arguments, stdin=None, expect):
    """Runs regaudit, shows command and answer, and fails unless `expect` is in the answer."""
    program = os.environ.get("REGAUDIT", "regaudit")
    words = [str(a) for a in arguments]
    prompt = "# regaudit " + " ".join(words) if stdin is None else f"# echo '{stdin}' | regaudit " + " ".join(words)
    run = subprocess.run([program, *words], input=stdin, capture_output=True, text=True, check=False)
    print(f"{prompt}\n{run.stdout}{run.stderr}(exit status {run.returncode})", flush=True)
    if expect not in run.stdout + run.stderr:
        sys.exit(f"not in the answer: {expect}")
    return run.returncode


def ranges(address, size, name, expect):
    return regaudit("ranges", os.getpid(), "-", stdin=f"{address:x} {size} {name}", expect=expect)


class RecordedSystem:
    """A machine that is not this one, as regaudit --sysroot reads it: one process with memory at `address`."""

    def __init__(self, frames, address=0x7F0000000000):
        self.root = Path(tempfile.mkdtemp(prefix="regaudit-"))
        self.address, self.size = address, len(frames) * PAGE
        line = f"{address:x}-{address + self.size:x} rw-p 00000000 00:00 0 \n"
        flags = "VmFlags: rd wr mr mw me ac dc \n"
        for name, text in {
            "manifest": f"vmem-tree 1\npage_size {PAGE}\npfn_access full\n",
            "proc/1/comm": "app\n",
            "proc/1/maps": line,
            "proc/1/smaps": line + flags,
        }.items():
            self.write(name, text)
        with open(self.root / "proc/1/pagemap", "wb") as pagemap:
            pagemap.seek(address // PAGE * 8)
            for frame in frames:
                pagemap.write(struct.pack("<Q", 1 << 63 | 1 << 56 | frame))
        with open(self.root / "proc/kpageflags", "wb") as flags_file:
            for frame in frames:
                flags_file.seek(frame * 8)
                flags_file.write(struct.pack("<Q", 1 << 12))

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def remove(self):
        shutil.rmtree(self.root)

    def ranges(self, expect):
        return regaudit("ranges", "--sysroot", self.root, 1, "-", stdin=f"{self.address:x} {self.size} buffer",
                        expect=expect)


class TestPmd:
    """A DPDK primary with huge pages of its own, without any NIC; all of it goes at the end."""

    def __init__(self, *options):
        need_root()
        if shutil.which("dpdk-testpmd") is None:
            cannot("no dpdk-testpmd (package dpdk-dev)")
        self.nr = Path("/proc/sys/vm/nr_hugepages")
        self.before = self.nr.read_text()
        self.mount = tempfile.mkdtemp(prefix="regaudit-huge-")
        self.prefix = f"demo{os.getpid()}"
        self.directory = Path("/var/run/dpdk") / self.prefix
        self.process = None
        self.nr.write_text(str(int(self.before) + 64))
        if subprocess.run(["mount", "-t", "hugetlbfs", "none", self.mount], check=False).returncode != 0:
            self.end()
            cannot("no hugetlbfs")
        self.process = subprocess.Popen(
            ["dpdk-testpmd", "-l", "0-1", "-m", "64", "--no-pci", "--vdev=net_null0", f"--file-prefix={self.prefix}",
             f"--huge-dir={self.mount}", *options, "--", "--nb-cores=1", "--total-num-mbufs=2048", "-i"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = b""
        while b"testpmd> " not in said:
            more = os.read(self.process.stdout.fileno(), 4096)
            if not more:
                self.end()
                cannot("dpdk-testpmd did not start: " + said.decode(errors="replace")[-300:])
            said += more

    def end(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        subprocess.run(["umount", self.mount], check=False, stderr=subprocess.DEVNULL)
        os.rmdir(self.mount)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.nr.write_text(self.before)
