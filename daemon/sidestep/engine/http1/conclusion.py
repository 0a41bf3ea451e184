"""How HTTP/1 ends on a client connection: as a wire, in HTTP/2, or closed.

    become_wire   what cannot be read, and what the app closes, goes on between client and app, unread
    switch        101, or 2xx to CONNECT: client and the side that answered speak another protocol
    hand_over     the app answered `101 h2c`: the HTTP/2 relay goes on with the same legs
    discard       the last answer is given: the client's leg is half-closed and read for a while
    end           every leg is ended

Where the unreadable is closed (`OnUnreadable.CLOSE`) the connection becomes a wire only by what the app itself agreed
to (101, 2xx to CONNECT), unless that is HTTP/2, and when the client has ended and all it said is forwarded. So an app
that ends its connection ends the client's. Where rules block, the same holds unless something cannot be read: requests
behind a last answer go nowhere. An inspected connection ends rather than becoming a wire while it retains a
request that is refused, or may be (`Http1Inspection.retains`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http1.inspection import WebSocket
from sidestep.engine.http1.state import Event
from sidestep.engine.http1.websocket_wire import WebSocketWire
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import Ending
from sidestep.engine.passthrough import Wire
from sidestep.protocols import h2c_upgrade
from sidestep.protocols.http1 import Http1Limits, parse_request
from sidestep.protocols.http1_response_head import ResponseHead
from sidestep.protocols.http2 import Http2Error

if TYPE_CHECKING:
    from sidestep.engine.http1.feed import Http1Feed
    from sidestep.engine.http1.inspection import Http1Inspection
    from sidestep.engine.http1.peers import Peers
    from sidestep.engine.http1.state import ConnectionState
    from sidestep.engine.leg import Leg
    from sidestep.engine.memory_budget import Budget
    from sidestep.engine.relay import Relay
    from sidestep.policy.route import SteeredPort
    from sidestep.protocols.http1_requests import RequestReader


class Conclusion:
    """See the module. `closes`: the unreadable is closed; `tls`: the client came over TLS."""

    __slots__ = (
        "_budget",
        "_closes",
        "_feed",
        "_inspection",
        "_limits",
        "_peers",
        "_port",
        "_relay",
        "_requests",
        "_state",
        "_tls",
        "wire",
    )

    def __init__(
        self,
        relay: Relay,
        state: ConnectionState,
        peers: Peers,
        requests: RequestReader,
        feed: Http1Feed,
        *,
        port: SteeredPort,
        budget: Budget,
        limits: Http1Limits,
        closes: bool,
        tls: bool,
        inspection: Http1Inspection | None = None,
    ) -> None:
        self._relay = relay
        self._state = state
        self._peers = peers
        self._requests = requests
        self._feed = feed
        self._port = port
        self._budget = budget
        self._limits = limits
        self._closes = closes
        self._tls = tls
        self._inspection = inspection
        self.wire: Wire | None = None
        """What joins the client and one leg, while the state is WIRE."""

    def become_wire(self, anomaly: str | None, rest: bytes = b"", *, listened: int = 0) -> None:
        """Join client and app; `rest` are the client's bytes after those that are kept.

        `listened` is an exchange whose response goes on, to the end of the connection. Where the unreadable is closed
        this closes instead, unless nothing unread can follow.
        """
        state = self._state
        if anomaly is not None:
            self._relay.anomaly = anomaly
            self._relay.mirror.anomaly(anomaly)
        inspection = self._inspection
        if inspection is not None:
            if anomaly is not None:
                inspection.gate.uninspected(anomaly, closed=self._closes or inspection.retains)
            if inspection.retains:
                self.end(Ending.CLOSE)
                return
        closes = self._closes or (anomaly is None and inspection is not None and inspection.gate.enforces)
        if closes and (anomaly is not None or not state.client_ended or state.unread or rest):
            if anomaly is not None or not self._peers.responses.ends_with_connection:
                self.end(Ending.CLOSE)
            return
        if inspection is not None and inspection.gate.break_off(goes_on=True):
            self.end(Ending.ABORT)
            return
        self._feed.cut_all(but=listened)
        self._join(self._peers.ask_app(), rest, exchange=listened)

    def switch(self, leg: Leg, response: ResponseHead | None, head: bytes, rest: bytes = b"") -> None:
        """Join the client with `leg`, which agreed to another protocol.

        `head` is that of its answer, `rest` what followed it and was not passed on yet.
        """
        upgrade = b"" if response is None else response.upgrade
        if self._closes and b"h2c" in upgrade:
            self._relay.anomaly = "h1-h2c-upgrade"  # requests that would have to be read
            self._uninspected("h1-h2c-upgrade", closed=True)
            self.end(Ending.CLOSE)
            return
        inspected = None if self._inspection is None else self._inspection.switched(upgrade, head)
        if self._inspection is not None and isinstance(inspected, str):
            closed = self._inspection.gate.closes
            self._uninspected(inspected, closed=closed)
            if closed:
                self.end(Ending.CLOSE)
                return
        if upgrade == b"h2c":
            self._relay.anomaly = "h1-h2c-upgrade"
        self._state.diverted = None
        exchange = self._feed.switched(upgrade)
        self._feed.cut_all(but=exchange)
        if isinstance(inspected, WebSocket):
            self._join_inspected(leg, inspected, rest, exchange=exchange)
            return
        if rest:
            self._relay.client.write(rest)
        self._join(leg, exchange=exchange)

    def _uninspected(self, reason: str, *, closed: bool) -> None:
        if self._inspection is not None:
            self._inspection.gate.uninspected(reason, closed=closed)

    def _join(self, peer: Leg, rest: bytes = b"", *, exchange: int = 0) -> None:
        early, kept = self._joined(peer)
        kept += rest
        if kept:
            peer.write(kept)
        ended = self._state.client_ended
        self.wire = Wire(self._relay, peer, client_ended=ended, limits=self._limits, exchange=exchange)
        if exchange and (early or kept):
            self.wire.mirror_client(early + kept)

    def _join_inspected(self, peer: Leg, inspected: WebSocket, rest: bytes, *, exchange: int) -> None:
        """As `_join`, where messages are judged; `rest` are those of the peer that have come."""
        assert self._inspection is not None  # noqa: S101 - nobody else inspects
        early, kept = self._joined(peer)
        relay = self._relay
        wire = self.wire = WebSocketWire(
            relay,
            peer,
            inspected.judged,
            inspected.deflate,
            inspection_limits=self._inspection.gate.limits,
            limits=self._limits,
            exchange=exchange,
        )
        if early:
            wire.sent_early(early)
        for leg, data in ((relay.client, kept), (peer, rest)):
            if data and not relay.done:
                wire.receive(leg, data)
        if self._state.client_ended and not relay.done:
            wire.receive_eof(relay.client)

    def _joined(self, peer: Leg) -> tuple[bytes, bytes]:
        """Leave the state of requests and answers; returns what the client has said that went early, and the rest."""
        state = self._state
        self._peers.end_all(Ending.CLOSE, but=peer)
        if self._inspection is not None:
            self._inspection.release()
        early, kept = bytes(state.early), bytes(state.unread) + self._requests.take_kept()
        state.unread.clear()
        state.early.clear()
        state.on(Event.JOINED)
        state.answering_leg = None
        state.then_wire = None
        state.awaited.clear()
        self._relay.deadline = None
        return early, kept

    def hand_over(self, response: ResponseHead | None, rest: bytes) -> bool:
        """The app has answered 101: if it goes on in HTTP/2, hand its connection to the HTTP/2 relay.

        `rest` follows the answer. False when this is not certain to be HTTP/2 that can be read.
        """
        state, relay = self._state, self._relay
        if self._closes or response is None or response.upgrade != h2c_upgrade.TOKEN or self._tls or state.early:
            return False
        request = parse_request(state.upgrade_head, self._limits)
        settings = None if isinstance(request, str) else h2c_upgrade.client_settings(request.fields)
        if settings is None:
            return False
        try:
            successor = Http2Relay(
                self._port,
                tls=False,
                upgrade_settings=settings,
                predecessor=relay,
                budget=self._budget,
                gate=None if self._inspection is None else self._inspection.gate,
            )
        except Http2Error:
            relay.successor = None
            return False
        if self._inspection is not None and self._inspection.upgrading is not None:
            successor.adopt(self._inspection.upgrading)
        client = relay.client
        if rest:  # it was forwarded already, but has not been written
            client.out[-1] = client.out[-1][: -len(rest)]
            if not client.out[-1]:
                client.out.pop()
            client.queued -= len(rest)
        self._feed.cut_all()
        relay.mirror.catch_up()
        self._peers.end_all(Ending.CLOSE, but=relay.app)
        kept = bytes(state.unread) + self._requests.take_kept()
        state.unread.clear()
        relay.deadline = None
        state.on(Event.HANDED_OVER)
        if rest:
            successor.receive(relay.app, rest, relay.now)
        if kept:
            successor.receive(client, kept, relay.now)
        if state.client_ended:
            successor.receive_eof(client, relay.now)
        return True

    def discard(self) -> None:
        """Nothing more is served: the rest of what the client says is read and dropped."""
        self._feed.cut_all()
        self._peers.end_all(Ending.CLOSE)
        self._state.unread.clear()
        self._relay.deadline = None
        self._relay.client.end(Ending.FINISH)
        self._state.on(Event.LAST_ANSWER)

    def end(self, ending: Ending) -> None:
        """Nothing more will be said."""
        state, relay = self._state, self._relay
        self._feed.cut_all()
        relay.client.end(ending)
        self._peers.end_all(ending)
        state.unread.clear()
        state.on(Event.ENDED)
        state.answering_leg = None
        state.diverted = None
        self.wire = None
        relay.deadline = None
        relay.done = True
