#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Half the bandwidth: half of the buffer is on another NUMA node. Recorded, as most machines have one."""
import scene

system = scene.RecordedSystem([0x7FFE, 0x7FFF, 0x8000, 0x8001])
try:
    system.write("sys/devices/system/memory/block_size_bytes", "8000000\n")
    system.write("sys/devices/system/node/online", "0-1\n")
    system.write("sys/devices/system/node/node0/memory0/online", "1\n")
    system.write("sys/devices/system/node/node1/memory1/online", "1\n")
    system.ranges("spans-nodes")
finally:
    system.remove()
