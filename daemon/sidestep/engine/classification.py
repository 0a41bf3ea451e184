"""What becomes of a new connection: decided here, from its first bytes and what is known of its port. Pure.

`classify` takes what is known (`PortFacts`), what has just happened (`Event`) and the client's first bytes, peeked and
not consumed, and returns a verdict, a value that `proxy/connection/classification.py` carries out:

    Wait         look again when more bytes are there, or after some seconds
    AskApp       the client is silent: connect to the app and see who speaks first
    Unparsed     nobody wants requests of this port to be read: carry the connection for those who want it whole
    Http         relay requests, in clear
    OpenTls      finish the handshake with the app, then with the client, and relay by the protocol the app chose
    Pass, Close  it cannot be read: pass it through to whoever would get it, or close it, with the reason

Whether something unreadable is passed or closed is decided by `unreadable` alone, also for what is found out later: by
the handshakes, and by the first decrypted bytes (`classify_decrypted`).

Invariants: the verdict for a prefix of the first message is Wait or the verdict for the whole, so it does not matter
how the bytes arrive; on a port with `OnUnreadable.CLOSE` neither Pass nor Unparsed is ever a verdict.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, Literal

from sidestep.engine.relay import OnUnreadable
from sidestep.model.condition import ConditionType
from sidestep.protocols import client_hello
from sidestep.protocols.client_hello import ClientHello
from sidestep.protocols.detection import Detected, detect

PEEK: Final = 64 * 1024
"""Bytes of a connection looked at before it is judged; a ClientHello is far smaller."""
REST_SECONDS: Final = 10.0
"""Seconds for the rest of a first message that began."""
SILENCE_SECONDS: Final = 60.0
"""Seconds for the first byte where neither app nor handler can be asked to speak first: what servers commonly give
(nginx: client_header_timeout 60s)."""

Protocol = Literal["http/1.1", "h2"]
_HTTP: Final[dict[Detected, Protocol]] = {Detected.HTTP1: "http/1.1", Detected.HTTP2: "h2"}


class Event(enum.Enum):
    """What has just happened to a connection."""

    ACCEPTED = enum.auto()
    """It was accepted. Nothing was read."""
    SAID = enum.auto()
    """The client has said something; the bytes are at hand."""
    SILENT = enum.auto()
    """The time to wait for its first byte is over."""
    STILL_SILENT = enum.auto()
    """So is the second, longer one."""
    ENDED = enum.auto()
    """It has ended and said nothing."""
    INCOMPLETE = enum.auto()
    """Its first message began and does not go on."""
    APP_FIRST = enum.auto()
    """The app, which was asked, spoke or ended before it."""


@dataclass(frozen=True, slots=True)
class PortFacts:
    """What is known of the port that a connection came to, and of the client.

    `tls` is "never", "always" or "probe"; `certificate` whether there is one to open TLS with; `reads` whether somebody
    wants requests to be read; `whole` whether a global intercept takes this client's connections; `copied` whether a
    wiretap wants whole connections; `asks_later` whether the app would ask a client after the handshake for a
    certificate that only the client has; `greets` whether the app spoke first the last time that a client was silent.
    """

    tls: str
    certificate: bool
    reads: bool
    whole: bool
    copied: bool
    on_unreadable: OnUnreadable
    asks_later: bool
    greets: bool
    detection_seconds: float


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client began with: its ClientHello as it came, what of it decides whether a certificate will do (see
    `client_hello`), its server name, its ALPN list, and whether servers may ask for its certificate later.
    """

    hello: bytes
    shape: tuple[bytes, ...]
    server_name: str | None
    alpn: tuple[str, ...]
    askable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    tls: bool | None = None
    """Whether the client speaks TLS; None: its bytes do not tell, or tell of neither TLS nor HTTP."""


@dataclass(frozen=True, slots=True)
class Wait(_Base):
    """Look again when `more` bytes beyond those at hand are there; after `seconds` the time is over."""

    more: int
    seconds: float


@dataclass(frozen=True, slots=True)
class AskApp(_Base):
    """See the module."""


@dataclass(frozen=True, slots=True)
class Unparsed(_Base):
    """See the module."""


@dataclass(frozen=True, slots=True)
class Http(_Base):
    """See the module."""

    protocol: Protocol


@dataclass(frozen=True, slots=True)
class OpenTls(_Base):
    """See the module."""

    offer: Offer


@dataclass(frozen=True, slots=True)
class Pass(_Base):
    """Pass the connection through. `reason` is stable and short (a metric label).

    `condition` is what an operator is told, if it is TLS that could otherwise be opened; `server_name` is what the
    client sent, if that is the reason.
    """

    reason: str
    condition: ConditionType | None = None
    server_name: bytes = b""


@dataclass(frozen=True, slots=True)
class Close(_Base):
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
    """The verdict on what cannot be read: passed through, or closed."""
    if policy is OnUnreadable.CLOSE:
        return Close(reason, condition, server_name, tls=tls)
    return Pass(reason, condition, server_name, tls=tls)


def classify(port: PortFacts, event: Event, data: bytes = b"") -> Verdict:
    """Decide what becomes of a connection. `data` are the client's first bytes, at most PEEK, for SAID."""
    if event is Event.ACCEPTED:
        return _accepted(port)
    if event is Event.SAID:
        return _said(port, data)
    if event is Event.SILENT:
        return _silent(port)
    return unreadable(port.on_unreadable, _NOTHING_TO_READ[event])


_NOTHING_TO_READ: Final = {
    Event.STILL_SILENT: "silent-client",
    Event.ENDED: "silent-client",
    Event.INCOMPLETE: "incomplete-first-message",
    Event.APP_FIRST: "server-first",
}


def _accepted(port: PortFacts) -> Verdict:
    if port.on_unreadable is OnUnreadable.PASS and not port.reads and (port.whole or port.copied):
        return Unparsed()
    return Wait(1, 0.0 if port.greets and not port.whole else port.detection_seconds)


def _silent(port: PortFacts) -> Verdict:
    if not port.whole:
        return AskApp()
    if port.on_unreadable is OnUnreadable.CLOSE:
        return Wait(1, SILENCE_SECONDS)
    return Unparsed()  # the handler may speak first; a client that was silent is one of no HTTP


def _said(port: PortFacts, data: bytes) -> Verdict:
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
    elif not port.certificate:
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
    if hello.askable and port.asks_later:
        condition = ConditionType.CLIENT_CERTIFICATE_REQUESTED_LATER
        return unreadable(policy, "asks-later", condition=condition, tls=True)
    if not hello.modern:
        return unreadable(policy, "tls-version", tls=True)
    if not all(0 < len(name) < 256 and name.isascii() for name in hello.alpn):
        return unreadable(policy, "alpn-not-ascii", tls=True)
    name = hello.server_name.decode("ascii") if hello.server_name is not None else None
    alpn = tuple(each.decode("ascii") for each in hello.alpn)
    return OpenTls(Offer(data[: hello.size], hello.shape, name, alpn, hello.askable), tls=True)


def classify_decrypted(policy: OnUnreadable, words: bytes, *, ended: bool) -> Wait | Http | Pass | Close:
    """Decide what a client speaks inside TLS whose app chose no protocol. `ended`: no more comes."""
    detected = detect(words)
    protocol = _HTTP.get(detected)
    if protocol is not None:
        return Http(protocol, tls=True)
    if detected is Detected.MORE and not ended:
        return Wait(1, REST_SECONDS, tls=True)
    return unreadable(policy, "tls-not-http", tls=True)
