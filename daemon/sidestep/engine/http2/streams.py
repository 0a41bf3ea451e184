"""Which streams exist on a relayed HTTP/2 connection, and whose they are.

An odd (client's) id is in one of five states:

    idle        above `highest`
    relayed     open, and the app has seen it; the value says which of its two sides have ended
    diverted    in `exchanges`: open, and the app has never seen the id
    gone        diverted and over. Late frames of the client must not reach the app, which would take a frame on an id
                that it does not know for a connection error
    closed      relayed and over: frames pass, the app judges them

    idle -- request for the app --> relayed -- both sides ended, or reset --> closed
    idle -- request for a rule, or for a retired app --> diverted -- over --> gone
    idle -- refused or answered by the relay (`decline`) --> gone

The last `remembered` gone ids are kept one by one; of older ones only the highest is known (`forgotten`). A late frame
on an id up to there is dropped whatever its state was: WINDOW_UPDATE and RST_STREAM mean nothing on a stream that ended
this long ago.

Ids are used in rising order, so `highest_diverted` and a stream's id tell what a GOAWAY of the app leaves out. Even ids
are pushes of the app; they pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange

CLIENT_ENDED: Final = 1
APP_ENDED: Final = 2
BOTH_ENDED: Final = 3


class Streams:
    """The streams of one connection; see the module."""

    __slots__ = ("exchanges", "forgotten", "goaway", "gone", "highest", "highest_diverted", "relayed", "remembered")

    def __init__(self, remembered: int) -> None:
        self.relayed: dict[int, int] = {}
        self.exchanges: dict[int, Exchange] = {}
        self.gone: dict[int, None] = {}
        self.remembered = remembered
        self.forgotten = 0
        self.highest = 0
        self.highest_diverted = 0
        self.goaway: int | None = None
        """Last stream id of the GOAWAY that the client has been sent."""

    def ended(self, stream: int, side: int) -> None:
        """Learn that one side (or both) of a relayed stream has ended; other ids are left alone."""
        state = self.relayed.get(stream)
        if state is None:
            return
        if state | side == BOTH_ENDED:
            del self.relayed[stream]
        else:
            self.relayed[stream] = state | side

    def is_gone(self, stream: int) -> bool:
        """Whether the stream was diverted and is over, so that its frames are dropped."""
        if stream in self.gone:
            return True
        return stream <= self.forgotten and stream & 1 == 1 and stream not in self.relayed

    def divert(self, exchange: Exchange) -> None:
        """Note a new stream as diverted."""
        self.exchanges[exchange.stream] = exchange
        self.highest_diverted = exchange.stream

    def decline(self, stream: int) -> None:
        """Note a new stream as gone: the relay has refused or answered it."""
        self.highest = self.highest_diverted = stream
        self.finish(stream)

    def finish(self, stream: int) -> None:
        """Note a diverted stream as gone."""
        self.exchanges.pop(stream, None)
        self.gone[stream] = None
        if len(self.gone) > self.remembered:
            oldest = next(iter(self.gone))
            del self.gone[oldest]
            self.forgotten = max(self.forgotten, oldest)
