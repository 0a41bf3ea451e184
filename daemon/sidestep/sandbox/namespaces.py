"""The namespaces of a confined process: a network, the pod's or an empty one, and an empty file system.

After `enter_network` new sockets belong to the pod's network namespace, and abstract unix sockets of the node are out
of reach. After `empty_root` the root is a read-only tmpfs. Its only content, if any, is `/proc/self/fd` of this
process, bound from the node's procfs, because `ssl` loads keys by path (`/proc/self/fd/N` of a memfd). A new procfs
would show more, even with `subset=pid` and `hidepid`: `exe`, `root`, `environ` and `mem` of this process. It would also
need a new superblock.

There is no process-id namespace: it would cost a second fork per process, and the daemon holds pidfds. Signals to other
processes are refused by the user id and by seccomp.
"""

from __future__ import annotations

import os
from pathlib import Path

from sidestep.model.errors import KernelError
from sidestep.sandbox import libc

_SEALED = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


def enter_network(netns_fd: int) -> None:
    """Join the network namespace behind this descriptor. Raises KernelError (EINVAL: it is not a network namespace)."""
    libc.setns(netns_fd, libc.CLONE_NEWNET)


def leave_networks() -> None:
    """Enter a new network namespace, in which there is nothing. Raises KernelError."""
    libc.unshare(libc.CLONE_NEWNET)


def empty_root(*, with_descriptors: bool) -> None:
    """Replace the file system by an empty one, in mount, IPC and UTS namespaces of our own.

    `with_descriptors` leaves `/proc/self/fd` in it.

    Raises KernelError; the file system is in an undefined state then, and the process has to end.
    """
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS)
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    try:
        # Every machine has /proc. The new root is mounted over it; the working directory still refers to the old one.
        os.chdir("/proc/self/fd")
        # Writable for its owner until it is remounted: root in a container is bound by the mode.
        libc.mount("sidestep", "/proc", "tmpfs", _SEALED, "size=4k,nr_inodes=8,mode=755")
        if with_descriptors:
            Path("/proc/proc/self/fd").mkdir(parents=True)
            libc.mount(".", "/proc/proc/self/fd", flags=libc.MS_BIND)
            libc.mount("none", "/proc/proc/self/fd", flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _SEALED)
        os.chdir("/proc")
        # Stacks the old root on the new one and unmounts it (pivot_root(2), "pivot_root(".", ".")").
        libc.pivot_root(".", ".")
        libc.umount(".", libc.MNT_DETACH)
        libc.mount("none", "/", flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _SEALED)
        os.chdir("/")
    except OSError as error:
        raise KernelError("chdir", error.errno or 0, doing="building the empty root") from error
