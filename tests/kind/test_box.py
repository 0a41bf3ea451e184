"""However the process ends that made a box: no process, mount, network namespace, cgroup or folder of it is left."""

from __future__ import annotations

import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.debian import cache
from tests.e2e import cgroups, machine
from tests.harness.processes import Process, alive
from tests.harness.waiting import until

# A box that holds what a node has, as the fixture `cluster` makes one, until a signal or a failure ends it.
HOLDER = """
import shutil, sys, time
from pathlib import PosixPath
from tests.e2e import machine
from tests.kind import box
from tests.kind.parts import Parts

folder = machine.folder_of_our_own()
try:
    with box.box(folder, eval(sys.argv[1])) as made:
        made.run("bash", "-euc", sys.argv[2])
        print(made.name, made.pid, folder, flush=True)
        if sys.argv[3] == "failure":
            raise AssertionError("a test failed")
        time.sleep(120)
finally:
    shutil.rmtree(folder)
"""

# Cgroups below its own, a process in namespaces of its own in them, a bridge, a mount, files in the data folder.
BUSY = """
setsid unshare --net --pid --fork sleep 600 </dev/null >/dev/null 2>&1 &
for each in $(awk '$3 ~ "^cgroup" {print $2}' /proc/mounts); do
    mkdir -p "$each/kubelet/pods"
    echo $! >"$each/kubelet/pods/cgroup.procs" || true
done
ip link add bridge0 type bridge
mount -t tmpfs tmpfs /mnt
touch /shared/left /var/lib/containers/left
"""


@dataclass(frozen=True)
class Left:
    """What there is of a box at a moment."""

    processes: list[int]
    """In its cgroups or in its network namespace."""
    mounts: list[str]
    """In the machine's own mount namespace."""
    cgroups: list[Path]
    folder: list[Path]


def left(name: str, network: str, folder: Path) -> Left:
    """`network` is the link of the box's network namespace."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            groups, space = (path / "cgroup").read_text(), str((path / "ns/net").readlink())
        except OSError:
            continue  # it has just ended, or is a kernel thread
        if name in re.split("[/\n]", groups) or space == network:
            processes.append(int(path.name))
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]
    return Left(
        processes=[pid for pid in processes if alive(pid)],
        mounts=mounts,
        cgroups=[root / name for root in cgroups.roots() if (root / name).exists()],
        folder=[folder] if folder.exists() else [],
    )


NOTHING = Left([], [], [], [])


@pytest.mark.parametrize("how", ["SIGINT", "failure", "SIGKILL"])
def test_nothing_of_a_box_is_left(made_parts, tmp_path, how):
    """After SIGKILL cgroups and the folder stay, until the next run sweeps them."""
    holder = Process(
        [sys.executable, "-c", HOLDER, repr(made_parts), BUSY, how],
        log=tmp_path / "log",
        stdout=tmp_path / "out",
        environment={"PYTHONPATH": str(cache.REPOSITORY)},
        patience=30,
    )
    with holder:
        until(
            lambda: not holder.running or "\n" in holder.output(),
            within=120,
            what=lambda: f"the box\n{holder.text()}",
        )
        assert holder.output(), holder.text()
        name, pid, folder = holder.output().split()
        network = ""
        if how != "failure":
            network = str(Path(f"/proc/{pid}/ns/net").readlink())
            there = left(name, network, Path(folder))
            assert len(there.processes) > 2
            assert there.cgroups
            assert there.folder
            holder.signal(signal.Signals[how])
        holder.wait(60)
    if how == "SIGKILL":
        until(lambda: not left(name, network, Path(folder)).processes, within=30, what="the processes to end")
        machine.sweep()
    assert left(name, network, Path(folder)) == NOTHING
