"""What the tunnel carries besides diverted bytes: the session's wish, the hello, the events. JSON, strict, versioned.

Structs that come from a peer accept unknown fields (a newer peer may say more) but no wrong types; sizes are bounded by
whoever reads them off the wire, counts and lengths by `Meta` here.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from sidestep.config.schema_fault import fault_of
from sidestep.model.errors import PeerError

VERSION = 1
"""Version of everything in this file and of the tunnel's streams."""
UPGRADE = "sidestep-tunnel"
"""Token of the HTTP/1.1 Upgrade that turns the unix socket into a tunnel."""

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
OptionalName = Annotated[str, msgspec.Meta(max_length=253)]
Text = Annotated[str, msgspec.Meta(max_length=4096)]


class HeaderSpec(msgspec.Struct, frozen=True):
    """A header condition; the fields are those of `model.filter.HeaderCondition`."""

    name: Name
    test: Literal["exact", "regex", "present"]
    value: Text = ""


class PathSpec(msgspec.Struct, frozen=True):
    """A path condition; the fields are those of `model.filter.PathCondition`."""

    test: Literal["equal", "prefix", "regex"]
    value: Text


class SessionSpec(msgspec.Struct, frozen=True):
    """Body of `POST /v1/sessions`: what this session wants. An empty `name` lets the daemon choose one.

    `claimed_owner` is shown when the peer is root (a person behind sudo), never trusted. A session that comes back
    after its tunnel broke says with `resume` and `created` which intercept it is (`Hello.intercept`, `Hello.created`).
    """

    namespace: Name
    workload: Name
    """`name` or `kind/name`."""
    port: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    name: Annotated[str, msgspec.Meta(max_length=253)] = ""
    kind: Literal["intercept", "wiretap"] = "intercept"
    heads_only: bool = False
    """A wiretap that wants to be told of requests and gets no copies."""
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


class Hello(msgspec.Struct, frozen=True):
    """Body of `POST /v1/hello`, from the daemon. `nonce` is what a proof has to sign (hex).

    Over the unix socket the daemon names the intercept; in a cluster it names none, the answer does.
    """

    version: int
    software: Text
    node: Text
    nonce: Annotated[str, msgspec.Meta(max_length=128)]
    intercept: OptionalName
    """uid of the intercept this session holds, "" when the answer has to name it."""
    namespace: OptionalName
    name: OptionalName
    created: float = 0.0
    """When the intercept began, seconds since the epoch."""


class HelloAnswer(msgspec.Struct, frozen=True):
    """The CLI's answer. `serves` are uids; `proof` is empty in local mode, where the unix socket's peer credentials are
    the proof.
    """

    version: int
    serves: Annotated[tuple[Name, ...], msgspec.Meta(max_length=64)]
    proof: Annotated[str, msgspec.Meta(max_length=1024)] = ""


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
    """Snapshot of what the session has; a newer one replaces it. Sending one twice changes nothing."""

    pods: tuple[PodState, ...]
    conditions: tuple[ConditionText, ...] = ()

    @property
    def active(self) -> int:
        """Number of pods whose connections reach the session."""
        return sum(pod.state in {"active", "attached"} for pod in self.pods)


class Request(Event, frozen=True, tag="request"):
    """One diverted or copied request. Its texts are those of `proxy.control.messages.LoggedRequest`: UTF-8, what is not
    UTF-8 replaced. `time` is seconds since the epoch at the daemon.
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
    """"dropped" or "truncated": what of the copy did not reach the handler. A truncation is told once more, when it
    happens, without the texts."""
    fields: tuple[tuple[str, str], ...] = ()
    """Header fields for a session of heads; secrets are redacted."""


class Lost(Event, frozen=True, tag="lost"):
    """`count` copies of a pod's requests or connections were not made, without a line for each; twice a second at most.

    `reason`: "handler" (it refuses them), "room" (too many wait for it) or "budget" (copying takes its share of time).
    """

    pod: Text
    port: int
    count: int
    reason: str


class Dropped(Event, frozen=True, tag="dropped"):
    """`count` request lines were dropped because they came faster than the session took them."""

    count: int


class Ended(Event, frozen=True, tag="ended"):
    """The last event: the daemon ends the session. `failed` tells a shutdown or an error from a `leave`."""

    reason: Text
    failed: bool = False


class Moving(Event, frozen=True, tag="moving"):
    """The daemon drains: the session should register anew; this tunnel serves what it has until it is closed."""

    reason: Text


AnyEvent = State | Request | Lost | Dropped | Ended | Moving

_M = TypeVar("_M")


def encode(message: msgspec.Struct) -> bytes:
    """Encode as JSON without a line end."""
    return msgspec.json.encode(message)


def decode(data: bytes, kind: type[_M], *, what: str) -> _M:
    """Decode JSON from a peer. Raises PeerError naming `what` and the field."""
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
    "lost": msgspec.json.Decoder(Lost),
    "dropped": msgspec.json.Decoder(Dropped),
    "ended": msgspec.json.Decoder(Ended),
    "moving": msgspec.json.Decoder(Moving),
}


def decode_event(line: bytes) -> AnyEvent | None:
    """Decode one event line; None for a kind of event that this version does not know. Raises PeerError."""
    try:
        decoder = _EVENTS.get(_TAGS.decode(line).event)
        return None if decoder is None else decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"an event of the daemon cannot be read: {fault_of(error)}") from error
