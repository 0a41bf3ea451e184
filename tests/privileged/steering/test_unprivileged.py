"""What a process has left after it has dropped its capabilities, as the kernel tells it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys
from sidestep.steering.unprivileged import drop_capabilities
before = os.getuid()
drop_capabilities()
assert os.getuid() == before
fields = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
print(*(fields[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")), fields["NoNewPrivs"], flush=True)
subprocess.run(["grep", "-h", "^CapEff", "/proc/self/status"], check=True)
"""


def test_no_capability_is_left_nor_comes_back_by_execve():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    own, child = done.stdout.splitlines()
    assert own.split() == ["0" * 16] * 5 + ["1"]
    assert child.split() == ["CapEff:", "0" * 16]
