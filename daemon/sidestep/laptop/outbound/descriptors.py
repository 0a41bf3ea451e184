"""How many clients the limit of open files lets the proxy have (RLIMIT_NOFILE, getrlimit(2)).

The soft limit, often 1,024 and 256 on macOS, is raised as far as the hard one allows; the command behind `--` inherits
it. Windows has no such limit.
"""

from __future__ import annotations

from typing import Final

import msgspec

RESERVED: Final = 192
"""Descriptors for everything else: tunnels, the command behind `--`, the connection to an API server."""
EACH: Final = 2
"""Descriptors of a client: its connection, and a socket for datagrams."""


class Clients(msgspec.Struct, frozen=True):
    """How many may be there, and how many beside them that have not shown that they may. `told`: what to tell."""

    most: int
    unproven: int
    told: str = ""


def clients(most: int, unproven: int) -> Clients:
    """Raise the limit, and return what it has room for, at most so many."""
    wanted = RESERVED + EACH * most + unproven
    limit = _raised(wanted)
    if limit >= wanted:
        return Clients(most, unproven)
    unproven = min(unproven, limit // 8)
    fewer = max(1, (limit - RESERVED - unproven) // EACH)
    told = f"At most {fewer} clients use the proxy at once: a process may have {limit} files open here (ulimit -Hn)."
    return Clients(fewer, max(1, unproven), told)


def _raised(wanted: int) -> int:
    """Return the soft limit, or `wanted` where that or more is possible."""
    try:
        import resource
    except ImportError:  # Windows
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # macOS has a second limit, kern.maxfilesperproc
        return soft
    return most
