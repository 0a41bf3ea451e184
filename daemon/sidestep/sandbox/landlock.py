"""Takes access to files from this process, whatever it may still be able to name (landlock(7)).

A second lock behind an empty root, or behind a user with few rights: it holds for files that are reached by a
descriptor or by a way out of the root. Kernels before 5.13, and those that were started without Landlock, do not have
it; the functions say so.
"""

from __future__ import annotations

import ctypes
import errno
import os

from sidestep.model.errors import KernelError

_CREATE_RULESET, _RESTRICT_SELF = 444, 446
"""The same numbers on x86_64 and aarch64."""
_CREATE_RULESET_VERSION = 1
_ACCESSES = (13, 14, 15)
"""How many kinds of access to files the versions 1, 2 and 3 of the interface know (LANDLOCK_ACCESS_FS_*)."""

_READING = 1 << 2 | 1 << 3
"""LANDLOCK_ACCESS_FS_READ_FILE and LANDLOCK_ACCESS_FS_READ_DIR."""

_libc = ctypes.CDLL(None, use_errno=True)


def deny_files() -> bool:
    """Deny all access to files for good; no_new_privs must be set. Returns False where there is no Landlock.

    Raises KernelError.
    """
    return _deny(~0)


def deny_writing() -> bool:
    """Deny to write, make, remove, rename and execute files, as `deny_files` does; reading them stays."""
    return _deny(~_READING)


def _deny(accesses: int) -> bool:
    version = _libc.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(_CREATE_RULESET_VERSION)
    )
    if version < 1:
        number = ctypes.get_errno()
        if number in {errno.ENOSYS, errno.EOPNOTSUPP}:
            return False
        raise KernelError("landlock_create_ruleset", number, doing="asking for Landlock")
    handled = ctypes.c_uint64(accesses & ((1 << _ACCESSES[min(version, len(_ACCESSES)) - 1]) - 1))
    ruleset = _libc.syscall(ctypes.c_long(_CREATE_RULESET), ctypes.byref(handled), ctypes.c_size_t(8), ctypes.c_uint(0))
    if ruleset < 0:
        raise KernelError("landlock_create_ruleset", ctypes.get_errno(), doing="denying access to files")
    try:
        if _libc.syscall(ctypes.c_long(_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint(0)) != 0:
            raise KernelError("landlock_restrict_self", ctypes.get_errno(), doing="denying access to files")
    finally:
        os.close(ruleset)
    return True
