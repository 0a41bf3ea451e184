"""Loads the `kubernetes` library by parts.

`import kubernetes` loads every part of both of its flavours: 27 MiB and 0.35 s of CPU on top of a daemon. The transport
of `kubernetes.aio` alone takes 9 MiB. Its two outer packages contain nothing but these imports, so they are entered
without them; each part is still the library's own module and imports what it needs itself.
"""

from __future__ import annotations

from sidestep.aio import unexecuted_package


def narrow() -> None:
    """Make later imports of parts of `kubernetes` load those parts only. Nothing happens when it is loaded already."""
    for name in ("kubernetes", "kubernetes.aio"):
        unexecuted_package.enter(name)
