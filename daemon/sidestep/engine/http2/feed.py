"""What an HTTP/2 relay tells its mirror: requests and responses by stream, whoever answers.

Requests are told as they are read from the client. Responses of the app are told as they are read from it
(`AppResponses`), those of handlers and our own as they are written to the client (`ToClient`).

Nobody has checked what an app says. An answer that does not begin with its head, or has a second one, is cut: a sink
gets the events of an exchange in order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.engine.mirror.events import (
    H2,
    RESPONSE,
    RESPONSE_BODY,
    Answerer,
    RequestHead,
    ResponseHead,
    WholeResponse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidestep.engine.http2.head import Head
    from sidestep.engine.http2.inspected_streams import InspectedStreams
    from sidestep.engine.http2.samples import Http2Sample
    from sidestep.engine.mirror.producer import Mirror
    from sidestep.engine.relay import Relay
    from sidestep.protocols.hpack import Block

_HEADED: Final = 1 << 8
"""Of a stream in `responses`, beside what is wanted of it: its final head was told."""
_PARTS: Final = RESPONSE_BODY | _HEADED
"""Of such a stream: its answer is told in parts."""
_APP: Final = Answerer.APP
_NO_FIELD: Final = (b"", b"")


class Http2Feed:
    """One per HTTP/2 relay. `requests` are the streams whose body somebody wants, `responses` those whose answer."""

    __slots__ = ("_mirror", "_relay", "inspection", "requests", "responses", "samples")

    def __init__(self, relay: Relay, inspection: InspectedStreams | None = None) -> None:
        self._relay = relay
        self._mirror: Mirror = relay.mirror
        self.inspection = inspection
        """Who is told, too, of streams of which nothing more will come."""
        self.requests = relay.mirror.requests
        self.responses = relay.mirror.responses
        self.samples: Mapping[int, Http2Sample] = {}
        """None: samples are inspection's."""

    def begin(self, stream: int, head: Head, block: Block, *, ends: bool, diverted: bool = False) -> None:
        """A new stream that somebody may want; `ends` when it has no body.

        `diverted`: not the app's connection answers it, so that its answer is told without `AppResponses`.
        """
        mirror = self._mirror
        interest = mirror.offer(stream, head, heard=diverted)
        if not interest:
            return
        fields = (*head.pseudo.items(), *head.regular)
        event = RequestHead(
            stream,
            H2,
            head.method,
            head.path,
            head.authority,
            fields,
            b"",
            block,
            0,
            ends,
            self._relay.now,
            bool(interest & RESPONSE),
        )
        mirror.begin(event, stream, interest, size=block.size, ends=ends)

    def body(self, stream: int, data: bytes, *, ends: bool) -> None:
        """Data of a request that is wanted, possibly empty."""
        if data:
            self._mirror.request_data(stream, data)
        if ends and stream in self.requests:
            self._mirror.request_end(stream)

    def trailers(self, stream: int, block: Block, *, ends: bool) -> None:
        """A second header block of a stream; if it does not end the request the app will refuse that."""
        if stream in self.requests:
            if ends:
                self._mirror.request_end(stream, block, block.size)
            else:
                self._cut(stream)

    # --- responses --------------------------------------------------------------------------------------------------

    def whole_response(self, stream: int, block: Block, size: int) -> bool:
        """Hot path: the app's answer is here, whole, with a body of so many bytes. False: it is to be told in parts."""
        mirror = self._mirror
        queue = mirror.queue
        if self.responses[stream] & _PARTS or (queue is not None and queue.is_full):
            return False
        name, status = block.fields[0] if block.fields else _NO_FIELD
        if name != b":status" or not status.isdigit() or status[:1] == b"1":
            return False
        event = WholeResponse(stream, _APP, int(status[:3]), b"", block, self._relay.now)
        mirror.answered(event, size, block.size)
        return True

    def response_block(self, stream: int, by: Answerer, block: Block, *, ends: bool) -> None:
        """A header block of a response that is wanted: an interim or final head, or trailers."""
        fields = block.fields
        is_headed = self.responses[stream] & _HEADED
        if fields and fields[0][0] == b":status" and fields[0][1].isdigit():
            event = ResponseHead(stream, by, int(fields[0][1][:3]), b"", block, self._relay.now)
            if is_headed or (ends and event.is_interim):
                self._cut(stream)
                return
            self._mirror.tell(event, stream, block.size)
            if stream in self.responses and not event.is_interim:
                self.responses[stream] |= _HEADED
            if ends:
                self._mirror.response_end(stream, at=self._relay.now)
        elif not is_headed:
            self._cut(stream)
        elif ends:
            self._mirror.response_end(stream, block, block.size, at=self._relay.now)

    def response_data(self, stream: int, data: bytes) -> None:
        """Data of a response, without padding."""
        if self._is_headed(stream):
            self._mirror.response_data(stream, data)

    def response_end(self, stream: int) -> None:
        """The response is whole, without trailers."""
        if self._is_headed(stream):
            self._mirror.response_end(stream, at=self._relay.now)

    def _is_headed(self, stream: int) -> bool:
        """Whether the final head of a stream was told; one that is wanted, and has none, is cut."""
        wanted = self.responses.get(stream)
        if wanted is None:
            return False
        if not wanted & _HEADED:
            self._cut(stream)
            return False
        return True

    def lose_responses(self) -> None:
        """What the app answers can not be told any more."""
        self._mirror.hears_responses = False
        self.responses.clear()
        self._mirror.anomaly("h2-unreadable-responses")

    def cut(self, stream: int) -> None:
        """Nothing more of this stream will come."""
        if stream in self.requests or stream in self.responses:
            self._cut(stream)
        if self.inspection is not None:
            self.inspection.cut(stream)

    def cut_all(self) -> None:
        """Nothing more of any stream will come."""
        for stream in [*self.requests, *self.responses]:
            self._cut(stream)
        if self.inspection is not None:
            self.inspection.cut_all()

    def _cut(self, stream: int) -> None:
        self._mirror.cut(stream, at=self._relay.now)
