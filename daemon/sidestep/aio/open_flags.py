"""Flags of `os.open` that not every system has.

On Windows descriptors are not inherited and do not block, so O_CLOEXEC, O_NONBLOCK and O_NOCTTY have no counterpart
there. A link is not followed where O_NOFOLLOW exists; Windows requires a privilege to create one. O_BINARY is always
added where it exists: without it Windows changes line ends of whatever is read or written.
"""

from __future__ import annotations

import os


def open_flags(*names: str) -> int:
    """Return the flags of these names that this system has, with O_BINARY."""
    flags = 0
    for name in (*names, "O_BINARY"):
        flags |= getattr(os, name, 0)
    return flags
