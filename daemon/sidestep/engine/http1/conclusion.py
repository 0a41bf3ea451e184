"""How HTTP/1 ends on a client connection: as a wire, in HTTP/2, or closed.

    become_wire   what cannot be read, and what the app closes, goes on between client and app, unread
    switch        101, or 2xx to CONNECT: client and the side that answered speak another protocol
    hand_over     the app answered `101 h2c`: the HTTP/2 relay goes on with the same legs
    discard       the last answer is given: the client's leg is half-closed and read for a while
    end           every leg is ended

Where the unreadable is closed (`OnUnreadable.CLOSE`) the connection becomes a wire only by what the app itself agreed
to (101, 2xx to CONNECT), unless that is HTTP/2, and when the client has ended and all it said is forwarded. So an app
that ends its connection ends the client's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http1.state import Event
from sidestep.engine.http2.relay import Http2Relay
from sidestep.engine.leg import Ending
from sidestep.engine.passthrough import Wire
from sidestep.protocols import h2c_upgrade
from sidestep.protocols.http1 import Http1Limits, parse_request
from sidestep.protocols.http1_response_head import ResponseHead
from sidestep.protocols.http2 import Http2Error

if TYPE_CHECKING:
    from sidestep.engine.http1.feed import Http1Feed
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
        "_budget",
        "_closes",
        "_feed",
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
        if self._closes and (anomaly is not None or not state.client_ended or state.unread or rest):
            if anomaly is not None or not self._peers.responses.ends_with_connection:
                self.end(Ending.CLOSE)
            return
        self._feed.cut_all(but=listened)
        self._join(self._peers.ask_app(), rest, exchange=listened)

    def switch(self, leg: Leg, response: ResponseHead | None) -> None:
        """Join the client with `leg`, which agreed to another protocol."""
        upgrade = b"" if response is None else response.upgrade
        if self._closes and b"h2c" in upgrade:
            self._relay.anomaly = "h1-h2c-upgrade"  # requests that would have to be read
            self.end(Ending.CLOSE)
            return
        if upgrade == b"h2c":
            self._relay.anomaly = "h1-h2c-upgrade"
        self._state.diverted = None
        exchange = self._feed.switched(upgrade)
        self._feed.cut_all(but=exchange)
        self._join(leg, exchange=exchange)

    def _join(self, peer: Leg, rest: bytes = b"", *, exchange: int = 0) -> None:
        state = self._state
        self._peers.end_all(Ending.CLOSE, but=peer)
        kept = bytes(state.unread) + self._requests.take_kept() + rest
        early = bytes(state.early)
        state.unread.clear()
        state.early.clear()
        if kept:
            peer.write(kept)
        state.on(Event.JOINED)
        state.answering_leg = None
        state.then_wire = None
        state.awaited.clear()
        self._relay.deadline = None
        self.wire = Wire(self._relay, peer, client_ended=state.client_ended, limits=self._limits, exchange=exchange)
        if exchange and (early or kept):
            self.wire.mirror_client(early + kept)

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
                self._port, tls=False, upgrade_settings=settings, predecessor=relay, budget=self._budget
            )
        except Http2Error:
            relay.successor = None
            return False
        client = relay.client
        if rest:  # it was forwarded already, but has not been written
            client.out[-1] = client.out[-1][: -len(rest)]
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
