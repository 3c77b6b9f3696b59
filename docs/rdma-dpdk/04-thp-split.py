#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Registration takes 512 entries where one had been enough: a transparent huge page has been split."""
import scene

scene.need_root()
address = scene.anonymous(scene.HUGE, scene.HUGE)
scene.madvise(address, scene.HUGE, scene.MADV_HUGEPAGE)
scene.fill(address, scene.HUGE)
scene.madvise(address, scene.HUGE, scene.MADV_DONTFORK)
scene.ranges(address, scene.HUGE, "whole", "1 clean")
scene.madvise(address, scene.HUGE, scene.MADV_NOHUGEPAGE)  # else khugepaged may put it together again
scene.madvise(address + 5 * scene.PAGE, scene.PAGE, scene.MADV_DONTNEED)  # a free() of a page
scene.fill(address + 5 * scene.PAGE, scene.PAGE)
scene.ranges(address, scene.HUGE, "split", "fragmented")
