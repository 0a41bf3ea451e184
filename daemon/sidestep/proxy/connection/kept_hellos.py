"""ClientHellos that may be asked for: of connections of which nothing was shown yet, within one bound of the process.

    kept         its bytes count; `take` returns them once
    taken, or    nothing counts any more; `take` returns b""
    given up

Invariant: what is kept is together never larger than the bound. The oldest are given up for new ones, since what is
shown of a connection is mostly shown soon after its handshake. What is larger than `LARGEST` is not kept at all.
"""

from __future__ import annotations

from typing import Final

BOUND: Final = 1 << 20
"""Bytes of all ClientHellos that one process keeps."""
LARGEST: Final = 1 << 13
"""Bytes of one. Those of browsers have 2 KiB, mostly a key share for a hybrid of X25519 and ML-KEM."""


class KeptHello:
    """One ClientHello, as long as there is room for it."""

    __slots__ = ("_hellos", "_records")

    def __init__(self, hellos: KeptHellos, records: bytes) -> None:
        self._hellos = hellos
        self._records = records

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._records)

    def take(self) -> bytes:
        """The records that the ClientHello came in, the first time; b"" later, or if it was given up."""
        records = self._records
        if records:
            self._hellos.release(self)
            self._records = b""
        return records


class KeptHellos:
    """Those of a process."""

    def __init__(self, *, bound: int = BOUND, largest: int = LARGEST) -> None:
        self._bound = bound
        self._largest = largest
        self._kept: dict[KeptHello, None] = {}
        self.size = 0
        """Bytes that are kept."""

    def keep(self, records: bytes) -> KeptHello | None:
        """Keep the records of one, or None."""
        if not 0 < len(records) <= min(self._largest, self._bound):
            return None
        while self.size + len(records) > self._bound:
            next(iter(self._kept)).take()
        kept = KeptHello(self, records)
        self._kept[kept] = None
        self.size += kept.size
        return kept

    def release(self, kept: KeptHello) -> None:
        """It was taken, or is given up."""
        del self._kept[kept]
        self.size -= kept.size
