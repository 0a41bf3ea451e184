"""RLIMIT_MEMLOCK, against which kernels before Linux 5.11 count the memory of maps and programs.

Linux 5.11 counts it in the memory cgroup instead ("bpf: switch to memcg-based memory accounting"). On an older kernel
MAP_CREATE and PROG_LOAD fail with EPERM when the user's locked memory would exceed the limit, 64 KiB by default
(bpf(2), setrlimit(2)). The maps of one pod with client addresses need about 10 MiB, and the limit covers all pods of a
node, so it is made unlimited. Where the hard limit is lower, that takes CAP_SYS_RESOURCE,
which root usually has in local mode and the DaemonSet does not.
"""

from __future__ import annotations

import platform
import resource

FIRST_UNCHARGED = (5, 11)
"""The first version that does not count maps and programs against the limit."""


def kernel_version(release: str) -> tuple[int, ...]:
    """Major and minor number of a kernel release such as `5.10.0-30-cloud-amd64`; empty for what is no release."""
    return tuple(int(part) for part in release.split("-", maxsplit=1)[0].split(".")[:2] if part.isdigit())


def is_charged() -> bool:
    """Whether this kernel counts maps and programs against RLIMIT_MEMLOCK."""
    return kernel_version(platform.release()) < FIRST_UNCHARGED


def lift() -> None:
    """Remove this process's limit, or raise it to the hard limit where CAP_SYS_RESOURCE is missing."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):  # the resource module reports EPERM as ValueError
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def is_limited() -> bool:
    """Whether this process has a limit."""
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY


def shortage() -> str:
    """One line for a person: the limit that is in the way, and how to raise it."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return (
        f"Linux {platform.release()} counts maps and programs against RLIMIT_MEMLOCK, which is {soft // 1024} KiB here "
        "and cannot be raised without CAP_SYS_RESOURCE: add that capability to the DaemonSet "
        "(deploy/patches/README.md), start the process with `ulimit -l unlimited`, or use Linux 5.11 or later"
    )
