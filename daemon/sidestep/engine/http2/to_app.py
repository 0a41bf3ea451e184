"""What is written to the app on the relayed connection.

On a transparent connection these are the client's bytes, and they still are on a mixed one while the app's HPACK
decoder is `in_step` with the client's encoder:

    in step      its table is the client's: blocks pass as they came
      | it misses a block that changes the table, or size updates
      v
    out of step  blocks are written anew, for the table that the app has (`DynamicTable`); fields that the client has
      |          put into its own table are put into this one as well, no others (RFC 7541 section 7.1)
      | the two tables are the same again, and no size update is owed
      v
    in step      as before

Table size updates of a block that the app does not get are owed to it and begin the next one (section 4.2).

Never falling out of step is the usual case where filters are about paths: encoders of curl, Envoy, nginx and browsers
leave paths out of their tables, so a diverted request like others before it adds nothing. When it is the first one of
a connection, the next relayed one usually brings what it has added. A field that only diverted requests have keeps the
tables apart until it is evicted from the client's.

Where blocks are rewritten, they are always written anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.protocols.hpack import INITIAL, size_updates
from sidestep.protocols.hpack_table import DynamicTable
from sidestep.protocols.http2 import header_frames

if TYPE_CHECKING:
    from sidestep.engine.leg import Leg
    from sidestep.protocols.hpack import Block, State
    from sidestep.protocols.hpack_static import Field

Updates = tuple[int, int] | None
"""Table size updates: the smallest and the last of them, in bytes."""

_NO_FIELDS: Final[frozenset[Field]] = frozenset()
_UNUSED: Final = DynamicTable(INITIAL)
"""Stands for the app's table while that is the client's."""


class ToApp:
    """The writing end towards the app. With `rewrites` it is never in step."""

    __slots__ = ("_earlier", "_missed", "_owed", "_rewrites", "_state", "_table", "in_step", "leg")

    def __init__(self, leg: Leg, *, rewrites: bool = False) -> None:
        self.leg = leg
        self.in_step = not rewrites
        """The app's decoder is in the state of the client's encoder: blocks can pass as the bytes that came."""
        self._rewrites = rewrites
        self._table = DynamicTable(INITIAL) if rewrites else _UNUSED
        """The app's table while it is out of step."""
        self._state = INITIAL
        """The client's table after the last block, while the app's is out of step."""
        self._missed: State | None = None
        """The client's table after the last block that the app has missed, until a block is written."""
        self._earlier: frozenset[Field] = _NO_FIELDS
        """What that table held."""
        self._owed: Updates = None

    def write(self, data: bytes) -> None:
        """Write bytes, unless the app's connection is ending."""
        if data and not self.leg.ending:
            self.leg.write(data)

    def write_block(self, stream: int, block: Block, *, ends: bool, priority: bytes) -> None:
        """Write a header block for a decoder that is out of step."""
        table = self._table
        owed = _merge(self._owed, block.updates)
        written = b""
        if owed is not None:
            self._owed = None
            table.resize(*owed)
            written = size_updates(*owed)
        state = block.state
        new = _NO_FIELDS if state is self._state else frozenset(state.entries[-len(block.fields) :])
        self._state = state
        if self._missed is not None:
            self._earlier = frozenset(self._missed.entries)
            self._missed = None
        written += table.encode(block.fields, block.never, new=new, earlier=self._earlier)
        self.write(header_frames(stream, written, end_stream=ends, priority=priority))
        if not self._rewrites and table.equals(state):
            self.in_step = True
            self._table, self._state, self._earlier = _UNUSED, INITIAL, _NO_FIELDS

    def withhold(self, updates: Updates, *, before: State, after: State) -> None:
        """Note a block that the app does not get: its table size updates, and the client's table around it."""
        if after is not before:
            if self.in_step:
                self.in_step = False
                self._table = DynamicTable(before)
            self._owed = _merge(self._owed, updates)
            self._state = after
            self._missed = after


def _merge(owed: Updates, updates: Updates) -> Updates:
    """The table size updates of two blocks, the first of which was never sent."""
    if owed is None or updates is None:
        return owed or updates
    return min(owed[0], updates[0]), updates[1]
