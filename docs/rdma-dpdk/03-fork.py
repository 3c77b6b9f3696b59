#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Wrong data after fork(): the pages that the parent has not yet written to are shared, and move when it does."""
import os
import signal

import scene

scene.need_root()
size = 16 * scene.PAGE
for dont_fork in (False, True):
    address = scene.anonymous(size)
    scene.madvise(address, size, scene.MADV_NOHUGEPAGE)
    scene.fill(address, size)
    if dont_fork:  # what ibv_fork_init() sees to
        scene.madvise(address, size, scene.MADV_DONTFORK)
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        scene.fill(address, 4 * scene.PAGE, 2)  # these four have moved already
        scene.ranges(address, size, "buffer", "0 with errors" if dont_fork else "shared-cow")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
