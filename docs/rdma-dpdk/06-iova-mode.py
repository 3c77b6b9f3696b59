#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A NIC writes into memory of somebody else: an IOVA that is not where the memory is. The mode is PA; in a copy of the
primary's files one segment's IOVA is put 16 MiB further, as if the page had been moved."""
import shutil
import tempfile
from pathlib import Path

import scene

primary = scene.TestPmd("--iova-mode=pa")
copy = Path(tempfile.mkdtemp(prefix="regaudit-copy-"))
try:
    scene.regaudit("dpdk", "--prefix", primary.prefix, expect="0 with errors, 0 unknown")
    for file in primary.directory.iterdir():
        if file.is_file():
            shutil.copy(file, copy)
    segments = copy / "fbarray_memseg-2048k-0-0"
    data = bytearray(segments.read_bytes())
    data[7 * 48 + 3] ^= 1  # struct rte_memseg: 48 bytes, the IOVA first
    segments.write_bytes(data)
    scene.regaudit("dpdk", "--dir", copy, expect="iova-mismatch")
finally:
    primary.end()
    shutil.rmtree(copy)
