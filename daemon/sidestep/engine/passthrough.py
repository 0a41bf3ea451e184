"""Wires: two legs joined for good. Every byte, every end and every break is passed on.

    one peer finishes (FIN)  -> the other is half-closed; bytes go on the other way
    both finished            -> both are closed, done
    one breaks (reset)       -> the other is reset, done
    one breaks after its FIN -> the other gets everything it said, then is closed, done

Most servers leave as the last row says: they close, and the kernel answers what still comes with a reset. Over TLS
something always comes, because OpenSSL sends an alert for a stream that ended without close_notify.

Invariants: nothing is written to a leg after it was ended; the end of one side is passed on only once the other is
open, because an end given to a leg that is still being opened would cancel the opening. `Relay.joined` tells the shell
once both are open and neither has finished, so that it may move the bytes itself.

`WireRelay` is a connection that is a wire from its first byte: to the app, or for a global intercept to the handler,
and to the app when the handler is refused. Until one of them is open the client's bytes wait, at most `hold` and one
read more. The app is dialled at the client's first byte, or `at_once`.

`HeardWireRelay` is one of which somebody hears what the app says first.
"""

from __future__ import annotations

from collections.abc import Callable

from sidestep.engine.leg import HIGH_WATER, Ending, Leg, Role
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.relay import Relay
from sidestep.policy.route import Rule
from sidestep.protocols.http1 import LIMITS, Http1Limits


class Wire:
    """The client leg and the one that answers it, joined.

    `exchange` is what the mirror knows it as when it began as a request that somebody listens to; else 0.
    """

    __slots__ = ("_client_ended", "_exchange", "_hold", "_mirror", "_peer_ended", "_relay", "peer")

    def __init__(
        self,
        relay: Relay,
        peer: Leg,
        *,
        client_ended: bool = False,
        limits: Http1Limits = LIMITS,
        exchange: int = 0,
    ) -> None:
        self._relay = relay
        self._mirror = relay.mirror
        self._exchange = exchange
        self._hold = limits.hold
        self._client_ended = client_ended
        self._peer_ended = False
        self.peer = peer
        self.join()

    def join(self) -> None:
        """Bring endings and `joined` in line; called when the peer is open."""
        relay = self._relay
        peer = self.peer
        if not peer.open or relay.done:
            return
        if self._client_ended:
            peer.end(Ending.FINISH)
        elif not self._peer_ended:
            relay.joined = (relay.client, peer)

    def receive(self, leg: Leg, data: bytes) -> None:
        """Pass bytes on."""
        client = self._relay.client
        if leg is client:
            if not self.peer.ending:
                self.peer.write(data)
            if self._exchange:
                self.mirror_client(data)
        elif leg is self.peer and not client.ending:
            client.write(data)
            if self._exchange and self._mirror.responses:
                self._mirror.response_data(self._exchange, data)

    def mirror_client(self, data: bytes) -> None:
        """Tell the mirror what the client has said."""
        if self._exchange in self._mirror.requests:
            self._mirror.request_data(self._exchange, data)

    def receive_eof(self, leg: Leg) -> None:
        """Pass an end on."""
        relay = self._relay
        if leg is relay.client:
            self._client_ended = True
            if self._exchange in self._mirror.requests:
                self._mirror.request_end(self._exchange)
            self.join()
        elif leg is self.peer:
            self._peer_ended = True
            if self._exchange in self._mirror.responses:
                self._mirror.response_end(self._exchange, at=relay.now)
            relay.client.end(Ending.FINISH)
        if self._client_ended and self._peer_ended:
            relay.client.end(Ending.CLOSE)
            self.peer.end(Ending.CLOSE)
            relay.done = True

    def lost(self, leg: Leg) -> None:
        """Pass a break on."""
        relay = self._relay
        if leg is relay.client or leg is self.peer:
            ending = Ending.CLOSE if self._has_ended(leg) else Ending.ABORT
            if self._exchange:
                self._mirror.cut(self._exchange, at=relay.now)  # what its side has finished is whole already
            relay.client.end(ending)
            self.peer.end(ending)
            relay.done = True

    def _has_ended(self, leg: Leg) -> bool:
        return self._client_ended if leg is self._relay.client else self._peer_ended

    def reads(self, leg: Leg) -> bool:
        """Whether what this leg's bytes go to has room."""
        if leg is self._relay.client:
            return self.peer.queued < (HIGH_WATER if self.peer.open else self._hold)
        return self._relay.client.queued < HIGH_WATER


class WireRelay(Relay):
    """A connection that is never parsed. With a `rule` (a global intercept) it goes to that rule's handler."""

    __slots__ = ("_asked", "_limits", "_wire")

    def __init__(
        self,
        rule: Rule | None = None,
        *,
        at_once: bool = False,
        limits: Http1Limits = LIMITS,
        mirror: Mirror | None = None,
    ) -> None:
        super().__init__(mirror)
        self._limits = limits
        self._asked = rule is not None
        peer = self.app
        if rule is not None:
            peer = Leg(Role.HANDLER, rule)
            self.legs.append(peer)
            self.opening.append(peer)
        self._wire = Wire(self, peer, limits=limits)
        if at_once and not self._asked:
            self._begin()

    def _begin(self) -> None:
        """Ask for the app, unless the shell brought it along."""
        self._asked = True
        if self.app.open:
            self._wire.join()
        else:
            self.opening.append(self.app)

    def receive(self, leg: Leg, data: bytes, now: float) -> None:
        """Pass bytes on; before the peer is open they wait in its `out`."""
        del now
        if not self._asked:
            self._begin()
        self._wire.receive(leg, data)

    def receive_eof(self, leg: Leg, now: float) -> None:
        """Pass an end on."""
        del now
        if not self._asked:
            self._begin()
        self._wire.receive_eof(leg)

    def opened(self, leg: Leg, now: float) -> None:
        """Join."""
        del now
        leg.open = True
        if leg is self._wire.peer:
            self._wire.join()

    def refused(self, leg: Leg, now: float) -> None:
        """Without a handler the app takes the connection; without the app there is nobody to take it."""
        del now
        wire = self._wire
        if leg is not wire.peer:
            return
        if leg.role is not Role.HANDLER:
            wire.lost(leg)
            return
        waiting, leg.out, leg.queued = leg.out, [], 0
        leg.end(Ending.ABORT)
        wire.peer = self.app
        for data in waiting:
            self.app.write(data)
        self._begin()

    def lost(self, leg: Leg, now: float) -> None:
        """Pass a break on."""
        del now
        self._wire.lost(leg)

    def reads(self, leg: Leg) -> bool:
        """Whether what this leg's bytes go to has room."""
        return self._wire.reads(leg)


class HeardWireRelay(WireRelay):
    """A wire whose app's first bytes are heard: `hear` gets them, in pieces, until it returns False.

    Until then they pass through here, as any bytes do that the shell does not move itself.
    """

    __slots__ = ("_hear",)

    def __init__(self, hear: Callable[[bytes], bool]) -> None:
        super().__init__()
        self._hear: Callable[[bytes], bool] | None = hear

    @property
    def wired(self) -> tuple[Leg, Leg] | None:
        """The two legs, once nothing is heard any more."""
        return super().wired if self._hear is None else None

    def receive(self, leg: Leg, data: bytes, now: float) -> None:
        """Pass bytes on, and have the app's heard."""
        super().receive(leg, data, now)
        if leg is self.app and self._hear is not None and not self._hear(data):
            self._hear = None
