"""The variables that a process was started with, /proc/PID/environ (proc_pid_environ(5)). For one-shot children only.

The kernel checks at open(2) who may read (PTRACE_MODE_READ), and keeps the memory that is meant: a child opens as root,
gives up every right, and then reads. A process may have changed that memory since; it is its own.
"""

from __future__ import annotations

import os

from sidestep.model.errors import ConfigurationError, KernelError
from sidestep.model.intercept import MAX_ENVIRONMENT
from sidestep.node.certificates.below_root import open_process


def open_environment(pid: int, birth: int | None) -> int:
    """Open the variables of the process that was started at `birth` (clock ticks since boot; None: of any).

    Returns a descriptor. Raises AbsentRootError when that process has ended, KernelError.
    """
    process = open_process(f"/proc/{pid}", birth)
    try:
        return os.open("environ", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    except OSError as error:
        raise KernelError("open", error.errno or 0, doing=f"reading the variables of process {pid}") from error
    finally:
        os.close(process)


def read_environment(fd: int) -> bytes:
    """Return all of it. Raises ConfigurationError above MAX_ENVIRONMENT bytes, KernelError."""
    content = bytearray()
    try:
        while chunk := os.read(fd, MAX_ENVIRONMENT + 1 - len(content)):
            content += chunk
            if len(content) > MAX_ENVIRONMENT:
                raise ConfigurationError(f"the variables take more than {MAX_ENVIRONMENT} bytes")
    except OSError as error:
        raise KernelError("read", error.errno or 0, doing="reading the variables of a process") from error
    return bytes(content)
