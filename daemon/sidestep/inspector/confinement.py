"""Locks the zygote of the inspectors into an empty room, and each inspector further, until only one socket is left.

`enclose` is called once in the zygote, when everything is loaded. Its children inherit what it does:

    1. stdio              the null device, but for stderr, which goes to the daemon's log
    2. namespaces         a network without an interface; a root without a file; IPC, UTS

Making namespaces takes tens of milliseconds, which nobody has to wait for there. Inspectors of several pods share them:
there is nothing in them, and nothing can be made (below).

`lock` is called once in each child, a single-threaded root process, and cannot be undone:

    3. descriptors        all are closed but the socket; stderr becomes the null device
    4. resource limits    memory above all; and a lower priority (nice): verdicts wait for the app, not the app for them
    5. user, capabilities, no_new_privs
    6. Landlock           no access to files, where the kernel has it
    7. system calls       `ALLOWED`: reading and writing what is open, memory, time

`alone` does both for an inspector of a command line, which has no zygote. Without root it leaves out what only root can
do: namespaces, and another user. What is left of system calls neither opens, connects nor executes anything.

When a step fails it raises, and the caller must end the process.

No executable memory can be mapped, so PCRE compiles nothing to machine code from here on: the regexes of the Core Rule
Set were compiled in the zygote, custom ones are interpreted.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from sidestep.model.errors import KernelError
from sidestep.sandbox import capabilities, landlock, namespaces, rlimits, seccomp, syscalls

NOBODY: Final = 65534
"""The user that an inspector of root's command line becomes."""
NICE: Final = 10
"""Added to the priority of the zygote. A proxy that wakes up while its inspector runs waits less for the processor than
with 5 (docs/performance.md); beside a proxy that is always busy an inspector still has a tenth of a processor."""
_DESCRIPTORS: Final = 16
_NAMES: Final = (
    "read", "write", "recvfrom", "sendto", "recvmsg", "sendmsg", "poll", "ppoll", "close", "mmap", "munmap", "mremap",
    "mprotect", "madvise", "brk", "futex", "getrandom", "clock_gettime", "gettimeofday", "time", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "exit", "exit_group", "getpid", "gettid",
    "getcwd", "sched_yield",
)  # fmt: skip
ALLOWED: Final = {name: syscalls.ALLOWED[name] for name in _NAMES}
"""What libmodsecurity, PCRE, libxml2 and Python call for a verdict: measured, and some for other C libraries."""


class Confinement(msgspec.Struct, frozen=True):
    """User and group id; `memory` in bytes of private writable memory, what the zygote has of it included."""

    uid: int
    memory: int


def program() -> bytes:
    """Assemble the filter, before the fork. Raises ConfigurationError for an architecture that is not supported."""
    return seccomp.assemble(os.uname().machine, allowed=ALLOWED)


def enclose() -> None:
    """Enter the empty room. Raises KernelError; the caller ends the process then."""
    _silence_input_and_output()
    namespaces.leave_networks()
    namespaces.empty_root(with_descriptors=False)


def _silence_input_and_output() -> None:
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
    except OSError as error:
        raise KernelError("dup2", error.errno or 0, doing="silencing the zygote of the inspectors") from error


def alone(*, memory: int, socket_fd: int) -> None:
    """Enclose and confine this process. Raises SidestepError; the caller ends it then."""
    filter_program, uid = program(), 0
    if os.geteuid() == 0:
        enclose()
        uid = NOBODY
    else:
        _silence_input_and_output()
    lock(Confinement(uid, memory), socket_fd=socket_fd, filter_program=filter_program)


def lock(confinement: Confinement, *, socket_fd: int, filter_program: bytes) -> None:
    """Confine this process, a child of an enclosed one. Raises KernelError, BugError; the caller ends it then.

    With user id 0 it stays who it is, and has to be somebody else than root already.
    """
    try:
        os.dup2(0, 2)
    except OSError as error:
        raise KernelError("dup2", error.errno or 0, doing="silencing the inspector") from error
    os.closerange(3, socket_fd)
    os.closerange(socket_fd + 1, 2**31 - 1)
    rlimits.apply(memory=confinement.memory, descriptors=_DESCRIPTORS, file_size=0)
    os.nice(NICE)
    if confinement.uid or os.geteuid() == 0:
        capabilities.become(confinement.uid)
    capabilities.forbid_new_privileges()
    landlock.deny_files()
    seccomp.install(filter_program)
