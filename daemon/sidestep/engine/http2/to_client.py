"""What is written to the client: the app's frames, and on a mixed connection frames of ours between them.

**Boundaries.** The app's bytes are cut through, so the client may have got only a part of one of the app's frames, or a
HEADERS without its CONTINUATION (`middle`). Nothing else may be written there: control frames and responses of diverted
streams wait for the next boundary.

**The connection window.** The app counts a window for the client; the relay spends it too. Two numbers follow it:

    window  bytes that the client still takes: 65,535, less every byte of DATA written, plus every credit
    debt    bytes of diverted responses that no credit has made good yet

    invariant: window = (the window in the app's eyes) + (the app's DATA that waits in the queue) - debt

A credit of the client first pays the debt; only the rest goes on to the app. So the app's view falls behind by what the
relay spent, and is never ahead. Until the app has learnt that, it may send more than the client takes: that waits in
`queue`.

**The HPACK context.** Responses of diverted streams are literals without indexing and leave the client's table as the
app believes it to be. After the app has acknowledged a lower SETTINGS_HEADER_TABLE_SIZE the client insists that the
next block begins with a table size update (RFC 7541 section 4.2). If that next block is ours, it carries the update
(`_owed`), and so do ours after it, until a block of the app's own has begun. The smallest value owed is enough: the
client's table may only be smaller than the app thinks until the app's own update, which it owes by the same rule,
corrects it; and an app that owes none uses no more than that value already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.app_queue import AppQueue
from sidestep.engine.http2.exchange import ResponseState
from sidestep.engine.mirror.events import Answerer
from sidestep.protocols.hpack import DEFAULT_CAPACITY, Block, size_updates
from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    FRAME,
    STREAM,
    WINDOW,
    ErrorCode,
    Http2Error,
    Setting,
    frame,
    header_frames,
)

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.http2.feed import Http2Feed
    from sidestep.engine.http2.pending_settings import Entries, PendingSettings
    from sidestep.engine.http2.state import ConnectionState
    from sidestep.engine.leg import Leg

NOTHING: Final = -1


class ToClient:
    """The writing end towards the client."""

    __slots__ = (
        "_feed",
        "_initial",
        "_owed",
        "_ready",
        "_settings",
        "_state",
        "_table",
        "_waiting",
        "debt",
        "delivered",
        "injected",
        "leg",
        "middle",
        "queue",
        "waiting",
        "window",
    )

    def __init__(self, leg: Leg, state: ConnectionState, settings: PendingSettings, feed: Http2Feed) -> None:
        self.leg = leg
        self._feed = feed
        self._state = state
        self._settings = settings
        self.window = WINDOW
        self.debt = 0
        self.injected = False
        """A part of a diverted response was written since a PING of the client was last answered."""
        self.middle = False
        self.queue = AppQueue()
        self.delivered: list[Exchange] = []
        """Exchanges whose response was written to the end since the owner last looked."""
        self._initial = WINDOW
        self._owed = NOTHING
        self._table = DEFAULT_CAPACITY
        self._waiting: list[bytes] = []
        self.waiting = 0
        """Bytes of control frames that wait for a boundary."""
        self._ready: dict[Exchange, None] = {}

    # --- the client's settings, credits ---------------------------------------------------------------------------

    @property
    def initial_window(self) -> int:
        """Bytes that the client takes on a new stream."""
        return self._initial

    def app_acknowledged(self) -> None:
        """Apply the client's oldest SETTINGS, whose ACK passes. Raises Http2Error on a window overflow."""
        self.apply(self._settings.acknowledged_by_app())

    def apply(self, entries: Entries) -> None:
        """Let SETTINGS of the client bind what is written here. Raises Http2Error on a window overflow."""
        for key, value in entries:
            if key == Setting.INITIAL_WINDOW_SIZE:
                change = value - self._initial
                self._initial = value
                for exchange in self._state.streams.exchanges.values():
                    self._widen(exchange, change)
            elif key == Setting.HEADER_TABLE_SIZE:
                if value < self._table:
                    self._owed = value if self._owed == NOTHING else min(self._owed, value)
                self._table = value

    def block_begins(self) -> None:
        """Learn that a header block of the app is on its way to the client; it carries what was owed."""
        self._owed = NOTHING

    def credit(self, increment: int) -> int:
        """Take `increment` bytes of connection window from the client. Returns how many go on to the app."""
        self.window += increment
        paid = min(increment, self.debt)
        self.debt -= paid
        return increment - paid

    def credit_stream(self, exchange: Exchange, increment: int) -> None:
        """Take `increment` bytes of window for a diverted stream. Raises Http2Error on an overflow."""
        self._widen(exchange, increment)

    def _widen(self, exchange: Exchange, change: int) -> None:
        exchange.window += change
        if exchange.window > STREAM:
            raise Http2Error("h2-window", ErrorCode.FLOW_CONTROL_ERROR)
        if exchange.response or exchange.response_ended:
            self._ready[exchange] = None

    # --- writing ----------------------------------------------------------------------------------------------------

    def pass_on(self, data: bytes, *, middle: bool) -> None:
        """Write bytes of the app; `middle` when they end inside a frame or a header block."""
        if data:
            self.leg.write(data)
        self.middle = middle

    def control(self, data: bytes) -> None:
        """Write a control frame at the next boundary."""
        if self.leg.ending:
            return
        if self.middle:
            self._waiting.append(data)
            self.waiting += len(data)
        else:
            self.leg.write(data)

    def ready(self, exchange: Exchange) -> None:
        """Learn that the exchange has something for the client."""
        self._ready[exchange] = None

    def forget(self, exchange: Exchange) -> None:
        """Learn that the exchange has nothing for the client any more."""
        self._ready.pop(exchange, None)

    @property
    def wants_boundary(self) -> bool:
        """Whether frames of ours wait for a boundary."""
        return bool(self._waiting or self._ready)

    def pump(self) -> None:
        """At a boundary, write control frames, then the app's queue, then diverted responses, a frame of each in turn.

        Raises Http2Error when frames of the app in the queue turn out to be malformed.
        """
        if self.middle or self.leg.ending:
            return
        for data in self._waiting:
            self.leg.write(data)
        self._waiting.clear()
        self.waiting = 0
        self._flush()
        progress = bool(self._ready)
        while progress:
            progress = False
            for exchange in [*self._ready]:
                progress |= self._inject(exchange)

    def _flush(self) -> None:
        queue = self.queue
        while queue:
            out: list[bytes] = []
            self.window = queue.flush(self.window, out)
            for data in out:
                self.leg.write(data)
            if queue.passed_block:
                self._owed = NOTHING
            if not queue.passed_ack:
                break
            self.app_acknowledged()

    def _inject(self, exchange: Exchange) -> bool:
        """Write one frame of a response. Returns False when nothing may be written now.

        An exchange stays among the ready ones while only the connection window holds it back.
        """
        if exchange.response_held:
            del self._ready[exchange]
            return False
        items = exchange.response
        self.injected = True
        if not items:
            del self._ready[exchange]
            if exchange.response_ended and not exchange.delivered:
                self.leg.write(frame(DATA, END_STREAM, exchange.stream))
                if self._feed.responses:
                    self._feed.response_end(exchange.stream)
                self._end(exchange)
            return False
        item = items[0]
        if isinstance(item, Block):
            items.popleft()
            ends = exchange.response_ended and not items
            self.leg.write(header_frames(exchange.stream, self.with_size_update(item.literal), end_stream=ends))
            if exchange.stream in self._feed.responses:
                self._feed.response_block(exchange.stream, _answerer(exchange), item, ends=ends)
        else:
            size = min(self.window, exchange.window, FRAME)
            if size <= 0:
                if exchange.window <= 0:
                    del self._ready[exchange]
                return False
            if len(item) <= size:
                items.popleft()
                size = len(item)
            else:
                items[0] = item[size:]
                item = item[:size]
            self.window -= size
            self.debt += size
            exchange.window -= size
            exchange.response_size -= size
            exchange.update_charge()
            ends = exchange.response_ended and not items
            self.leg.write(frame(DATA, END_STREAM if ends else 0, exchange.stream, item))
            if exchange.stream in self._feed.responses:
                self._feed.response_data(exchange.stream, item)
                if ends:
                    self._feed.response_end(exchange.stream)
            if exchange.link is not None:
                exchange.link.passed_on(exchange, size)
        if ends:
            self._end(exchange)
        return True

    def with_size_update(self, block: bytes) -> bytes:
        """A header block of ours, preceded by the table size update that the client is owed."""
        return block if self._owed == NOTHING else size_updates(self._owed, self._owed) + block

    def _end(self, exchange: Exchange) -> None:
        exchange.response_state = ResponseState.DELIVERED
        self._ready.pop(exchange, None)
        self.delivered.append(exchange)


def _answerer(exchange: Exchange) -> Answerer:
    if exchange.link is None:
        return Answerer.SIDESTEP
    return Answerer.APP if exchange.to_app else Answerer.HANDLER
