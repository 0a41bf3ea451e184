"""The parts of one relayed HTTP/2 connection, and the state they share.

    FromClient  reads the client: frames to the app, requests that a rule wants to `Diversion`
    FromApp     reads the app: frames to the client
    ToClient    writes the client: the app's frames, ours at their boundaries, the connection window
    Diversion   exchanges and the HTTP/2 connections to handlers (`Link`) on which they are answered
    Http2Taps   copies of requests, on connections of their own
    Streams     whose each stream id is

`mixed` is false until the first stream is diverted, and true ever after; with a rewriter it is true from the client's
preface on. While it is false both directions carry the
original bytes and the connection can become a wire at any point; every entry of the parts' own docstrings that says
"once diverted" means `mixed`.

SETTINGS belong to their sender and hold from the other side's ACK on: `_client_settings` are those of the client that
the app has not acknowledged yet (they bind what is injected), `_app_settings` those of the app (they bind the client's
HPACK encoder, which is decoded here, and the windows that it has of its streams). The app's INITIAL_WINDOW_SIZE counts
for diverted streams from the moment at which the client may have read it if that gives it more, and from its ACK on if
that gives it less.

The relayed app connection has three states:

    open      frames pass
    retired   the app ended it while it was idle only because handlers answer the client (`only_looks_idle`). The client
              is not told: PINGs and SETTINGS are answered here, requests for the app go to its second connection
    over      the app ended it in any other case, or is not there any more when a request is for it: the client has been
              told with GOAWAY, and its connection ends with the last diverted stream

    open -- ends while it only looks idle --> retired -- second connection cannot be opened --> over
      '-- ends in any other case ----------------------------------------------------------^
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from sidestep.engine.http2.diversion import Diversion
from sidestep.engine.http2.from_app import FromApp
from sidestep.engine.http2.from_client import FromClient
from sidestep.engine.http2.streams import CLIENT_ENDED, Streams
from sidestep.engine.http2.to_client import ToClient
from sidestep.engine.mirror.http2_copies import Http2Taps
from sidestep.engine.relay import Ending
from sidestep.engine.rewriting import RewritingMemo
from sidestep.protocols.hpack import Memo
from sidestep.protocols.http2 import (
    DEFAULT_LIMITS,
    SETTINGS_ACK,
    WINDOW,
    ErrorCode,
    Http2Error,
    Setting,
    goaway,
)

if TYPE_CHECKING:
    from sidestep.engine.mirror.copies import Ledger
    from sidestep.engine.relay import Relay
    from sidestep.engine.rewriting import Rewriter
    from sidestep.policy.route import SteeredPort
    from sidestep.protocols.http2 import Http2Limits

Entries = tuple[tuple[int, int], ...]

INITIAL: Final = Setting.INITIAL_WINDOW_SIZE
REQUESTS: Final = Memo(DEFAULT_LIMITS.memo)
"""Request blocks seen by any connection of this process: a pure cache, bounded in bytes."""


class Connection:
    """See the module."""

    __slots__ = (
        "_app_settings",
        "_client_settings",
        "_initial",
        "app",
        "app_over",
        "app_owes",
        "budget",
        "client",
        "client_owes",
        "diversion",
        "from_app",
        "from_client",
        "limits",
        "memo",
        "mixed",
        "port",
        "request_window",
        "retired",
        "rewrites",
        "streams",
        "table_followed",
        "taps",
        "to_client",
    )

    def __init__(
        self, relay: Relay, port: SteeredPort, limits: Http2Limits, ledger: Ledger, rewriter: Rewriter | None = None
    ) -> None:
        self.port = port
        self.limits = limits
        memo = REQUESTS if limits is DEFAULT_LIMITS else Memo(limits.memo)
        self.memo = memo if rewriter is None else RewritingMemo(memo, rewriter)
        self.rewrites = rewriter is not None
        self.client = relay.client
        self.app = relay.app
        self.budget = ledger.budget
        self.mixed = False
        self.table_followed = True
        """The app has not allowed the client an HPACK table that is too large for us."""
        self._initial = WINDOW
        """The window of a new stream, as the app gave it and the client has acknowledged."""
        self.request_window = WINDOW
        """The window that the client may believe a new stream to have."""
        self.app_over = False
        """The app has finished sending, or is lost. Also true while `retired`."""
        self.retired = False
        self.app_owes = False
        """Too many SETTINGS of the client wait for the app's ACK."""
        self.client_owes = False
        """Too many SETTINGS of the app wait for the client's ACK."""
        self.streams = Streams(limits.remembered)
        self.taps = Http2Taps(relay, ledger, limits, port=port.number)
        self.to_client = ToClient(relay.client, self.app_acknowledged)
        self.diversion = Diversion(relay, self)
        self.from_client = FromClient(self)
        self.from_app = FromApp(self)
        self._client_settings: deque[Entries] = deque()
        self._app_settings: deque[Entries] = deque()

    def to_app(self, data: bytes) -> None:
        """Write to the app, unless it is over."""
        if data and not self.app.ending:
            self.app.write(data)

    def write_to_client(self, data: bytes, *, middle: bool) -> None:
        """Write bytes of the app; `middle` when they end inside a frame or header block."""
        if data:
            self.client.write(data)
        self.to_client.middle = middle

    def may_divert(self, stream: int) -> bool:
        """Whether a response to this new stream can still be injected.

        Raises Http2Error when the client's HPACK table may be larger than we follow.
        """
        if not self.table_followed and not self.mixed:
            raise Http2Error("h2-table")
        last = self.streams.goaway
        is_over = self.app_over and not self.retired
        return not self.client.ending and not is_over and (last is None or stream <= last)

    # --- an app that ends its connection ----------------------------------------------------------------------------

    @property
    def only_looks_idle(self) -> bool:
        """Whether nothing is asked of the app because handlers answer its client: the last new stream was diverted."""
        streams = self.streams
        return (
            self.mixed
            and self.from_app.is_http2
            and not (self.app_over or self.app.ending or self.client.ending)
            and not (streams.relayed or self.to_client.middle or self.to_client.queue)
            and 0 < streams.highest == streams.highest_diverted
            and streams.goaway is None
        )

    def retire_app(self) -> None:
        """The app ends a connection that only looks idle. Raises Http2Error as `app_acknowledged`."""
        self.app_over = self.retired = True
        self.app.end(Ending.CLOSE)
        while self._client_settings:
            self.to_client.control(SETTINGS_ACK)
            self.app_acknowledged()

    def app_is_gone(self) -> None:
        """The app's second connection cannot be opened: when there is no other, tell the client to go elsewhere."""
        if self.retired:
            self.retired = False
            if self.streams.goaway is None:
                self.streams.goaway = self.streams.highest
                self.to_client.control(goaway(self.streams.highest, ErrorCode.NO_ERROR))

    # --- SETTINGS ---------------------------------------------------------------------------------------------------

    def client_settings(self, entries: Entries) -> None:
        """SETTINGS of the client pass. Raises Http2Error when too many wait for their ACK."""
        self._remember(self._client_settings, entries)

    def app_settings(self, entries: Entries) -> None:
        """SETTINGS of the app pass. Raises Http2Error when too many wait for their ACK."""
        self._remember(self._app_settings, entries)
        for key, value in entries:
            if key == Setting.HEADER_TABLE_SIZE:
                self.table_followed = value <= self.limits.table
        self._reckon_windows()

    def _remember(self, pending: deque[Entries], entries: Entries) -> None:
        if not self.mixed and len(pending) >= self.limits.pending_settings:
            raise Http2Error("h2-settings", ErrorCode.ENHANCE_YOUR_CALM)
        pending.append(entries)
        self._reckon_debts()

    def _reckon_debts(self) -> None:
        most = self.limits.pending_settings
        self.app_owes = len(self._client_settings) > most
        self.client_owes = len(self._app_settings) > most

    def _reckon_windows(self) -> None:
        pending = [value for entries in self._app_settings for key, value in entries if key == INITIAL]
        change = max(self._initial, *pending) - self.request_window if pending else self._initial - self.request_window
        if change:
            self.request_window += change
            for exchange in self.streams.exchanges.values():
                exchange.room += change

    def app_acknowledged(self) -> None:
        """The app's ACK of the client's oldest SETTINGS passes. Raises Http2Error on a window overflow."""
        if self._client_settings:
            self.to_client.apply(self._client_settings.popleft(), self.streams.exchanges)
            self._reckon_debts()

    def client_acknowledged(self) -> None:
        """The client's ACK of the app's oldest SETTINGS passes."""
        if self._app_settings:
            for key, value in self._app_settings.popleft():
                if key == Setting.HEADER_TABLE_SIZE:
                    self.from_client.allow(value)
                elif key == Setting.INITIAL_WINDOW_SIZE:
                    self._initial = value
            self._reckon_windows()
            self._reckon_debts()

    def upgraded(self, entries: Entries) -> None:
        """The connection began as HTTP/1.1: stream 1 is the app's, the client's SETTINGS came with its request."""
        self.to_client.apply(entries, {})
        self.streams.highest = 1
        self.streams.relayed[1] = CLIENT_ENDED
