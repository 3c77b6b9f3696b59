#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""ibv_reg_mr() fails with ENOMEM: more than RLIMIT_MEMLOCK."""
import os
import resource
import signal

import scene

scene.need_root()
size = 64 * scene.PAGE
address = scene.anonymous(size)
scene.fill(address, size)
parent, child = os.pipe()
pid = os.fork()
if pid == 0:  # a user's process with a small limit
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (16 * scene.PAGE, 16 * scene.PAGE))
    os.setresuid(65534, 65534, 65534)
    os.write(child, b"r")
    signal.pause()
os.read(parent, 1)
try:
    scene.regaudit("plan", pid, f"{address:x}+{size:#x}", expect="would fail: over-memlock")
finally:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
