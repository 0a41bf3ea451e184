"""Resource limits of a confined process: they bound what a leak or a hostile peer takes from a node (setrlimit(2))."""

from __future__ import annotations

import resource

from sidestep.model.errors import KernelError


def apply(*, memory: int, descriptors: int, file_size: int) -> None:
    """Set soft and hard limits of this process. Raises KernelError.

    memory        bytes of private writable memory (RLIMIT_DATA, which does not count mapped libraries); 0: no bound
    descriptors   open files, at most the hard limit that there is
    file_size     bytes of a file that it writes; the only files are memfds

    Threads, processes, core files, message queues and locked memory
    are forbidden.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: files,
        resource.RLIMIT_NPROC: 0,
    }
    if memory:
        bounds[resource.RLIMIT_DATA] = memory
    try:
        for kind, bound in bounds.items():
            resource.setrlimit(kind, (bound, bound))
    except (OSError, ValueError) as error:
        raise KernelError("setrlimit", getattr(error, "errno", 0) or 0, doing="limiting a confined process") from error
