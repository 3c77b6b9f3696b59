#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""ibv_reg_mr() takes seconds or fails at random: its pages lie in ZONE_MOVABLE or a CMA area, and a long-term pin must
migrate them first. Recorded, as neither is common."""
import scene

system = scene.RecordedSystem([0x7FFE, 0x7FFF, 0x8000, 0x8001])
try:
    system.write("proc/zoneinfo", "Node 0, zone  Movable\n  pages free     100\n        spanned  32768\n"
                 "  start_pfn:           32768\n")
    system.write("sys/kernel/debug/cma/reserved/base_pfn", "32766\n")
    system.write("sys/kernel/debug/cma/reserved/count", "1\n")
    system.ranges("movable")
finally:
    system.remove()
