"""Drops every privilege: the five capability sets, the user, and the ways to regain either (capabilities(7)).

The kernel forces the order: the bounding set and the securebits need CAP_SETPCAP, so they change before the user does.
The thread's own sets come last; then sets and ids are read back and compared.
"""

from __future__ import annotations

import os
import struct

from sidestep.model.errors import BugError, KernelError
from sidestep.sandbox import libc

_PR_SET_DUMPABLE, _PR_CAPBSET_READ, _PR_CAPBSET_DROP = 4, 23, 24
_PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 28, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_SECUREBITS = 0xEF
"""NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE and all locks, KEEP_CAPS off (linux/securebits.h)."""
_LAST_CAPABILITY = 63
_NOTHING = bytes(24)
_READ_SEARCH = 1 << 2
"""CAP_DAC_READ_SEARCH (linux/capability.h)."""


def become(uid: int) -> None:
    """Become user `uid`, in group `uid` only, without any capability, for good.

    Raises BugError for root and for privileges that are left, KernelError for a call that fails.
    """
    if uid <= 0:
        raise BugError(f"a confined process cannot run as user {uid}")
    _become(uid, uid, (), _NOTHING)


def become_reader(uid: int, gid: int, groups: tuple[int, ...], *, reads_all: bool) -> None:
    """Become a user, who may be root, in these groups, for good: without any capability, but with CAP_DAC_READ_SEARCH
    where `reads_all`.

    Raises BugError for privileges that are left, KernelError for a call that fails.
    """
    kept = _READ_SEARCH if reads_all else 0
    _become(uid, gid, groups, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _become(uid: int, gid: int, groups: tuple[int, ...], capabilities: bytes) -> None:
    _empty_bounding_set()
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, doing="dropping ambient capabilities")
    libc.prctl(_PR_SET_SECUREBITS, _SECUREBITS, doing="locking the securebits")
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise KernelError("setresuid", error.errno or 0, doing=f"becoming user {uid}") from error
    libc.capset(capabilities)
    if libc.capget() != capabilities or os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise BugError("privileges are left after they were dropped")


def forbid_new_privileges() -> None:
    """Set no_new_privs, and make the process undumpable: no core, no ptrace, /proc files of root. Raises
    KernelError."""
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, doing="setting no_new_privs")
    libc.prctl(_PR_SET_DUMPABLE, 0, doing="becoming undumpable")


def _empty_bounding_set() -> None:
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            present = libc.prctl(_PR_CAPBSET_READ, capability, doing="reading the bounding set")
        except KernelError:
            return  # EINVAL: beyond the last capability of this kernel.
        if present:
            libc.prctl(_PR_CAPBSET_DROP, capability, doing="dropping the bounding set")
