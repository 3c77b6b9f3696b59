#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The device reads old data: the kernel has merged equal pages (KSM), and a write moves the page away."""
import time
from pathlib import Path

import scene

scene.need_root()
ksm = Path("/sys/kernel/mm/ksm")
if not ksm.exists():
    scene.cannot("no KSM")
size = 16 * scene.PAGE
address = scene.anonymous(size)
scene.madvise(address, size, scene.MADV_NOHUGEPAGE)
scene.madvise(address, size, scene.MADV_DONTFORK)
scene.fill(address, size, 0x5A)
scene.madvise(address, size, scene.MADV_MERGEABLE)
settings = {name: (ksm / name).read_text() for name in ("run", "sleep_millisecs", "pages_to_scan")}
try:
    (ksm / "sleep_millisecs").write_text("1")
    (ksm / "pages_to_scan").write_text("10000")
    scans = int((ksm / "full_scans").read_text())
    (ksm / "run").write_text("1")
    for _ in range(200):
        if int((ksm / "full_scans").read_text()) >= scans + 3:
            break
        time.sleep(0.05)
    scene.ranges(address, size, "buffer", "ksm")
finally:
    for name, value in settings.items():
        (ksm / name).write_text(value)
