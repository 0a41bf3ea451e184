"""Tells the mirror the bytes of a whole connection: what was read from the client, and what was sent to it.

Only for connections that somebody mirrors whole: all others have no `WholeFeed`. What the client is sent is told when
it is queued for its socket; `_told` counts the bytes that still wait there.
"""

from __future__ import annotations

from sidestep.engine.leg import Leg
from sidestep.engine.mirror.producer import Mirror
from sidestep.proxy.io.leg_io import LegIO
from sidestep.proxy.io.stream import Stream


class WholeFeed:
    """One per connection that is mirrored whole. Other legs than the client's are of no interest."""

    __slots__ = ("_client", "_mirror", "_told")

    def __init__(self, mirror: Mirror, client: Leg) -> None:
        self._mirror = mirror
        self._client = client
        self._told = 0

    def read(self, leg: Leg, data: bytes) -> None:
        """Bytes were read."""
        if leg is self._client:
            self._mirror.client_data(data)

    def ended(self, leg: Leg) -> None:
        """The peer has finished sending."""
        if leg is self._client:
            self._mirror.client_end()

    def lost(self, leg: Leg) -> None:
        """The peer's connection broke."""
        if leg is self._client:
            self._mirror.client_lost()

    def passed_on(self, leg: Leg, data: bytes) -> None:
        """Bytes were written past the queue, which was empty; what did not fit is queued now."""
        if leg is self._client and self._mirror.hears_server:
            self._mirror.server_data(data)
            self._told = leg.queued

    def write(self, io: LegIO, stream: Stream) -> bool:
        """As `LegIO.write`; what is written for the first time is told. Raises OSError when the stream breaks."""
        leg = io.leg
        if leg is not self._client or not self._mirror.hears_server:
            return io.write(stream)
        if leg.queued > self._told:
            self._mirror.server_data(b"".join(leg.out)[self._told :])
        is_all = io.write(stream)
        self._told = leg.queued
        return is_all

    def finished(self, leg: Leg) -> None:
        """The peer was sent the end."""
        if leg is self._client:
            self._mirror.server_end()
