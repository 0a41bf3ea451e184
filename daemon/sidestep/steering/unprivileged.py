"""Drops every capability of this process for good, without changing its user. Used by the compiler child only.

The compiler reads headers and sources and writes to a pipe, which takes no capability. no_new_privs keeps execve from
granting any again, also to root (Documentation/userspace-api/no_new_privs.rst). The bounding set is emptied first,
because that takes CAP_SETPCAP, and only if the process has it. The result is read back and checked.
"""

from __future__ import annotations

import ctypes

from sidestep.model.errors import BugError, KernelError

_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 (linux/capability.h): two words for each of the three sets."""
_LAST_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)


def drop_capabilities() -> None:
    """Empty all five sets of capabilities and set no_new_privs. Raises KernelError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(_LAST_CAPABILITY + 1):
        present = _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
        if present < 0:
            break  # EINVAL: beyond the last capability of this kernel
        if present and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # EPERM: without CAP_SETPCAP; no_new_privs keeps the set from giving anything
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    header, sets = (ctypes.c_uint32 * 2)(_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if _libc.capset(header, sets) < 0:
        raise KernelError("capset", ctypes.get_errno(), doing="dropping the compiler's capabilities")
    if _libc.capget(header, sets) < 0 or any(sets):
        raise BugError("the compiler has capabilities left after they were dropped")


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) < 0:
        raise KernelError("prctl", ctypes.get_errno(), doing="dropping the compiler's capabilities")
