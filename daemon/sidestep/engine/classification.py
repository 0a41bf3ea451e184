"""Decides what becomes of a new connection, from its first bytes and what is known of its port. Pure.

`classify` takes what is known (`PortFacts`), what has just happened (`Event`) and the client's first bytes, peeked and
not consumed, and returns a verdict. `proxy/connection/setup.py` carries the verdict out:

    Wait         look again when more bytes are there, or after some seconds
    AskApp       the client is silent: connect to the app and see who speaks first
    Unparsed     nobody wants requests of this port to be read: relay bytes to those who want whole connections
    Http         relay requests, in clear
    OpenTls      finish the handshake with the app, then with the client, and relay by the protocol that the app chose
    Pass, Close  it cannot be read: pass it through to whoever would get it, or close it, with the reason

`classify_decrypted` does the same for the first bytes inside TLS. `unreadable` alone decides between Pass and Close,
also for what the handshakes find out later.

Invariants: the verdict for a prefix of the first message is Wait or the verdict for the whole, so it does not matter
how the bytes arrive; on a port with `OnUnreadable.CLOSE` neither Pass nor Unparsed is ever a verdict; each wait has a
deadline, and what happens then is a verdict that ends the waiting.
"""

from __future__ import annotations

import enum
from typing import Final, Literal

import msgspec

from sidestep.engine.relay import OnUnreadable
from sidestep.model.condition import ConditionType
from sidestep.protocols import client_hello
from sidestep.protocols.client_hello import ClientHello
from sidestep.protocols.detection import Detected, detect

PEEK: Final = 64 * 1024
"""Bytes of a connection that are looked at; a ClientHello is far smaller."""
REST_SECONDS: Final = 10.0
"""Seconds for the rest of a first message that began."""
SILENCE_SECONDS: Final = 60.0
"""Seconds for the first byte where neither app nor handler can be asked to speak first: what servers commonly give
(nginx: client_header_timeout 60s)."""
IDLE_SECONDS: Final = 3600.0
"""Seconds for the first byte while the app is connected. Until then the app decides how long it waits for its client;
the value is Envoy's default idle timeout."""

Protocol = Literal["http/1.1", "h2"]
_HTTP: Final[dict[Detected, Protocol]] = {Detected.HTTP1: "http/1.1", Detected.HTTP2: "h2"}


class Event(enum.Enum):
    """What has just happened to a connection."""

    ACCEPTED = enum.auto()
    """It was accepted, or its handshakes are done. Nothing was read."""
    DATA = enum.auto()
    """The client has sent something; the bytes are at hand."""
    SILENT = enum.auto()
    """The time to wait for its first byte is over."""
    STILL_SILENT = enum.auto()
    """The second, longer time is over as well."""
    EOF = enum.auto()
    """The client has ended its side and sent nothing (more)."""
    INCOMPLETE = enum.auto()
    """The first message began, and the time for the rest is over or no more can come."""
    SERVER_FIRST = enum.auto()
    """The app, which is connected, sent something or ended its side before the client began."""


class PortFacts(msgspec.Struct, frozen=True):
    """What is known of the port that a connection came to, and of the client.

    tls                "never", "always" or "probe"
    has_certificate    there is a certificate to open TLS with
    reads_requests     a rule wants requests to be read
    global_intercept   a global intercept takes the connections of this client
    global_wiretap     a wiretap wants whole connections
    on_unreadable      what becomes of what cannot be read
    late_client_auth   the app would ask this client, after the handshake, for a certificate that only the client has
    server_first       the app spoke first the last time that a client was silent
    detection_seconds  how long a silent client is waited for before the app is dialled
    """

    tls: str
    has_certificate: bool
    reads_requests: bool
    global_intercept: bool
    global_wiretap: bool
    on_unreadable: OnUnreadable
    late_client_auth: bool
    server_first: bool
    detection_seconds: float


class Offer(msgspec.Struct, frozen=True):
    """What a client began with.

    hello            its ClientHello, as the records it came in
    shape            what of the ClientHello decides whether a certificate suits it (see `client_hello`)
    server_name      its SNI, None without one
    alpn             its ALPN list, in its order
    late_auth        servers may ask this client for a certificate after the handshake
    """

    hello: bytes
    shape: tuple[bytes, ...]
    server_name: str | None
    alpn: tuple[str, ...]
    late_auth: bool


class _Base(msgspec.Struct, frozen=True, kw_only=True):
    tls: bool | None = None
    """Whether the client speaks TLS; None: its bytes do not tell, or are neither TLS nor HTTP."""


class Wait(_Base, frozen=True):
    """Look again when `more` bytes beyond those at hand are there; after `seconds` the time is over."""

    more: int
    seconds: float


class AskApp(_Base, frozen=True):
    """Connect to the app and see who speaks first; after `seconds` the time is over."""

    seconds: float


class Unparsed(_Base, frozen=True):
    """Relay bytes, unread."""


class Http(_Base, frozen=True):
    """Relay requests of this protocol."""

    protocol: Protocol


class OpenTls(_Base, frozen=True):
    """Finish both handshakes, the app's first."""

    offer: Offer


class Pass(_Base, frozen=True):
    """Pass the connection through. `reason` is stable and short (a metric label).

    `condition` is what an operator is told, if it is TLS that could otherwise be opened; `server_name` is what the
    client sent, if that is the reason.
    """

    reason: str
    condition: ConditionType | None = None
    server_name: bytes = b""


