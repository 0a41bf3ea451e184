"""What is written to the app on the relayed connection.

On a transparent connection these are the client's bytes, and they still are on a mixed one while the app's HPACK
decoder is `in_step` with the client's encoder: no block that the app has missed, and none that was rewritten, has
changed the client's table. From the first one that has, the decoder's context is another, for good. Then every block
for the app is written anew as literals without indexing, which need no context. Table size updates at the head of a
block go with it; those of a block that the app does not get are owed to it and begin the next one (RFC 7541 section
4.2).

Staying in step is the usual case where filters are about paths: encoders of curl, Envoy, nginx and browsers leave paths
out of their tables, so a diverted request like others before it adds nothing. A field that only diverted requests have
adds an entry when it comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.protocols.hpack import size_updates
from sidestep.protocols.http2 import header_frames

if TYPE_CHECKING:
    from sidestep.engine.leg import Leg
    from sidestep.protocols.hpack import Block, State

Updates = tuple[int, int] | None
"""Table size updates: the smallest and the last of them, in bytes."""


class ToApp:
    """The writing end towards the app."""

    __slots__ = ("_owed", "in_step", "leg")

    def __init__(self, leg: Leg, *, in_step: bool = True) -> None:
        self.leg = leg
        self.in_step = in_step
        """The app's decoder is in the state of the client's encoder: blocks can pass as the bytes that came."""
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

    def withhold(self, updates: Updates, *, before: State, after: State) -> None:
        """Note a block that the app does not get: its table size updates, and the state of its decoder around it."""
        self._owed = _merge(self._owed, updates)
        if after is not before:
            self.in_step = False


def _merge(owed: Updates, updates: Updates) -> Updates:
    """The table size updates of two blocks, the first of which was never sent."""
    if owed is None or updates is None:
        return owed or updates
    return min(owed[0], updates[0]), updates[1]
