# SPDX-License-Identifier: MIT
"""The processes of a started program: found, stopped as one, let go, ended. By PID only."""

import ctypes
import os
import signal
import time

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans():
    """A daemon of ours becomes our child and not init's: it stays findable."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


def _stat(path):
    """(state, parent, start time) of a process or thread; None when it is gone."""
    try:
        with open(path + "/stat", encoding="utf-8", errors="replace") as f:
            fields = f.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return fields[0], int(fields[1]), int(fields[19])


def descendants(root):
    """PIDs below `root`, without it, parents first."""
    children = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (facts := _stat("/proc/" + name)):
            children.setdefault(facts[1], []).append(int(name))
    found, queue = [], [root]
    while queue:
        for pid in sorted(children.get(queue.pop(0), [])):
            found.append(pid)
            queue.append(pid)
    return found


def _signal(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass
    except ChildProcessError:
        pass


def _all_threads_stopped(pid):
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return True
    states = [_stat(f"/proc/{pid}/task/{tid}") for tid in threads]
    return all(s is None or s[0] in "TtZX" for s in states)


def stop(timeout=20):
    """Stops everything below this process; returns those with memory: no zombies."""
    deadline = time.monotonic() + timeout
    stopped = set()
    while True:
        _reap()
        pids = descendants(os.getpid())
        for pid in pids:
            if pid not in stopped:
                _signal(pid, signal.SIGSTOP)
                stopped.add(pid)
        # Twice the same, all at rest: nobody was left to start another.
        if all(_all_threads_stopped(pid) for pid in pids) and pids == descendants(os.getpid()):
            return [p for p in pids if (s := _stat(f"/proc/{p}")) and s[0] not in "ZX"]
        if time.monotonic() > deadline:
            raise TimeoutError("not all processes stopped")
        time.sleep(0.02)


def resume():
    for pid in descendants(os.getpid()):
        _signal(pid, signal.SIGCONT)


def end(timeout=15):
    """Ends everything below this process: asks, then kills."""
    for number, patience in ((signal.SIGTERM, timeout), (signal.SIGKILL, 10)):
        for pid in descendants(os.getpid()):
            _signal(pid, number)
        resume()
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            _reap()
            if not descendants(os.getpid()):
                return
            time.sleep(0.05)
    raise TimeoutError(f"still alive: {descendants(os.getpid())}")


def comm(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as f:
            return f.read().rstrip("\n")
    except OSError:
        return "?"
