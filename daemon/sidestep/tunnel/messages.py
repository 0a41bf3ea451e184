"""Messages of the tunnel other than diverted bytes: the session's request, the hello, the events. Strict JSON,
versioned.

Structs from a peer accept unknown fields, because a newer peer may send more, but no wrong types. Readers bound the
size of a message; `Meta` bounds counts and lengths.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from sidestep.config.schema_fault import fault_of
from sidestep.model.errors import PeerError

VERSION = 1
"""Version of the messages in this file and of the tunnel's streams."""
UPGRADE = "sidestep-tunnel"
"""Token of the HTTP/1.1 Upgrade that turns the unix socket into a tunnel."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
OptionalName = Annotated[str, msgspec.Meta(max_length=253)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]


class HeaderSpec(msgspec.Struct, frozen=True):
    """A header condition; fields as in `model.filter.HeaderCondition`."""

    name: Name
    test: Literal["exact", "regex", "present"]
    value: Text = ""


class PathSpec(msgspec.Struct, frozen=True):
    """A path condition; fields as in `model.filter.PathCondition`."""

    test: Literal["equal", "prefix", "regex"]
    value: Text


class SessionSpec(msgspec.Struct, frozen=True):
    """Body of `POST /v1/sessions`: the intercept that a session requests. With an empty `name` the daemon chooses one.

    `claimed_owner` is displayed when the peer is root (a person behind sudo); it is never trusted. A session that
    returns after its tunnel broke identifies its intercept with `resume` and `created` (`Hello.intercept`,
    `Hello.created`).
    """

    namespace: Name
    workload: Name
    """`name` or `kind/name`."""
    port: Annotated[str, msgspec.Meta(max_length=63)]
    """A service or container port, name or number; empty with `egress`."""
    name: Annotated[str, msgspec.Meta(max_length=253)] = ""
    kind: Literal["intercept", "wiretap"] = "intercept"
    heads_only: bool = False
    """For a wiretap: receive events about requests, but no copies."""
    capture: Literal["", "heads", "all"] = ""
    """For a wiretap: receive a capture of connections, not copies of requests (`model.intercept.Snap`)."""
    duration: float = 0.0
    """Seconds after which a capture ends; 0: the default of `config.capture`."""
    records: Literal["", "alerts", "all"] = ""
    """For a wiretap: receive records of inspection, not copies of requests (`model.intercept.Live`)."""
    max_bytes: int = 0
    """Bytes after which a capture ends; 0: the default of `config.capture`."""
    transport: Literal["tcp", "udp"] = "tcp"
    headers: Annotated[tuple[HeaderSpec, ...], msgspec.Meta(max_length=64)] = ()
    methods: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)] = ()
    paths: Annotated[tuple[PathSpec, ...], msgspec.Meta(max_length=64)] = ()
    pod: Annotated[str, msgspec.Meta(max_length=253)] = ""
    claimed_owner: Annotated[str, msgspec.Meta(max_length=64)] = ""
    plaintext: bool = False
    divert_probes: bool = False
    reset_existing: bool = False
    resume: Annotated[str, msgspec.Meta(max_length=64)] = ""
    created: float = 0.0
    egress: bool = False
    """For a wiretap: of connections that the pods make (`model.intercept.Intercept.egress`)."""
    allow: Annotated[tuple[Literal["environment", "network", "files"], ...], msgspec.Meta(max_length=3)] = ()
    """For a wiretap without traffic: what it may use of the pods' world (`model.intercept.Allow`)."""
    container: Annotated[str, msgspec.Meta(max_length=63)] = ""
    """With `allow`: the container whose world it is; "": the pod's default one."""
    allow_loopback: bool = False
    """With `allow` "network": connections to the pod's loopback, too."""
    statuses: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=8)], ...], msgspec.Meta(max_length=32)] = ()
    """Receive events about requests that were answered so only (`model.shown.Shown`)."""
    since: float = 0.0
    last: int = 0
    """For flows, or a wiretap with a filter: receive events about earlier requests."""
    alert: Annotated[str, msgspec.Meta(max_length=28)] = ""
    """With `records` "alerts": receive the alerts of this exchange first (`model.intercept.Intercept.alert`)."""


