"""The app's half of the relay: what it says is forwarded before it is understood, then watched message by message.

Reading it tells which requests are answered, so that later ones may go elsewhere. What cannot be read, answers nothing,
or ends with the connection makes the connection a wire: the client has the bytes already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http1.feed import LISTENED_TO, Http1Feed
from sidestep.engine.http1.state import HELD_BACK, SERVED
from sidestep.engine.mirror.events import Answerer
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import SWITCHES

if TYPE_CHECKING:
    from sidestep.engine.http1.conclusion import Conclusion
    from sidestep.engine.http1.early_data import EarlyData
    from sidestep.engine.http1.from_client import FromClient
    from sidestep.engine.http1.peers import Peers
    from sidestep.engine.http1.state import ConnectionState
    from sidestep.engine.relay import Relay
    from sidestep.protocols.http1_response_head import ResponseHead


class FromApp:
    """See the module."""

    __slots__ = ("_conclusion", "_early", "_feed", "_from_client", "_peers", "_relay", "_state")

    def __init__(
        self,
        relay: Relay,
        state: ConnectionState,
        peers: Peers,
        feed: Http1Feed,
        early: EarlyData,
        from_client: FromClient,
        conclusion: Conclusion,
    ) -> None:
        self._relay = relay
        self._state = state
        self._peers = peers
        self._feed = feed
        self._early = early
        self._from_client = from_client
        self._conclusion = conclusion

    def read(self, data: bytes) -> None:
        """Take bytes that answer requests."""
        self._relay.client.write(data)
        state = self._state
        reader = self._peers.responses
        awaited = state.awaited
        at = 0
        while at < len(data) or reader.event == messages.FINAL:
            if not awaited:
                self._conclusion.become_wire("h1-unsolicited-response")
                return
            flags, start = awaited[0], at
            at = reader.read(data, start, flags)
            event = reader.event
            if flags & LISTENED_TO:
                self._feed.read(self._feed.answering, Answerer.APP, reader, data[start:at], self._relay.now)
            if event == messages.COMPLETE:
                if awaited.popleft() & LISTENED_TO:
                    self._feed.answered(self._feed.answering)
                if reader.response is None or reader.response.close:
                    self._conclusion.become_wire(None)  # the app closes; the client knows
                    return
                if state.early and not awaited:
                    self._early.read_as_requests()
                    if state.client not in SERVED:
                        return
            elif event == messages.SWITCH:
                self._switch(flags, reader.response, data[at:])
                return
            elif event == messages.BROKEN:
                self._conclusion.become_wire(reader.anomaly)
                return
            elif reader.ends_with_connection:
                self._conclusion.become_wire(None, listened=self._goes_on(flags, data[at:]))
                return
        if state.client in HELD_BACK and not awaited:
            self._from_client.proceed()

    def _switch(self, flags: int, response: ResponseHead | None, rest: bytes) -> None:
        """The app speaks another protocol from here on, as the request of these flags asks for, or as none does."""
        if not flags & SWITCHES:
            self._conclusion.become_wire("h1-response-unsolicited-switch")
        elif not self._conclusion.hand_over(response, rest):
            self._conclusion.switch(self._relay.app, response)

    def _goes_on(self, flags: int, body: bytes) -> int:
        """The response lasts to the end of the connection: its exchange, 0 if nobody listens."""
        if not flags & LISTENED_TO:
            return 0
        exchange = self._feed.answering
        if body:
            self._relay.mirror.response_data(exchange, body)
        return exchange

    def read_unasked(self, data: bytes) -> None:
        """Take bytes that answer no request."""
        state = self._state
        if state.client not in SERVED:
            return
        if state.app_bypassed:
            self._peers.retire_app()
        else:
            self._relay.client.write(data)
            self._conclusion.become_wire("h1-unsolicited-response")
