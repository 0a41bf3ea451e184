"""The HTTP/1 relay of a port whose requests tell the app who their client proved to be (see `client_certificate`).

What differs from `Http1Relay`, and why it stands apart: nothing of this is paid for where it is switched off.

  * Every head is rewritten before it is judged: the client's own field is removed, ours is added. Filters, the app and
    the handler see the rewritten head. Rewriting twice gives the same head, so bytes that are held and read again are
    no special case.
  * So are the trailers of a chunked request, line by line; only there are bytes held that the base would cut through.
  * No byte of a client reaches the app unread. Where the base becomes a wire because something cannot be read with
    certainty, or because the app is about to close, this relay closes. Only what the app itself agreed to (101, 2xx to
    CONNECT) is a wire, and not if it is HTTP/2: those requests would have to be rewritten too.
  * For the same reason what follows an Upgrade or CONNECT waits for the answer; it may be the next request.
  * A slow head is not given to the app in pieces, so the client has longer for it before it is closed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sidestep.engine.http1 import Http1Relay
from sidestep.engine.relay import Ending, Leg
from sidestep.engine.taps import Ledger
from sidestep.policy.route import SteeredPort
from sidestep.protocols import http1_requests as reading
from sidestep.protocols.chunked import ChunkedBody
from sidestep.protocols.client_certificate import rewrite_head, strip_trailer
from sidestep.protocols.http1 import LIMITS, REQUEST, Http1Limits, ResponseHead

FORWARDING_LIMITS: Final = replace(LIMITS, head_seconds=60.0)
"""Seconds for a head as servers commonly give them (nginx: client_header_timeout 60s)."""


class TrailerFilter:
    """Takes the bytes of one chunked body, already found well-formed, and gives them back without the client's field.

    Chunks pass as they come; from the last size line on, a line is held until it is whole (bounded by the limit of the
    trailer section, which the first reading enforced).
    """

    __slots__ = ("_chunks", "_inside", "_line")

    def __init__(self, limits: Http1Limits) -> None:
        self._chunks = ChunkedBody(limits)
        self._inside = False
        self._line = b""

    def take(self, body: bytes) -> bytes:
        """What may be passed on now."""
        if self._inside:
            return self._lines(body)
        self._chunks.read(body)
        begins = self._chunks.trailer_at
        if begins < 0:
            return body
        self._inside = True
        return body[:begins] + self._lines(body[begins:])

    def _lines(self, data: bytes) -> bytes:
        data = self._line + data
        end = data.rfind(b"\n") + 1
        self._line = data[end:]
        return strip_trailer(data[:end])


class ForwardingHttp1Relay(Http1Relay):
    """See the module. `value` is the field's value, None when the client proved nothing: then only spoofs go."""

    __slots__ = ("_trailers", "_value")

    def __init__(
        self,
        port: SteeredPort,
        *,
        tls: bool,
        value: bytes | None,
        limits: Http1Limits = FORWARDING_LIMITS,
        ledger: Ledger | None = None,
    ) -> None:
        super().__init__(port, tls=tls, limits=limits, ledger=ledger)
        self._value = value
        self._trailers: TrailerFilter | None = None

    def passes(self, leg: Leg, data: bytes) -> Leg | None:
        """Nothing of the client's passes unread."""
        return None if leg is self.client else super().passes(leg, data)

    def receive_eof(self, leg: Leg) -> None:
        """Take the end of a leg's bytes; when it is the app's, nothing of the client may follow unread."""
        if leg is self.app and self._wire is None and not self._apart and not self.done:
            self.end(Ending.CLOSE)
        else:
            super().receive_eof(leg)

    def _headed(self, head: bytes, data: bytes, end: int) -> int:
        if REQUEST.fullmatch(head) is None:
            return super()._headed(head, data, end)  # which closes
        head = rewrite_head(head, self._value)
        reached = super()._headed(head, head + data[end:], len(head))
        chunked = self._requests.state == reading.CHUNKS
        self._trailers = TrailerFilter(self._limits) if chunked else None
        return reached - len(head) + end

    def _forward(self, body: bytes) -> None:
        if self._trailers is not None:
            body = self._trailers.take(body)
        if body:
            super()._forward(body)

    def become_wire(self, anomaly: str | None, rest: bytes = b"") -> None:
        """Close instead, unless nothing unread can follow."""
        if anomaly is not None:
            self.anomaly = anomaly
            self.end(Ending.CLOSE)
        elif self.client_ended and not self.held and not rest:
            super().become_wire(None)  # the client has said all it will say, and it is forwarded
        elif not self._responses.ends_with_connection:
            self.end(Ending.CLOSE)

    def _may_send_ahead(self) -> bool:
        """Never: see the module."""
        return False

    def _hand_over(self, response: ResponseHead | None, rest: bytes) -> bool:
        """Never: see `switch`."""
        del response, rest
        return False

    def switch(self, leg: Leg, response: ResponseHead | None) -> None:
        """A wire, but not if it is HTTP/2."""
        if response is not None and b"h2c" in response.upgrade:
            self.anomaly = "h1-h2c-upgrade"
            self.end(Ending.CLOSE)
        else:
            super().switch(leg, response)
