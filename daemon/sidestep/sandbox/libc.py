"""The system calls of the sandbox that Python's `os` does not offer (until 3.12), through the C library.

Each function does what section 2 of the manual says of its name. It raises KernelError with the name of the call.
"""

from __future__ import annotations

import ctypes
import os

from sidestep.model.errors import KernelError

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x40000000
"""linux/mount.h and linux/sched.h."""

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def _check(result: int, call: str, doing: str = "") -> None:
    if result != 0:
        raise KernelError(call, ctypes.get_errno(), doing=doing)


def setns(fd: int, kind: int) -> None:
    """Join a namespace."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns", "entering the pod's namespace")


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount, or change a mount."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(result, "mount", f"mounting {target}")


def umount(target: str, flags: int) -> None:
    """Unmount."""
    _check(_libc.umount2(target.encode(), ctypes.c_int(flags)), "umount2")


def pivot_root(new_root: str, put_old: str) -> None:
    """Change the root; a call which glibc does not wrap."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_libc.syscall(ctypes.c_long(number), new_root.encode(), put_old.encode()), "pivot_root")


def prctl(option: int, argument: int = 0, address: int = 0, *, doing: str) -> int:
    """Control the process, with up to two arguments; returns its result. Raises KernelError for a negative one."""
    zero = ctypes.c_ulong(0)
    result = int(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), ctypes.c_ulong(address), zero, zero))
    if result < 0:
        raise KernelError("prctl", ctypes.get_errno(), doing=doing)
    return result


def capset(data: bytes) -> None:
    """Set the thread's capabilities: version 3, two triples of effective, permitted, inheritable words."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _check(_libc.capset(header, data), "capset")


def capget() -> bytes:
    """Return the thread's capabilities in the layout of `capset`."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(header, data), "capget")
    return data.raw
