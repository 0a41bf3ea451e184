"""Puts the TCP connections in a capture together again: segments in, what both ends said out.

Connections are followed from their SYN; data of others is counted in `Streams.midstream`. Bytes that come again
are left out, the first copy counts. Segments that come early wait for what is before them. When the other end has
acknowledged the missing bytes, or too much waits, or the capture ends, they are taken as lost: `Lost` says how many,
and what follows them is told. The number of connections, and of bytes and segments that wait, is bounded; work for a
segment is, too.

`sidestep.protocols.tcp_synthesis` makes what is read here without loss.
"""

from __future__ import annotations

from bisect import insort
from typing import Final

import msgspec

from sidestep.protocols.tcp_segments import ACK, FIN, RST, SYN, Segment

MAX_CONNECTIONS: Final = 65536
"""Connections that are followed at once; beyond it the one that began first is given up."""
MAX_WAITING: Final = 1 << 20
"""Bytes of one direction that wait for what is before them."""
MAX_SEGMENTS: Final = 512
"""Segments of one direction that wait."""
_FARTHEST: Final = 1 << 30
"""The largest window (RFC 7323 section 2.3): a segment farther ahead belongs to no window."""
_MODULUS: Final = 1 << 32

End = tuple[bytes, int]
"""A packed address and a port."""


class Connection(msgspec.Struct, frozen=True):
    """One connection; `number` counts from 0 in the order of their SYNs."""

    number: int
    client: End
    server: End


class Data(msgspec.Struct, frozen=True):
    """Bytes that one end said next."""

    connection: Connection
    from_client: bool
    data: bytes


class Lost(msgspec.Struct, frozen=True):
    """`count` bytes of one end are missing in the capture."""

    connection: Connection
    from_client: bool
    count: int


class Finished(msgspec.Struct, frozen=True):
    """One end said all it had to say (FIN)."""

    connection: Connection
    from_client: bool


class Over(msgspec.Struct, frozen=True):
    """The connection is over: both ends have finished, one was reset, or it is not followed any further."""

    connection: Connection


Event = Data | Lost | Finished | Over


class _Half:
    """One direction: the next sequence number, and what waits behind it as (position, order, payload, missing, fin).

    Positions count from the first byte and do not wrap.
    """

    __slots__ = ("acknowledged", "finished", "first", "next", "order", "size", "waiting")

    def __init__(self) -> None:
        self.first: int | None = None
        """Sequence number of position 0, None before the SYN."""
        self.next = 0
        self.acknowledged = 0
        self.waiting: list[tuple[int, int, bytes, int, bool]] = []
        self.size = 0
        self.order = 0
        self.finished = False

    def position(self, number: int) -> int:
        """The position of a sequence number: the one nearest to the next."""
        ahead = (number - (self.first or 0) - self.next) % _MODULUS
        return self.next + (ahead - _MODULUS if ahead >= _MODULUS // 2 else ahead)

    def keep(self, position: int, segment: Segment) -> None:
        self.order += 1
        insort(self.waiting, (position, self.order, segment.payload, segment.missing, bool(segment.flags & FIN)))
        self.size += len(segment.payload)

    def has_to_give_up(self) -> bool:
        """Whether what is missing before the first waiting segment will not come any more."""
        if not self.waiting or self.waiting[0][0] <= self.next:
            return False
        too_much = self.size > MAX_WAITING or len(self.waiting) > MAX_SEGMENTS
        return too_much or self.acknowledged >= self.waiting[0][0]


class _Followed:
    """A connection with both of its directions; `halves` by whether it is the client's."""

    __slots__ = ("connection", "halves")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.halves = {True: _Half(), False: _Half()}


class Streams:
    """All connections of a capture."""

    def __init__(self) -> None:
        self.midstream = 0
        """Segments with data that belong to no connection that is followed."""
        self._followed: dict[tuple[End, End], _Followed] = {}
        self._count = 0

    def feed(self, segment: Segment) -> list[Event]:
        """What became known by one segment."""
        found: list[Event] = []
        if segment.flags & SYN and not segment.flags & ACK:
            self._begin(segment, found)
        key, from_client = (segment.source, segment.destination), True
        if key not in self._followed:
            key, from_client = (segment.destination, segment.source), False
        followed = self._followed.get(key)
        if followed is None:
            self.midstream += bool(segment.payload or segment.missing)
            return found
        half, other = followed.halves[from_client], followed.halves[not from_client]
        if segment.flags & SYN and half.first is None:
            half.first = (segment.number + 1) % _MODULUS
        if half.first is None:
            self.midstream += bool(segment.payload or segment.missing)
            return found
        if segment.flags & ACK and other.first is not None:
            other.acknowledged = max(other.acknowledged, other.position(segment.acknowledged))
        if segment.payload or segment.missing or segment.flags & FIN:
            position = half.position(segment.number) + bool(segment.flags & SYN)
            if position - half.next < _FARTHEST:
                half.keep(position, segment)
        self._deliver(followed, from_client, found)
        self._deliver(followed, not from_client, found)
        if segment.flags & RST or (half.finished and other.finished):
            self._end(key, found)
        return found

    def finish(self) -> list[Event]:
        """The capture has ended: what still waits is told, with what is missing before it."""
        found: list[Event] = []
        for key in list(self._followed):
            self._end(key, found)
        return found

    def _begin(self, segment: Segment, found: list[Event]) -> None:
        """A SYN: a new connection, unless it is that of one which is followed already, sent again."""
        key = (segment.source, segment.destination)
        known = self._followed.get(key)
        if known is not None:
            if known.halves[True].first == (segment.number + 1) % _MODULUS:
                return
            self._end(key, found)
        elif len(self._followed) >= MAX_CONNECTIONS:
            self._end(next(iter(self._followed)), found)
        self._followed[key] = _Followed(Connection(self._count, *key))
        self._count += 1

    def _end(self, key: tuple[End, End], found: list[Event]) -> None:
        followed = self._followed.pop(key)
        for from_client, half in followed.halves.items():
            while half.waiting:
                self._skip(followed, from_client, found)
                self._deliver(followed, from_client, found)
        found.append(Over(followed.connection))

    @staticmethod
    def _skip(followed: _Followed, from_client: bool, found: list[Event]) -> None:
        """Take as lost what is missing before the first waiting segment."""
        half = followed.halves[from_client]
        gap = half.waiting[0][0] - half.next
        if gap > 0:
            found.append(Lost(followed.connection, from_client, gap))
            half.next += gap

    def _deliver(self, followed: _Followed, from_client: bool, found: list[Event]) -> None:
        """Tell what has no gap before it."""
        half = followed.halves[from_client]
        connection = followed.connection
        while half.waiting:
            if half.has_to_give_up():
                self._skip(followed, from_client, found)
            position, _, payload, missing, fin = half.waiting[0]
            if position > half.next:
                return
            half.waiting.pop(0)
            half.size -= len(payload)
            if half.finished:
                continue
            fresh = payload[half.next - position :]
            if fresh:
                found.append(Data(connection, from_client, fresh))
                half.next += len(fresh)
            end = position + len(payload) + missing
            if end > half.next:
                found.append(Lost(connection, from_client, end - half.next))
                half.next = end
            if fin and end == half.next:
                half.finished = True
                found.append(Finished(connection, from_client))
