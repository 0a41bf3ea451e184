"""The system's words for an error, for the end of a sentence."""

from __future__ import annotations

import os


def os_reason(error: OSError) -> str:
    """Return them, in lower case.

    asyncio puts a text of its own into `strerror`, so the number decides. On Windows it is the other way round: its
    `strerror` is the system's, and the numbers of its sockets mean nothing to `os.strerror`.
    """
    if getattr(error, "winerror", None) is None and error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or str(error)).lower()
