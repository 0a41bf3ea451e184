"""One diverted HTTP/1 request: what is kept of it while another side may still have to answer it.

    begun      head and body so far are kept in `kept`; the handler leg is being opened, or stands open
    given      `kept` was written to the handler; only the head stays, for the app or a second handler leg, until ...
    consumed   ... a byte of the body was given too, or
    answering  ... a byte of the response arrived
    answered   the response is complete; the exchange is over once the request is complete too (`sent`)

While nothing of the body was given and nothing answered, another leg can take the request (`replayable`).

A handler is not offered protocols that carry requests of other clients (`protocols.http1_upgrade`): it gets `offer`,
the app would get `head`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.http1.routing import RoutedRequest
from sidestep.engine.leg import Leg, queue
from sidestep.policy.route import Rule
from sidestep.protocols.http1 import CLOSE, CONNECT, HEAD, HTTP_1_0, UPGRADE, Http1Limits
from sidestep.protocols.http1_responses import ResponseReader
from sidestep.protocols.http1_upgrade import begins_like_request, may_switch, offers, without_shared

if TYPE_CHECKING:
    from sidestep.engine.http1.inspected_answer import InspectedAnswer
    from sidestep.engine.http1.samples import Http1Sample
    from sidestep.engine.inspection.judged import Judged

SWITCHING_PROTOCOLS: Final = 101


class DivertedRequest:
    """A request on its way to a handler and back."""

    __slots__ = (
        "answer",
        "answered",
        "answering",
        "begun",
        "close",
        "consumed",
        "given",
        "given_early",
        "head",
        "is_clean",
        "judged",
        "kept",
        "kept_size",
        "leg",
        "mirrored",
        "offer",
        "reader",
        "request",
        "reused",
        "rule",
        "sample",
        "sent",
    )

    def __init__(
        self, rule: Rule, leg: Leg, request: RoutedRequest, head: bytes, limits: Http1Limits, *, reused: bool
    ) -> None:
        self.rule = rule
        self.leg = leg
        self.reused = reused
        """The leg served an exchange before: it may have been closed as idle in this very moment."""
        self.reader = ResponseReader(limits)
        self.request = request
        self.head = head
        self.offer = without_shared(head) if request.flags & UPGRADE else head
        """The head that the handler gets."""
        self.mirrored = 0
        """The exchange that the mirror knows it as; 0: nobody listens."""
        self.judged: Judged | None = None
        """The exchange as inspection knows it; None: no rule applies ..."""
        self.answer: InspectedAnswer | None = None
        """... and its response, while that is judged."""
        self.sample: Http1Sample | None = None
        """None: it is not sampled."""
        self.kept: list[bytes] = []
        """Bytes of the body not yet given to the handler."""
        self.kept_size = 0
        self.given = False
        """The head was written to the handler leg."""
        self.consumed = False
        """So was a part of the body."""
        self.given_early = False
        """Bytes of the protocol that the request asks for were written to the handler leg.

        If the handler declines, they cannot be parsed as requests.
        """
        self.answering = False
        """A byte of the response arrived."""
        self.begun = False
        """A final response head went to the client: from now on only its end will do."""
        self.answered = False
        self.is_clean = True
        """Nothing came of the handler behind a response that waits for its verdict."""
        self.sent = False
        """The request has arrived from the client whole."""
        self.close = bool(request.flags & CLOSE)
        """No further request is served on the client's connection."""

    def move(self, leg: Leg) -> None:
        """Begin again on a fresh leg."""
        self.leg = leg
        self.reused = False
        self.given = False

    @property
    def is_waiting(self) -> bool:
        """Whether the response is whole, and the firewall has yet to judge it."""
        return self.answer is not None and self.answer.is_waiting

    @property
    def replayable(self) -> bool:
        """Whether another leg can still take the request."""
        return not self.consumed and not self.answering

    def may_switch(self) -> bool:
        """Whether the answer just read, a 101 or a 2xx to CONNECT, is one to this request."""
        response = self.reader.response
        if response is None or response.status != SWITCHING_PROTOCOLS:
            return bool(self.request.flags & CONNECT)
        withheld = self.offer is not self.head
        return bool(self.request.flags & UPGRADE) and may_switch(
            offers(self.offer), response.upgrade, withheld=withheld
        )

    def give_early(self, data: bytes) -> bool:
        """Give the handler bytes of the protocol that the request asks for; False when it is not to have them yet."""
        if not self.given or self.leg.ending:
            return False
        if not self.given_early:
            offers_switch = self.request.flags & CONNECT or offers(self.offer)
            if not offers_switch or begins_like_request(data):
                return False
        self.given_early = self.consumed = True
        self.leg.write(data)
        return True

    def keep(self, data: bytes) -> None:
        """Keep bytes of the body until they can be given."""
        queue(self.kept, data)
        self.kept_size += len(data)

    def give(self) -> None:
        """Write what is kept to the (open) handler leg."""
        leg = self.leg
        if not self.given:
            self.given = True
            leg.write(self.offer)
        if self.kept:
            self.consumed = True
            for data in self.kept:
                leg.write(data)
            self.kept = []
            self.kept_size = 0


def own_answer(diverted: DivertedRequest, status: bytes, reason: str) -> bytes:
    """A complete response of ours, framed for this request: `status` like b"502 Bad Gateway"."""
    body = f"sidestep: intercept {diverted.rule.display}: {reason}\n".encode()
    flags = diverted.request.flags
    return b"".join(
        (
            b"HTTP/1.1 " + status + b"\r\n",
            b"Content-Type: text/plain; charset=utf-8\r\n",
            b"Content-Length: %d\r\n" % len(body),
            b"Connection: close\r\n" if diverted.close or flags & HTTP_1_0 else b"",
            b"\r\n",
            b"" if flags & HEAD else body,
        )
    )
