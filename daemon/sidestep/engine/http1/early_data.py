"""Bytes that a client sends after a request to switch protocols (Upgrade, CONNECT), before it knows the answer.

Some servers read such bytes before they answer, so while SWITCHING they go ahead to the side that has the request:

    to the app      as they would without us. If the app does not switch, they are requests that it answers, and `early`
                    is read to learn which; where that is not certain, or they are more than `hold`, the connection is a
                    wire
    to a handler    only when they cannot be the beginning of a request. If the handler does not switch, its answer is
                    the last one

What follows an offer of `h2c` alone is not sent ahead: it is for the HTTP/2 relay, or the next request. Where the
unreadable is closed, nothing is sent ahead to the app, because it may be the next request. Where rules block, nothing
is sent ahead to anybody. Where rules only report, requests that were sent ahead are counted as not inspected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidestep.engine.http1.state import SWITCHING, Event
from sidestep.engine.leg import Ending
from sidestep.protocols import h2c_upgrade
from sidestep.protocols import http1_messages as messages
from sidestep.protocols.http1 import ANSWER_FLAGS, CONNECT, SWITCHES, Http1Limits
from sidestep.protocols.http1_upgrade import offers

if TYPE_CHECKING:
    from sidestep.engine.http1.conclusion import Conclusion
    from sidestep.engine.http1.feed import Http1Feed
    from sidestep.engine.http1.routing import RequestRouter
    from sidestep.engine.http1.state import ConnectionState
    from sidestep.engine.inspection.gate import Gate
    from sidestep.engine.relay import Relay
    from sidestep.protocols.http1_requests import RequestReader

_ANOMALY = "h1-early-bytes"


class EarlyData:
    """See the module. `closes`: the unreadable is closed."""

    __slots__ = ("_closes", "_conclusion", "_feed", "_gate", "_limits", "_relay", "_requests", "_router", "_state")

    def __init__(
        self,
        relay: Relay,
        state: ConnectionState,
        requests: RequestReader,
        router: RequestRouter,
        feed: Http1Feed,
        conclusion: Conclusion,
        *,
        limits: Http1Limits,
        closes: bool,
        gate: Gate | None = None,
    ) -> None:
        self._relay = relay
        self._state = state
        self._requests = requests
        self._router = router
        self._feed = feed
        self._conclusion = conclusion
        self._limits = limits
        self._closes = closes
        self._gate = gate

    def send(self) -> None:
        """Give what the client says, before it knows what protocol is spoken now, to the side that has its request."""
        state = self._state
        if state.client is not SWITCHING or not state.unread or state.then_wire is not None:
            return
        data = bytes(state.unread)
        diverted = state.diverted
        if diverted is not None:
            if self._gate is not None and self._gate.enforces:
                return
            if not diverted.give_early(data):
                return
            if state.client_ended:
                diverted.leg.end(Ending.FINISH)
        elif self._may_go_to_app():
            self._relay.app.write(data)
        else:
            return
        state.unread.clear()
        state.early += data
        if len(state.early) > self._limits.hold:
            self._feed.cut()
            state.early.clear()
            if diverted is None:
                self._conclusion.become_wire(_ANOMALY)

    def _may_go_to_app(self) -> bool:
        """Whether the app may have what follows the request before it has answered."""
        state = self._state
        if self._closes:
            return False
        return bool(state.request_flags & CONNECT) or offers(state.upgrade_head) != [h2c_upgrade.TOKEN]

    def read_as_requests(self) -> None:
        """The app did not switch: what was sent early are requests, and the app answers them."""
        state, requests, feed = self._state, self._requests, self._feed
        data = bytes(state.early)
        state.early.clear()
        feed.cut()
        state.on(Event.ANSWERED)
        at = 0
        while at < len(data):
            start = at
            at = requests.read(data, start)
            if requests.event == messages.HEADED:
                head = requests.head
                request = self._router.route(head)
                if isinstance(request, str) or request.flags & SWITCHES:
                    self._conclusion.become_wire(_ANOMALY)
                    return
                if self._gate is not None:
                    self._gate.uninspected(_ANOMALY, closed=False)
                state.request_flags = request.flags
                if request.decision.taps:
                    feed.begin(request, head, self._relay.now)
                state.awaited.append(request.flags & ANSWER_FLAGS | feed.expect(feed.current))
                requests.begin(request.body)
                if not request.body and feed.current:
                    feed.sent(request.flags)
            elif requests.event == messages.BROKEN or requests.state == messages.HEAD:
                requests.take_kept()
                self._conclusion.become_wire(_ANOMALY)
                return
            elif feed.current:
                feed.body(data[start:at])
                if requests.event == messages.COMPLETE:
                    feed.sent(state.request_flags)
