"""What a relay tells the mirror of its connection: events of both directions, alike for HTTP/1, HTTP/2 and raw bytes.

The order of the events of one exchange:

    RequestHead
      then RequestData*, RequestEnd          unless `RequestHead.ends`; whoever wants bodies
      then RequestDiverted?                  a handler, not the app, is given the request
      then ResponseHead+, ResponseData*, ResponseEnd
                                             whoever wants responses; an interim (1xx) head precedes the final one
        or ResponseHead*, WholeResponse      the same, in one event, of an answer without a body that anybody wants
    ProtocolSwitched                         101, or 2xx to CONNECT: from here on RequestData and ResponseData carry the
                                             bytes of another protocol, RequestEnd and ResponseEnd are the ends (FIN) of
                                             client and server
    ExchangeCut                              at any point: the rest of the exchange will not be told

Both directions of an exchange may overlap (a server may answer before the request is whole), and so may the exchanges
of an HTTP/2 connection. `ConnectionStart`, `Anomaly`, `Gap` and `ConnectionEnd` belong to no exchange.

An exchange is named by a number. HTTP/1 counts: 1, 2, 3, in the order of requests; HTTP/2 uses the stream
id; the bytes of a whole connection, whatever protocol they carry, are exchange 0 (`WHOLE`). After an HTTP/1 connection
went on in HTTP/2 (h2c) numbers are stream ids: all earlier exchanges are over by then, and their events consumed.

Bytes. HTTP/1 heads and bodies are as on the wire: field names as sent, chunk framing and trailers included, so that a
copy or a capture is exact. HTTP/2 heads and trailers are decoded header blocks, HTTP/2 data is payload without padding.
Times are those of the input that the event was read from, in monotonic seconds.

Events are plain slotted dataclasses: making a frozen one takes three times as long, and a relay makes them while a
client waits. Nobody changes one after it was queued, except that the queue adds to a `Gap`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidestep.policy.route import Fields, Rule
    from sidestep.protocols.hpack import Block

WHOLE: Final = 0
"""The exchange that stands for all bytes of a connection."""
HTTP1: Final = "http/1.1"
H2: Final = "h2"

# What a sink wants of an exchange: a sum of these. Integers, because operators of `enum.IntFlag` cost 0.5 us each.
NOTHING: Final = 0
HEAD: Final = 1
"""RequestHead, and RequestDiverted."""
BODY: Final = 2
"""RequestData, RequestEnd, ProtocolSwitched."""
RESPONSE_HEAD: Final = 4
"""ResponseHead and ResponseEnd, or WholeResponse; ProtocolSwitched."""
RESPONSE_BODY: Final = 8
"""ResponseData."""
RESPONSE: Final = RESPONSE_HEAD | RESPONSE_BODY
SIZES: Final = 16
"""How many bytes the bodies have, in ResponseEnd, WholeResponse or ExchangeCut, without the bytes themselves."""
ANSWER: Final = RESPONSE_HEAD | SIZES
"""All that is to be known of an answer without its body."""


class Answerer(enum.Enum):
    """Who answers a request."""

    APP = "app"
    HANDLER = "handler"
    """The handler of an intercept."""
    SIDESTEP = "sidestep"
    """Neither: an answer of the relay's own, such as a 502 for a handler that went away."""


@dataclass(slots=True)
class ConnectionStart:
    """A connection that is mirrored whole begins."""


@dataclass(slots=True)
class RequestHead:
    """A request whose head has come."""

    exchange: int
    protocol: str
    """HTTP1 or H2."""
    method: bytes
    target: bytes
    """With the query, as sent."""
    authority: bytes
    fields: Fields
    """Names in lower case; HTTP/2: pseudo-fields first. HTTP/1: empty unless a listener wants them."""
    raw: bytes
    """HTTP/1: the head as the answering side gets it, byte for byte."""
    block: Block | None
    """HTTP/2: the decoded header block."""
    flags: int
    """HTTP/1: the flags of `protocols.http1` (HEAD, CONNECT, UPGRADE ...), on which the answer's framing depends."""
    ends: bool
    """The head is the whole request: no RequestData or RequestEnd follows."""
    at: float
    heard: bool = False
    """Its answer will be told, or that there is none."""


@dataclass(slots=True)
class RequestData:
    """Bytes of a request's body, or what the client says in another protocol."""

    exchange: int
    data: bytes


@dataclass(slots=True)
class RequestEnd:
    """The request is whole, or the client has finished."""

    exchange: int
    trailers: Block | None = None
    """HTTP/2 only; HTTP/1 trailers are part of the data."""


@dataclass(slots=True)
class RequestDiverted:
    """The request was given to the handler of `rule`. The app answers after all when the handler cannot."""

    exchange: int
    """0 when nobody listens to more than this."""
    rule: Rule
    method: bytes
    target: bytes
    authority: bytes


@dataclass(slots=True)
class ResponseHead:
    """An interim or final response head."""

    exchange: int
    by: Answerer
    status: int
    raw: bytes
    """HTTP/1: byte for byte."""
    block: Block | None
    """HTTP/2: the decoded header block."""
    at: float

    @property
    def is_interim(self) -> bool:
        """Whether another head follows (1xx, but for 101)."""
        return self.status < 200 and self.status != 101


@dataclass(slots=True)
class WholeResponse(ResponseHead):
    """A final head and the end of its response, both at the same time: cheaper than two events."""

    sizes: list[int] | None = field(default=None, compare=False)
    """As in ResponseEnd."""


@dataclass(slots=True)
class ResponseData:
    """Bytes of a response's body, or what the server says in another protocol."""

    exchange: int
    data: bytes


@dataclass(slots=True)
class ResponseEnd:
    """The response is whole, or the server has finished."""

    exchange: int
    trailers: Block | None = None
    at: float = field(default=0.0, compare=False)
    sizes: list[int] | None = field(default=None, compare=False)
    """With SIZES: the bytes of the request's body that had come by then, and of the response's."""


@dataclass(slots=True)
class ProtocolSwitched:
    """The exchange goes on in another protocol."""

    exchange: int
    protocol: bytes
    """The Upgrade token of the answer; empty after CONNECT."""


@dataclass(slots=True)
class ExchangeCut:
    """Nothing more of the exchange is told, and it was not whole: reset, broken off, or not readable any more."""

    exchange: int
    at: float = field(default=0.0, compare=False)
    """0.0: not known."""
    sizes: list[int] | None = field(default=None, compare=False)
    """As in ResponseEnd."""


@dataclass(slots=True)
class Anomaly:
    """The connection cannot be read any more; a stable, short reason, as `Relay.anomaly`."""

    reason: str


@dataclass(slots=True)
class Finding:
    """Inspection has found something on the connection; a text for people, without anything that was said."""

    text: str


@dataclass(slots=True)
class Gap:
    """Events that found no room in the queue. Of the exchanges in it nothing more is told."""

    events: int = 0
    size: int = 0
    """Bytes of data in them."""
    exchanges: set[int] = field(default_factory=set)


@dataclass(slots=True)
class ConnectionEnd:
    """Nothing more is told of the connection: it is over, or the kernel moves its bytes from here on."""


Event = (
    ConnectionStart
    | RequestHead
    | RequestData
    | RequestEnd
    | RequestDiverted
    | ResponseHead
    | WholeResponse
    | ResponseData
    | ResponseEnd
    | ProtocolSwitched
    | ExchangeCut
    | Anomaly
    | Finding
    | Gap
    | ConnectionEnd
)
