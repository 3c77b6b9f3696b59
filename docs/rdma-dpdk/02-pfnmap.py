#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""ibv_reg_mr() fails with EFAULT: the buffer is a VM_PFNMAP mapping, as drivers make them. [vvar] is one in every process."""
import os

import scene

flags = open("/proc/self/smaps").read().partition("[vvar]")[2].partition("VmFlags:")[2].partition("\n")[0]
if " pf" not in flags:
    scene.cannot("[vvar] is no VM_PFNMAP mapping here")
scene.regaudit("plan", "--access", "ro", os.getpid(), "[vvar]", expect="VM_PFNMAP")
