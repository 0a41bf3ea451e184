"""The root of a container, and as whom its files are read. For one-shot children only, which call this as root.

Nothing of a container's files is opened here: the root by a handle that cannot be read (O_PATH), and files of /proc
that the kernel writes. `open_process` makes sure that it is the process that is meant.

A snapshot is read as the container's main process would read: with its uid, gid and groups, and without capabilities.
The one exception is CAP_DAC_READ_SEARCH (capabilities(7)), where the process may override permissions itself, which is
what root in a container usually may. A process in another user namespace has its capabilities there only, so they do
not count; its ids in /proc are the node's.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import msgspec

from sidestep.model.errors import KernelError
from sidestep.node.certificates.below_root import Root, open_process, open_root

MAX_TEXT: Final = 1024 * 1024
"""Bytes of a file below /proc/PID that are read."""
MAX_GROUPS: Final = 65536
"""NGROUPS_MAX (linux/limits.h)."""
_READS_ALL: Final = (1 << 1) | (1 << 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (linux/capability.h)."""


class Reading(msgspec.Struct, frozen=True):
    """As whom files are read."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    reads_all: bool = False
    """With CAP_DAC_READ_SEARCH."""


class ContainerRoot(msgspec.Struct, frozen=True):
    """A root (O_PATH), what is mounted below it (proc_pid_mountinfo(5), unread), and as whom its files are read."""

    fd: int
    mounts: bytes
    reading: Reading


def open_container(pid: int | None, birth: int | None, root: str) -> ContainerRoot:
    """Open the root of the process that was started at `birth`, or, without a process, the folder `root`.

    A folder is read as its owner. Raises AbsentRootError, KernelError.
    """
    if pid is None:
        folder = open_root(Root(root))
        owner = os.fstat(folder)
        return ContainerRoot(folder, b"", Reading(owner.st_uid, owner.st_gid))
    process = open_process(f"/proc/{pid}", birth)
    try:
        reading = reading_as(_text(process, "status"), own_users=_same_users(process))
        mounts = _text(process, "mountinfo")
        handle = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process)
    except OSError as error:
        raise KernelError("open", error.errno or 0, doing=f"entering process {pid}") from error
    finally:
        os.close(process)
    return ContainerRoot(handle, mounts, reading)


def reading_as(status: bytes, *, own_users: bool) -> Reading:
    """Read proc_pid_status(5): the ids that count for files, and the capabilities. Raises KernelError.

    `own_users`: the process is in our user namespace.
    """
    fields = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    try:
        uid, gid = (int(fields[name].split()[3]) for name in (b"Uid", b"Gid"))
        groups = tuple(int(each) for each in fields[b"Groups"].split())
        overrides = int(fields[b"CapEff"], 16) & _READS_ALL != 0
    except (KeyError, IndexError, ValueError) as error:
        raise KernelError("read", errno.EPROTO, doing="reading the status of a process") from error
    return Reading(uid, gid, groups[:MAX_GROUPS], overrides and own_users)


def _text(process: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_TEXT)


def _same_users(process: int) -> bool:
    theirs, ours = os.stat("ns/user", dir_fd=process), Path("/proc/self/ns/user").stat()
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
