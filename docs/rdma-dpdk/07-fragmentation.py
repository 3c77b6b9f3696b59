#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Registration is slow and the device's table is full: a large buffer of small pages."""
import scene

scene.need_root()
size = 8 * scene.HUGE
address = scene.anonymous(size, scene.HUGE)
scene.madvise(address, size, scene.MADV_NOHUGEPAGE)
scene.madvise(address, size, scene.MADV_DONTFORK)
scene.fill(address, size)
scene.ranges(address, size, "pool", "fragmented")
