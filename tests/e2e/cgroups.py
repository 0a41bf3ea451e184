"""The node's folder in the machine's cgroups, in whichever layout the machine has.

Version 1 and hybrid setups have a root folder for each hierarchy. Version 2 has one, and hands controllers down level
by level: they must be enabled in `cgroup.subtree_control` of the root and of the node's folder before the kubelet can
make folders that have them. Only the real root may hold processes while it does that; in a container, whose root is a
folder of the machine's tree, its processes move to a folder of their own first (cgroups(7), "no internal processes").
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
RESIDENTS = "sidestep-residents"
"""Where the processes of a folder go that hands its controllers down; it stays, in the root of a container."""


def unified(top: Path = CGROUPS) -> bool:
    """Whether the machine has version 2 alone."""
    return (top / "cgroup.controllers").exists()


def roots(top: Path = CGROUPS) -> list[Path]:
    """The root folder of every cgroup hierarchy: one in version 2, several in version 1 and hybrid setups."""
    if unified(top):
        return [top]
    links = {path.resolve() for path in top.iterdir() if path.is_dir()}
    return sorted(path for path in links if (path / "cgroup.procs").exists())


def make(name: str, *, delegated: bool = True) -> None:
    """Make the folder `name` in every hierarchy, with all controllers.

    With `delegated` it also hands them down, which in version 2 leaves the folder itself without processes.
    """
    for root in roots():
        folder = root / name
        folder.mkdir(exist_ok=True)
        if (root / "cgroup.controllers").exists():
            _delegate(root)
            if delegated:
                _delegate(folder)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # version 1 lets nobody in before these are set
            given = root / setting
            if given.exists() and (folder / setting).exists() and (value := given.read_text()).strip():
                (folder / setting).write_text(value)


def hand_down(name: str) -> None:
    """Hand the controllers of the folder `name` to the folders in it; its processes move to one of these.

    For processes that began in the folder, so that it is the root of their cgroup namespace (cgroup_namespaces(7)).
    """
    for root in roots():
        if (root / "cgroup.controllers").exists():
            _delegate(root / name)


def entrances(name: str) -> list[Path]:
    """The files of which each takes the pid of a process that is to be in the folder `name`, one per hierarchy."""
    folders = [root / name for root in roots()]
    inner = [folder / RESIDENTS for folder in folders]
    return [(one if one.exists() else folder) / "cgroup.procs" for folder, one in zip(folders, inner, strict=True)]


def hold(name: str) -> int:
    """Mark the folder `name` as in use until the descriptor that is returned is closed, or this process has ended.

    The mark is a lock, which is seen from other process namespaces, where this process has another number.
    """
    descriptor = os.open(roots()[0] / name, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_held(name: str) -> bool:
    """Whether some process has marked the folder `name` as in use."""
    try:
        descriptor = os.open(roots()[0] / name, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove(name: str) -> None:
    """Remove the folder `name` and those in it, in every hierarchy; their processes have just been killed."""
    for root in roots():
        _remove(root / name)


def _delegate(folder: Path) -> None:
    """Hand the controllers of a folder of version 2 to the folders in it."""
    words = " ".join(f"+{name}" for name in (folder / "cgroup.controllers").read_text().split())
    if not words:
        return
    control = folder / "cgroup.subtree_control"
    try:
        control.write_text(words)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        residents = folder / RESIDENTS
        residents.mkdir(exist_ok=True)
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (residents / "cgroup.procs").write_text(pid)
        control.write_text(words)


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + 20
    while folder.exists():
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
