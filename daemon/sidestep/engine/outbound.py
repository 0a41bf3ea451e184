"""Decides what becomes of a connection that the pod makes, from its first bytes. Pure.

`see` looks at them, peeked and not consumed, and returns

    Wait      look again when more bytes are there, or after some seconds
    AskApp    the pod's process is silent: connect to the server and see who speaks first
    Seen      what they tell: the name that the connection is for, and its ClientHello

and `decide` says what follows from that: `Decision`. `proxy/egress/` carries it out.

What a connection is opened for (`Decision.opening`) depends on what its client speaks

    clear HTTP and a destination with Originate    ORIGINATE: requests are judged, and leave in TLS (`tls_port`)
    any other clear HTTP that a policy may mean    READ: each request is judged by its own host, and leaves in clear
    clear HTTP that cannot be read, or may follow  not opened: `reason` says why, where a rule looks at requests
    TLS and a destination with Decrypt             DECRYPT: TLS is finished with the server, then with the client
    anything else that a destination wants opened  not opened: `reason` says why

HTTP/2 in clear tells its hosts later than a server has to be chosen, so it is READ and never ORIGINATE; a request to
CONNECT begins a tunnel, which is judged by its name alone.

Invariants
  * The answer for a prefix of the first message is Wait or the answer for the whole, so it does not matter how the
    bytes arrive; only the word for what is wrong with a head may be another. Each wait has a deadline, after which
    something is seen.
  * A name is certain only if nothing else in the first message could be meant. With an encrypted ClientHello the SNI
    is that of the provider; with ambiguous HTTP the server may read another Host.
  * Nothing is closed but by a rule that blocks, or by a policy that enforces and fails closed. Whatever else is odd
    goes end to end, and is told (`Decision.reason`) if a policy would have had something to say.
  * TLS is made with a server only if the name is certain: the server is verified under it. Nor is it if a request asks
    a proxy for another server, because the name is not that of whoever answers.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass, field
from typing import Final

import msgspec
from msgspec.structs import replace

from sidestep.engine.classification import IDLE_SECONDS, PEEK, REST_SECONDS, AskApp, Event, Protocol, Wait
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.egress import EgressPolicies, EgressPolicy, Treatment
from sidestep.policy.inspected_exchange import Verdict
from sidestep.policy.inspection_match import Address, ConnectionFacts
from sidestep.policy.outbound_hosts import server_name
from sidestep.protocols import client_hello, http1, ja4
from sidestep.protocols.client_hello import ClientHello
from sidestep.protocols.detection import Detected, detect
from sidestep.protocols.eve import split_port
from sidestep.protocols.http1 import RequestHead

SILENCE: Final = 0.05
"""Seconds for the first byte before the server is connected to. A client that speaks first mostly does within a
millisecond; servers that speak first (SMTP, MySQL) are reached so much later."""
_HTTP2: Final = "http2-in-clear"
_INCOMPLETE: Final = "incomplete-first-message"
_SILENT: Final = "silent-client"
_LATE: Final = frozenset((_INCOMPLETE, _SILENT))
"""Doubts about a client that may still say anything."""
_NOTHING_SEEN: Final = {
    Event.STILL_SILENT: _SILENT,
    Event.EOF: "client-ended",
    Event.INCOMPLETE: _INCOMPLETE,
    Event.SERVER_FIRST: "server-first",
}

_LIKE_REQUEST: Final = re.compile(rb"[A-Za-z][!-~]{0,1023}[ \t\v\f\r]+(?:/|\*|[A-Za-z][A-Za-z0-9+.-]*://)")
"""A word, white space, and what may be the target of a request."""
_MAY_BECOME_REQUEST: Final = re.compile(rb"[A-Za-z][!-~]{0,1023}(?:[ \t\v\f\r]+(?:[A-Za-z][A-Za-z0-9+.-]{0,31}:?/?)?)?")
"""A beginning of it. Lines of other protocols end before it, or have another word there."""

_HTTP, _HTTPS = 80, 443


NO_HITS: Final = Verdict()
_UNTREATED: Final = Treatment()
_NO_FACTS: Final = ConnectionFacts()


class Opening(enum.Enum):
    """How a connection is opened."""

    ORIGINATE = enum.auto()
    READ = enum.auto()
    DECRYPT = enum.auto()


def tls_port(port: int) -> int:
    """The port at which a server speaks TLS whose clear HTTP is at `port`: 443 for 80, and any other for itself."""
    return _HTTPS if port == _HTTP else port


@dataclass(frozen=True, slots=True)
class Seen:
    """What the first bytes tell. `doubt` says why the name is not certain, or not known; empty if it is.

    `protocol` is "tls", "http" or "". `hello` is there for TLS that could be read, `request` for HTTP/1 in clear.
    `asks_proxy`: a request names the server for which a proxy is asked (RFC 9112 section 3.2).
    """

    protocol: str = ""
    name: str = ""
    doubt: str = ""
    hello: ClientHello | None = None
    request: RequestHead | None = field(default=None, compare=False)
    asks_proxy: bool = False

    @property
    def clear_http(self) -> Protocol | None:
        """What requests in clear can be read as; None if there are none, or they cannot be read."""
        if self.doubt == _HTTP2:
            return "h2"
        is_request = self.request is not None and not self.request.flags & http1.CONNECT
        return "http/1.1" if is_request else None

    @property
    def may_hide_request(self) -> bool:
        """Whether a server may read a request in clear where none can be read here: the head is ambiguous or too long,
        or the client was waited for in vain and may go on later."""
        if self.request is not None or self.clear_http is not None:
            return False
        return (self.protocol == "http" and bool(self.doubt)) or (not self.protocol and self.doubt in _LATE)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """JA3 and JA4, if there is a ClientHello."""
        if self.hello is None:
            return ()
        known = ja4.fingerprints(self.hello)
        return known.ja3, known.ja4


class Decision(msgspec.Struct, frozen=True):
    """What becomes of a connection. `reason` says why it was not judged as a policy wants; empty if it was.

    `is_judged`: some policy is about it, or might be. `facts` are what rules about its requests may ask of it.
    `reading` are the policies that may be about one of its requests, where they are read.
    """

    verdict: Verdict = NO_HITS
    reason: str = ""
    closes: bool = False
    is_judged: bool = False
    opening: Opening | None = None
    treatment: Treatment = _UNTREATED
    facts: ConnectionFacts = _NO_FACTS
    reading: tuple[EgressPolicy, ...] = ()

    @property
    def blocks(self) -> bool:
        """Whether a rule blocks it."""
        return self.verdict.outcome is Outcome.BLOCK

    @property
    def opener(self) -> EgressPolicy | None:
        """The policy that says what the connection is opened with."""
        is_clear = self.opening is Opening.ORIGINATE
        return self.treatment.originator if is_clear else self.treatment.decryptor

    def unopened(self, reason: str) -> Decision:
        """The decision where the connection cannot be opened, for this reason."""
        return replace(self, opening=None, reason=reason, closes=self.treatment.closes_unread)


def see(event: Event, data: bytes = b"") -> Wait | AskApp | Seen:
    """Look at the first bytes; `data` are all of them, at most PEEK, for DATA."""
    if event is Event.ACCEPTED:
        return Wait(1, SILENCE)
    if event is Event.SILENT:
        return AskApp(IDLE_SECONDS)
    if event is not Event.DATA:
        return Seen(doubt=_NOTHING_SEEN[event])
    match detect(data):
        case Detected.TLS:
            return _hello(data)
        case Detected.HTTP1:
            return _request(data)
        case Detected.HTTP2:
            return Seen("http", doubt=_HTTP2)
        case Detected.MORE:
            return _more(data, 1, Seen(doubt="unjudged"))
        case Detected.OTHER:
            return _other(data)


def _other(data: bytes) -> Wait | Seen:
    """What is neither TLS nor well-formed HTTP. Servers take more: they skip empty lines before a request (RFC 9112
    section 2.2), many take any white space between its words (section 3), and any scheme or method."""
    rest = data.lstrip(b"\r\n \t")
    found = Detected.OTHER if rest == data else detect(rest)
    if found is Detected.MORE:
        return _more(data, 1, Seen("http", doubt="h1-leading-empty-line"))
    if found in (Detected.HTTP1, Detected.HTTP2):
        return Seen("http", doubt="h1-leading-empty-line")
    if _LIKE_REQUEST.match(rest):
        return Seen("http", doubt="h1-request-line")
    if _MAY_BECOME_REQUEST.fullmatch(rest):
        return _more(data, 1, Seen("http", doubt="h1-request-line"))
    return Seen(doubt="not-http")


def decide(policies: EgressPolicies, facts: ConnectionFacts, seen: Seen, now: float) -> Decision:
    """Judge a connection of which everything is known that will be. `facts` are those of its addresses."""
    assert facts.destination is not None  # noqa: S101 - of every connection that a pod makes
    treatment = policies.treatment(facts.destination, facts.port, seen.name, is_certain=not seen.doubt)
    if seen.clear_http is not None and _opening(treatment, seen) is None:
        reading = policies.reaching(facts.destination, facts.port)
        return _read(policies, facts, seen, treatment, reading) if reading else Decision()
    if not (treatment.policies or treatment.doubtful):
        return Decision()
    asked = policies.looks_at_fingerprints and any(each.looks_at_fingerprints for each in treatment.policies)
    known = dataclasses.replace(facts, server_name=seen.name, fingerprints=seen.fingerprints if asked else ())
    verdict = policies.verdict(treatment, known, now)
    reason, closes = _unread(treatment, seen)
    opening = None if reason or treatment.doubtful else _opening(treatment, seen)
    reading = () if opening is None else policies.reaching(facts.destination, facts.port)
    return Decision(
        verdict, reason, closes, is_judged=True, opening=opening, treatment=treatment, facts=known, reading=reading
    )


def blocks_whatever_follows(policies: EgressPolicies, address: Address, port: int) -> bool:
    """Whether a connection is blocked by its address and port alone, so that its server need not hear of it."""
    if not policies.may_block_addresses:
        return False
    return policies.blocks_address(policies.treatment(address, port), ConnectionFacts(destination=address, port=port))


def _read(
    policies: EgressPolicies,
    facts: ConnectionFacts,
    seen: Seen,
    treatment: Treatment,
    reading: tuple[EgressPolicy, ...],
) -> Decision:
    """The decision on clear HTTP that leaves in clear. It is told, or closed, if a destination wants it in TLS."""
    assert facts.destination is not None  # noqa: S101 - as in `decide`
    wants_tls = policies.originating(facts.destination, facts.port, "" if seen.doubt else seen.name)
    reason = (seen.doubt or ("asks-a-proxy" if seen.asks_proxy else "not-opened")) if wants_tls else ""
    closes = any(each.policy.closes for each in wants_tls)
    opening = None if closes else Opening.READ
    return Decision(
        NO_HITS, reason, closes, is_judged=True, opening=opening, treatment=treatment, facts=facts, reading=reading
    )


def _unread(treatment: Treatment, seen: Seen) -> tuple[str, bool]:
    """Why a connection is not judged as a policy wants, and whether it is closed for that."""
    is_wanted = (treatment.decrypts and seen.protocol != "http") or (treatment.originates and seen.protocol != "tls")
    is_unread = is_wanted and _opening(treatment, seen) is None
    hidden_from = [each for each in treatment.policies if each.looks_at_requests] if seen.may_hide_request else []
    closes = (is_unread and treatment.closes_unread) or any(each.policy.closes for each in hidden_from)
    if treatment.doubtful:
        return seen.doubt, closes or treatment.closes_unnamed
    if not (is_unread or hidden_from):
        return "", False
    return seen.doubt or ("asks-a-proxy" if seen.asks_proxy else "not-opened"), closes


def _opening(treatment: Treatment, seen: Seen) -> Opening | None:
    """How a connection is opened; None if it is not, or cannot be."""
    if seen.doubt or seen.asks_proxy:
        return None
    if seen.protocol == "tls":
        return Opening.DECRYPT if treatment.decrypts else None
    return Opening.ORIGINATE if seen.protocol == "http" and treatment.originates else None


def _more(data: bytes, needed: int, otherwise: Seen) -> Wait | Seen:
    return otherwise if len(data) >= PEEK else Wait(needed, REST_SECONDS)


def _hello(data: bytes) -> Wait | Seen:
    hello = client_hello.parse(data)
    if isinstance(hello, client_hello.Incomplete):
        return _more(data, max(1, hello.needed), Seen("tls", doubt="unjudged"))
    if not isinstance(hello, ClientHello):
        return Seen("tls", doubt="not-a-client-hello")
    if hello.server_name is None:
        return Seen("tls", doubt="no-server-name", hello=hello)
    name = server_name(hello.server_name)
    if not name:
        return Seen("tls", doubt="server-name", hello=hello)
    return Seen("tls", name, "encrypted-client-hello" if hello.encrypted_client_hello else "", hello)


def _request(data: bytes) -> Wait | Seen:
    """The name of the first request."""
    end = data.find(http1.END_OF_HEAD)
    if end < 0:
        checked = http1.check_prefix(bytearray(data), 0, 0, http1.REQUEST_LINE)
        if isinstance(checked, str):
            return Seen("http", doubt=checked)
        return _more(data, 1, Seen("http", doubt="h1-head-too-large"))
    head = http1.parse_request(data[: end + len(http1.END_OF_HEAD)])
    if isinstance(head, str):
        return Seen("http", doubt=head)
    host, _ = split_port(head.target if head.flags & http1.CONNECT else head.authority)
    name = server_name(host)
    if not name:
        return Seen("http", doubt="no-server-name", request=head)
    asks_proxy = not data.split(b" ", 2)[1].startswith((b"/", b"*"))
    return Seen("http", name, request=head, asks_proxy=asks_proxy)
