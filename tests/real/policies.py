# SPDX-License-Identifier: MIT
"""`mapcheck --print-policy` of a program, held against its next start: addresses, PIDs, inodes and temporary files are others."""

import os
import re
import subprocess

ADDRESS = re.compile(r'^select = "(0x)?[0-9a-f]+"$', re.MULTILINE)


def _run(*arguments):
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300, check=False)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def printed(mapcheck, pid):
    """(policy, complaints)"""
    status, policy, err = _run(mapcheck, "--print-policy", str(pid))
    wrong = []
    if status != 0:
        wrong.append(f"--print-policy: status {status}: {err}")
    if "\n[[check]]\n" not in policy:
        wrong.append("--print-policy: no check")
    wrong += [f"--print-policy: an address: {m.group()}" for m in ADDRESS.finditer(policy)]
    return policy, wrong


def held(mapcheck, policy, directory, pid):
    """(checks, complaints) of the new process."""
    file = os.path.join(directory, "policy.toml")
    with open(file, "w", encoding="utf-8") as f:
        f.write(policy)
    status, out, err = _run(mapcheck, "--policy", file, "-o", "verdict,name,vma,window", str(pid))
    lines = out.splitlines()[1:]
    if status == 0:
        return len(lines), []
    kept = os.environ.get("VMEM_KEEP_POLICIES")
    if kept:
        with open(os.path.join(kept, f"policy-{pid}.toml"), "w", encoding="utf-8") as f:
            f.write(policy)
    return len(lines), [f"the printed policy after a restart: status {status}: {err}"] + \
        [line for line in lines if line and not line.startswith("pass")][:20]