class Close(_Base, frozen=True):
    """Close the connection. The fields are those of `Pass`."""

    reason: str
    condition: ConditionType | None = None
    server_name: bytes = b""


Verdict = Wait | AskApp | Unparsed | Http | OpenTls | Pass | Close


def unreadable(
    policy: OnUnreadable,
    reason: str,
    *,
    condition: ConditionType | None = None,
    server_name: bytes = b"",
    tls: bool | None = None,
) -> Pass | Close:
    """Return the verdict on what cannot be read: passed through, or closed."""
    if policy is OnUnreadable.CLOSE:
        return Close(reason, condition, server_name, tls=tls)
    return Pass(reason, condition, server_name, tls=tls)


def classify(port: PortFacts, event: Event, data: bytes = b"") -> Verdict:
    """Decide what becomes of a connection. `data` are the client's first bytes, at most PEEK, for DATA."""
    if event is Event.ACCEPTED:
        return _accepted(port)
    if event is Event.DATA:
        return _first_bytes(port, data)
    if event is Event.SILENT:
        return _silent(port)
    return unreadable(port.on_unreadable, _NOTHING_TO_READ[event])


_NOTHING_TO_READ: Final = {
    Event.STILL_SILENT: "silent-client",
    Event.EOF: "silent-client",
    Event.INCOMPLETE: "incomplete-first-message",
    Event.SERVER_FIRST: "server-first",
}


def _accepted(port: PortFacts) -> Verdict:
    whole = port.global_intercept or port.global_wiretap
    if port.on_unreadable is OnUnreadable.PASS and not port.reads_requests and whole:
        return Unparsed()
    return Wait(1, 0.0 if port.server_first and not port.global_intercept else port.detection_seconds)


def _silent(port: PortFacts) -> Verdict:
    if not port.global_intercept:
        return AskApp(IDLE_SECONDS)
    if port.on_unreadable is OnUnreadable.CLOSE:
        return Wait(1, SILENCE_SECONDS)
    return Unparsed()  # the handler may speak first; HTTP clients do not wait


def _first_bytes(port: PortFacts, data: bytes) -> Verdict:
    detected = detect(data)
    protocol = _HTTP.get(detected)
    if protocol is not None:
        if port.tls == "always":
            return unreadable(port.on_unreadable, "clear-on-tls-port", tls=False)
        return Http(protocol, tls=False)
    if detected is Detected.TLS:
        return _hello(port, data)
    if detected is Detected.MORE:
        return _more(port, data, 1, tls=None)
    return unreadable(port.on_unreadable, "not-http")


def _more(port: PortFacts, data: bytes, needed: int, *, tls: bool | None) -> Verdict:
    if len(data) >= PEEK:  # more than any first message holds
        return unreadable(port.on_unreadable, "unjudged", tls=tls)
    return Wait(needed, REST_SECONDS, tls=tls)


def _hello(port: PortFacts, data: bytes) -> Verdict:
    reason = ""
    if port.tls == "never":
        reason = "tls-on-clear-port"
    elif not port.has_certificate:
        reason = "tls-without-certificate"
    else:
        hello = client_hello.parse(data)
        if isinstance(hello, ClientHello):
            return _open(port, hello, data)
        if isinstance(hello, client_hello.Incomplete):
            return _more(port, data, max(1, hello.needed), tls=True)
        reason = "not-a-client-hello"
    return unreadable(port.on_unreadable, reason, tls=True)


def _open(port: PortFacts, hello: ClientHello, data: bytes) -> Verdict:
    """Open TLS, unless the handshake with the app could not offer what the client offers."""
    policy = port.on_unreadable
    if hello.server_name is not None and not hello.server_name_reproducible:
        condition = ConditionType.SNI_UNSUPPORTED
        return unreadable(policy, "server-name", condition=condition, server_name=hello.server_name, tls=True)
    if hello.allows_late_auth and port.late_client_auth:
        condition = ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER
        return unreadable(policy, "asks-later", condition=condition, tls=True)
    if not hello.modern:
        return unreadable(policy, "tls-version", tls=True)
    if not all(0 < len(name) < 256 and name.isascii() for name in hello.alpn):
        return unreadable(policy, "alpn-not-ascii", tls=True)
    name = hello.server_name.decode("ascii") if hello.server_name is not None else None
    alpn = tuple(each.decode("ascii") for each in hello.alpn)
    return OpenTls(Offer(data[: hello.size], hello.shape, name, alpn, hello.allows_late_auth), tls=True)


def classify_decrypted(policy: OnUnreadable, event: Event, data: bytes = b"") -> Wait | Http | Pass | Close:
    """Decide what a client speaks inside TLS whose app chose no protocol. `data`: all that the client has sent."""
    if event is Event.ACCEPTED:
        return Wait(1, IDLE_SECONDS, tls=True)
    if event is Event.SERVER_FIRST:
        return unreadable(policy, "tls-server-first", tls=True)
    if event is Event.SILENT:
        return unreadable(policy, "tls-silent-client", tls=True)
    detected = detect(data)
    protocol = _HTTP.get(detected)
    if protocol is not None:
        return Http(protocol, tls=True)
    if detected is Detected.MORE and event is Event.DATA:
        return Wait(1, REST_SECONDS, tls=True)
    return unreadable(policy, "tls-not-http", tls=True)
