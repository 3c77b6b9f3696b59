#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A secondary process does not start: the files of the primary's huge pages were removed under it. And the other way
round: the primary was killed, and its files still hold the pages."""
from pathlib import Path

import scene

primary = scene.TestPmd("--iova-mode=pa")
try:
    for file in sorted(Path(primary.mount).iterdir())[:4]:
        file.unlink()
    scene.regaudit("dpdk", "--prefix", primary.prefix, expect="unlinked")
    primary.process.kill()
    primary.process.wait()
    scene.regaudit("dpdk", "--prefix", primary.prefix, expect="their primary has ended")
finally:
    primary.end()
