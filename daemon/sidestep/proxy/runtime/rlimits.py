"""Resource limits of a pod proxy: what a leak or a hostile peer can take from the node at most (setrlimit(2))."""

from __future__ import annotations

import resource

from sidestep.aio.packets import MAX_PAYLOAD
from sidestep.model.errors import KernelError


def apply(*, memory: int, descriptors: int) -> None:
    """Bound this process for good. Raises KernelError.

    `memory` is bytes of private writable memory (RLIMIT_DATA: address space that only maps libraries is not counted;
    0: no bound); `descriptors` is the number of open files, lowered to the hard limit where that is less. A file can
    only be a memfd: MAX_PAYLOAD bytes each. Threads and processes, core files and locked memory: none.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = descriptors if hard == resource.RLIM_INFINITY else min(descriptors, hard)
    bounds = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: MAX_PAYLOAD,
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
        raise KernelError("setrlimit", getattr(error, "errno", 0) or 0, doing="limiting the pod proxy") from error
