"""What is written to the app on the relayed connection.

On a transparent connection these are the client's bytes. On a mixed one the app's HPACK decoder has missed blocks, so
every block for it is written anew as literals without indexing, which need no context. Table size updates at the head
of a block go with it; those of a block that the app does not get are owed to it and begin the next one (RFC 7541
section 4.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.protocols.hpack import size_updates
from sidestep.protocols.http2 import header_frames

if TYPE_CHECKING:
    from sidestep.engine.leg import Leg
    from sidestep.protocols.hpack import Block

Updates = tuple[int, int] | None
"""Table size updates: the smallest and the last of them, in bytes."""


class ToApp:
    """The writing end towards the app."""

    __slots__ = ("_owed", "leg")

    def __init__(self, leg: Leg) -> None:
        self.leg = leg
        self._owed: Updates = None

    def write(self, data: bytes) -> None:
        """Write bytes, unless the app's connection is ending."""
        if data and not self.leg.ending:
            self.leg.write(data)

    def write_block(self, stream: int, block: Block, *, ends: bool, priority: bytes) -> None:
        """Write a header block for a decoder that has missed others."""
        literal = block.literal
        owed = _merge(self._owed, block.updates)
        if owed is not None:
            self._owed = None
            literal = size_updates(*owed) + literal
        self.write(header_frames(stream, literal, end_stream=ends, priority=priority))

    def withhold(self, updates: Updates) -> None:
        """Note the table size updates of a block that the app does not get."""
        self._owed = _merge(self._owed, updates)


def _merge(owed: Updates, updates: Updates) -> Updates:
    """The table size updates of two blocks, the first of which was never sent."""
    if owed is None or updates is None:
        return owed or updates
    return min(owed[0], updates[0]), updates[1]
