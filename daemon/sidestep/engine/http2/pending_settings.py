"""SETTINGS that one side has sent and the other has not acknowledged yet.

SETTINGS belong to their sender and hold from the other side's ACK on:

    of the client   bind what the relay writes to the client; they take effect when the app's ACK passes
    of the app      bind the client's HPACK encoder, which is decoded here, and the windows that the client has of its
                    streams; they take effect when the client's ACK passes

The app's INITIAL_WINDOW_SIZE counts for diverted streams at the later of the two moments if it lowers the window, and
at the earlier one if it raises it: `request_window` is the largest window that the client may believe to have.

More than `Http2Limits.pending_settings` of one side: a transparent connection fails; on a mixed one their sender is not
read (`app_owes`, `client_owes`) until enough of them are acknowledged.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from sidestep.protocols.http2 import WINDOW, ErrorCode, Http2Error, Setting

if TYPE_CHECKING:
    from sidestep.engine.http2.request_decoder import RequestDecoder
    from sidestep.engine.http2.state import ConnectionState

Entries = tuple[tuple[int, int], ...]
"""Identifiers and values of a SETTINGS frame, in order."""

_INITIAL: Final = Setting.INITIAL_WINDOW_SIZE


class PendingSettings:
    """See the module."""

    __slots__ = (
        "_decoder",
        "_initial",
        "_of_app",
        "_of_client",
        "_state",
        "app_owes",
        "client_owes",
        "request_window",
        "table_followed",
    )

    def __init__(self, state: ConnectionState, decoder: RequestDecoder) -> None:
        self._state = state
        self._decoder = decoder
        self._of_client: deque[Entries] = deque()
        self._of_app: deque[Entries] = deque()
        self._initial = WINDOW
        """The window of a new stream in bytes, as the app gave it and the client has acknowledged."""
        self.request_window = WINDOW
        """The window in bytes that the client may believe a new stream to have."""
        self.table_followed = True
        """The app has not allowed the client an HPACK table that is too large for us."""
        self.app_owes = False
        """Too many SETTINGS of the client wait for the app's ACK."""
        self.client_owes = False
        """Too many SETTINGS of the app wait for the client's ACK."""

    @property
    def await_app(self) -> bool:
        """Whether SETTINGS of the client wait for the app's ACK."""
        return bool(self._of_client)

    def client_sent(self, entries: Entries) -> None:
        """Note SETTINGS of the client that go to the app. Raises Http2Error when too many wait for their ACK."""
        self._append(self._of_client, entries)

    def app_sent(self, entries: Entries) -> None:
        """Note SETTINGS of the app that go to the client. Raises Http2Error when too many wait for their ACK."""
        self._append(self._of_app, entries)
        for key, value in entries:
            if key == Setting.HEADER_TABLE_SIZE:
                self.table_followed = value <= self._state.limits.table
        self._update_windows()

    def acknowledged_by_app(self) -> Entries:
        """Take the client's oldest SETTINGS, whose ACK passes; empty if none wait."""
        if not self._of_client:
            return ()
        entries = self._of_client.popleft()
        self._update_debts()
        return entries

    def acknowledged_by_client(self) -> None:
        """Apply the app's oldest SETTINGS, whose ACK passes."""
        if self._of_app:
            for key, value in self._of_app.popleft():
                if key == Setting.HEADER_TABLE_SIZE:
                    self._decoder.allow(value)
                elif key == _INITIAL:
                    self._initial = value
            self._update_windows()
            self._update_debts()

    def _append(self, pending: deque[Entries], entries: Entries) -> None:
        if not self._state.mixed and len(pending) >= self._state.limits.pending_settings:
            raise Http2Error("h2-settings", ErrorCode.ENHANCE_YOUR_CALM)
        pending.append(entries)
        self._update_debts()

    def _update_debts(self) -> None:
        most = self._state.limits.pending_settings
        self.app_owes = len(self._of_client) > most
        self.client_owes = len(self._of_app) > most

    def _update_windows(self) -> None:
        pending = [value for entries in self._of_app for key, value in entries if key == _INITIAL]
        change = max(self._initial, *pending) - self.request_window if pending else self._initial - self.request_window
        if change:
            self.request_window += change
            for exchange in self._state.streams.exchanges.values():
                exchange.room += change
