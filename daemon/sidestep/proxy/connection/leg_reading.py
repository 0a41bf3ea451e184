"""Reading a leg further than one read: before anything is written, and after its peer has broken off."""

from __future__ import annotations

from time import monotonic
from typing import Final

from sidestep.engine.leg import Leg
from sidestep.engine.relay import Relay
from sidestep.proxy.connection.backlog import BacklogShare
from sidestep.proxy.io.stream import Stream
from sidestep.proxy.mirror.whole_feed import WholeFeed

DRAIN_READS: Final = 16
"""Reads of one stream per event while the relay drains or reads come back full; then other streams get a turn."""
DRAIN_SECONDS: Final = 0.001
"""Seconds that these reads may take: 64 KiB in chunks of one byte would take 20 ms."""


def read_more(
    relay: Relay, leg: Leg, stream: Stream, *, whole: WholeFeed | None, backlog: BacklogShare, protocol: str
) -> bool:
    """Read on before anything is written: writes are merged, and large bodies need fewer events.

    Returns whether the leg is not to be read any more, so that its event mask has to change. Raises OSError when the
    stream is broken.
    """
    end = monotonic() + DRAIN_SECONDS
    for _ in range(DRAIN_READS):
        if not relay.reads(leg) or relay.done or relay.wired is not None:
            return True
        if backlog.budget.held and backlog.holds_up(relay, leg, protocol):
            return True
        data = stream.read()
        if not data:
            return False  # would block, or an end that the next event reports again
        if whole is not None:
            whole.read(leg, data)
        to = relay.passes(leg, data)
        if to is None:
            relay.receive(leg, data, leg.active)
        else:
            to.write(data)
        if (len(data) < stream.full and not relay.drain) or monotonic() > end:
            return False
    stream.grow()
    return False


def read_last(relay: Relay, leg: Leg, stream: Stream, *, whole: WholeFeed | None, now: float) -> None:
    """Read what arrived before a reset: a server that refuses an upload answers, and closes without reading it."""
    try:
        while relay.reads(leg) and not relay.done and (data := stream.read()):
            if whole is not None:
                whole.read(leg, data)
            relay.receive(leg, data, now)
    except OSError:
        pass
