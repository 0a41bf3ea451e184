"""Which streams exist on a relayed HTTP/2 connection, and whose they are.

An odd (client's) id is in one of four places:

    relayed     open, and the app has seen it: which of its two sides have ended
    exchanges   diverted, not over: the app has never seen the id
    gone        diverted and over: late frames of the client must not reach the app, which would take a frame on an id
                that it knows nothing of for a connection error. The last `remembered` ids are kept; of older ones only
                the highest is known (`forgotten`); a late frame on an id up to there is dropped whoever had it: on a
                stream that ended this long ago WINDOW_UPDATE and RST_STREAM mean nothing
    nowhere     idle (above `highest`), or relayed and over: frames pass, the app judges them

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
        """One side of a relayed stream has ended; unknown ids are left alone."""
        state = self.relayed.get(stream)
        if state is None:
            return
        if state | side == BOTH_ENDED:
            del self.relayed[stream]
        else:
            self.relayed[stream] = state | side

    def is_gone(self, stream: int) -> bool:
        """Whether frames on this id belonged to a diverted stream that is over."""
        if stream in self.gone:
            return True
        return stream <= self.forgotten and stream & 1 == 1 and stream not in self.relayed

    def divert(self, exchange: Exchange) -> None:
        """A new stream is diverted."""
        self.exchanges[exchange.stream] = exchange
        self.highest_diverted = exchange.stream

    def decline(self, stream: int) -> None:
        """A new stream is neither relayed nor diverted: it has been answered."""
        self.highest = self.highest_diverted = stream
        self.finish(stream)

    def finish(self, stream: int) -> None:
        """A diverted stream is over."""
        self.exchanges.pop(stream, None)
        self.gone[stream] = None
        if len(self.gone) > self.remembered:
            oldest = next(iter(self.gone))
            del self.gone[oldest]
            self.forgotten = max(self.forgotten, oldest)