class Hello(msgspec.Struct, frozen=True):
    """Body of `POST /v1/hello`, from the daemon. `nonce` is the value that a proof must sign (hex).

    Over the unix socket the daemon names the intercept; in a cluster the answer names it.
    """

    version: int
    software: Text
    node: Text
    nonce: Annotated[str, msgspec.Meta(max_length=128)]
    intercept: OptionalName
    """uid of the session's intercept; "" when the answer must name it."""
    namespace: OptionalName
    name: OptionalName
    created: float = 0.0
    """Start of the intercept in seconds since the epoch."""


class HelloAnswer(msgspec.Struct, frozen=True):
    """The CLI's answer. `version` is the one that is used (`tunnel.versions`), `software` the release of the CLI, ""
    from one that does not say it. `serves` are uids. `proof` is empty in local mode, where the peer credentials of the
    unix socket are the proof.
    """

    version: int
    serves: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)]
    proof: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    software: Annotated[str, msgspec.Meta(max_length=64)] = ""


class PodState(msgspec.Struct, frozen=True):
    """One pod of the session's workload. `state`: active, attached (no connection seen yet), pending or failed."""

    pod: Text
    state: Text
    detail: Text = ""


class ConditionText(msgspec.Struct, frozen=True):
    """A condition that concerns the session: `model.condition.Condition` as text."""

    type: Text
    subject: Text
    text: Text


class Event(msgspec.Struct, frozen=True, tag_field="event"):
    """Base of the events; one JSON line each."""


class State(Event, frozen=True, tag="state"):
    """Snapshot of the session's pods and conditions. A newer one replaces it; repeating one changes nothing."""

    pods: tuple[PodState, ...]
    conditions: tuple[ConditionText, ...] = ()

    @property
    def active(self) -> int:
        """Number of pods whose connections reach the session."""
        return sum(pod.state in {"active", "attached"} for pod in self.pods)


class Answer(msgspec.Struct, frozen=True):
    """How a request was answered, once the answer is whole or will not become so."""

    status: int
    """0: not at all."""
    by: str
    """"app", "handler", "sidestep" (an error of Sidestep's own), or "" where nobody has answered."""
    handler: str = ""
    """`namespace/name` of the intercept whose handler has answered."""
    seconds: float = 0.0
    """From the request's head to the end of the answer."""
    sent: int = 0
    """Bytes of the request's body, ..."""
    received: int = 0
    """... and of the answer's. HTTP/1: as on the wire, with the framing of chunks."""
    whole: bool = True
    """False: it broke off."""
    head: str = ""
    """Field lines of the answer, separated by CR LF, for flows and wiretaps; secrets are redacted."""


class TlsFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The client's TLS connection, as OpenSSL names things."""

    version: str
    cipher: str
    alpn: str = ""
    """The protocol that was chosen."""
    server_name: str = ""
    """The client's SNI."""
    client: str = ""
    """The subject of the client's verified certificate."""
    ja3: str = ""
    """The fingerprints of its ClientHello, of connections that began while a session was shown the port's requests."""
    ja4: str = ""


