"""The namespaces of a pod proxy: the pod's network, and a file system with nothing in it.

After `enter_network` new sockets belong to the pod's network namespace (abstract unix sockets of the node are out of
reach with it). After `empty_root` the root is a read-only tmpfs of no size whose only content is `/proc/self/fd` of
this very process, bound from the node's procfs, because `ssl` loads keys by path (`/proc/self/fd/N` of a memfd).
Compared to a fresh procfs, even one with `subset=pid` and `hidepid`, the bind has no `exe`, `root`, `environ` or `mem`,
shows no other process in any state, and needs no new superblock.

No process-id namespace: it would cost a second fork per proxy, and the daemon holds pidfds. Signals to others are
refused by uid and by seccomp.
"""

from __future__ import annotations

import os
from pathlib import Path

from sidestep.model.errors import KernelError
from sidestep.proxy.runtime import libc

_SEALED = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


def enter_network(netns_fd: int) -> None:
    """Make the network namespace behind this descriptor ours. Raises KernelError (EINVAL: it is no such thing)."""
    libc.setns(netns_fd, libc.CLONE_NEWNET)


def empty_root() -> None:
    """Replace the file system by an empty one in namespaces of our own. After a KernelError the process is unfit."""
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWIPC | libc.CLONE_NEWUTS)
    libc.mount("none", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    try:
        # /proc is the one folder every machine has; the new root hides it, the working directory still holds it.
        os.chdir("/proc/self/fd")
        # Writable for its owner until the end: in a container root may not write where the mode forbids it.
        libc.mount("sidestep", "/proc", "tmpfs", _SEALED, "size=4k,nr_inodes=8,mode=755")
        Path("/proc/proc/self/fd").mkdir(parents=True)
        libc.mount(".", "/proc/proc/self/fd", flags=libc.MS_BIND)
        libc.mount("none", "/proc/proc/self/fd", flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _SEALED)
        os.chdir("/proc")
        # Stacks the old root upon the new one and takes it away again: pivot_root(2), "pivot_root(".", ".")".
        libc.pivot_root(".", ".")
        libc.umount(".", libc.MNT_DETACH)
        libc.mount("none", "/", flags=libc.MS_REMOUNT | libc.MS_BIND | libc.MS_RDONLY | _SEALED)
        os.chdir("/")
    except OSError as error:
        raise KernelError("chdir", error.errno or 0, doing="building the empty root") from error