class Request(Event, frozen=True, tag="request"):
    """One diverted, copied or shown request.

    Method, path and authority are the received bytes as UTF-8, with invalid bytes replaced. `time`, when its head came,
    is in seconds since the epoch, by the daemon's clock.
    """

    time: float
    pod: Text
    port: int
    client: Text
    client_port: int
    method: str
    path: str
    authority: str
    copied: bool = False
    lost: str = ""
    """"dropped" or "truncated": the part of the copy that did not reach the handler. A truncation is reported by a
    second event when it happens, without the texts."""
    fields: tuple[tuple[str, str], ...] = ()
    """Header fields, for a session of heads only; secrets are redacted."""
    server: str = ""
    """Of a connection that the pod makes: the server's address; `port` is its port, and the client is the pod."""
    protocol: str = ""
    """"http/1.0", "http/1.1" or "h2"; "" where it is not known. Of a connection that the pod makes: "http", or "tls" or
    "tcp", which have no request. `authority` is the name of the server."""
    tls: bool = False
    """The client came over TLS."""
    trace: str = ""
    """Id of the trace that it belongs to, from `traceparent`, `b3` or `x-b3-traceid`."""
    number: int = 0
    """An `Answered` event of the same pod and number follows; 0: none does."""
    answer: Answer | None = None
    """The answer, if that is known already."""
    earlier: bool = False
    """It came before the session began, and was kept by the pod proxy."""
    tls_facts: TlsFacts | None = None
    """More of a client that came over TLS."""


class Answered(Event, frozen=True, tag="answered"):
    """The answer to the request of a pod that was told with this number."""

    pod: Text
    port: int
    number: int
    answer: Answer


class Earlier(Event, frozen=True, tag="earlier"):
    """A pod has told its `count` earlier requests that the session is shown; others may follow from other pods, or
    ports. `kept`: requests were kept there before."""

    pod: Text
    port: int
    count: int
    kept: bool


class Lost(Event, frozen=True, tag="lost"):
    """`count` copies of a pod's requests or connections were not made and have no `Request` event. Sent at most twice a
    second.

    `reason`: "handler" (it refuses copies), "room" (too many are queued) or "budget" (copying has used its share of
    time). For a session that receives records: `count` records were not sent, for one of these reasons or one of
    `node.records.live.REASONS`; `port` is 0 where it is not known.
    """

    pod: Text
    port: int
    count: int
    reason: str


class Dropped(Event, frozen=True, tag="dropped"):
    """`count` request events were dropped because they arrived faster than the session read them."""

    count: int


class Ended(Event, frozen=True, tag="ended"):
    """The last event: the daemon ends the session. `failed` is True for a shutdown or an error, False for a `leave`.

    `over`: the session has what it asked for, and is over on every node.
    """

    reason: Text
    failed: bool = False
    over: bool = False


class Moving(Event, frozen=True, tag="moving"):
    """The daemon drains: the session should register again. This tunnel serves its connections until it is closed."""

    reason: Text


AnyEvent = State | Request | Answered | Earlier | Lost | Dropped | Ended | Moving

_M = TypeVar("_M")


def encode(message: msgspec.Struct) -> bytes:
    """Encode as JSON without a line end."""
    return msgspec.json.encode(message)


def decode(data: bytes, kind: type[_M], *, what: str) -> _M:
    """Decode JSON from a peer. Raises PeerError with `what` and the invalid field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"{what} cannot be read: {fault_of(error)}") from error


class _Tag(msgspec.Struct):
    event: str


_TAGS = msgspec.json.Decoder(_Tag)
_EVENTS: dict[str, msgspec.json.Decoder[AnyEvent]] = {
    "state": msgspec.json.Decoder(State),
    "request": msgspec.json.Decoder(Request),
    "answered": msgspec.json.Decoder(Answered),
    "earlier": msgspec.json.Decoder(Earlier),
    "lost": msgspec.json.Decoder(Lost),
    "dropped": msgspec.json.Decoder(Dropped),
    "ended": msgspec.json.Decoder(Ended),
    "moving": msgspec.json.Decoder(Moving),
}


def decode_event(line: bytes) -> AnyEvent | None:
    """Decode one event line; None for an event type that this version does not know. Raises PeerError."""
    try:
        decoder = _EVENTS.get(_TAGS.decode(line).event)
        return None if decoder is None else decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"an event of the daemon cannot be read: {fault_of(error)}") from error
