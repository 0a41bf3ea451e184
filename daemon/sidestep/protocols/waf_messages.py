"""Packets between whoever asks for verdicts and an inspector: MessagePack in a SOCK_SEQPACKET socket, one per packet.

    inspector                    asker
    Ready                   →             once, when it is locked; `error` if it could not be: it ends then
                            ←  Configure  the rule sets of all profiles, one in a packet; again at any time
    Configured              →             the last of them is answered; with an error the inspector keeps what it had
                            ←  Question   the head of a request, and as much of the body as fits
                            ←  Part       the rest of the body, in order, without anything else in between
                            ←  Several    questions whose bodies are whole, and heads
    Verdict                 →             one for each question, in the order of the questions

A question that the inspector reads after its `expires` is answered at once, with `EXPIRED`: whoever asked does not wait
for it any more. An asker bounds how many questions it has open; the socket's buffer bounds what an inspector that does
not read may cause.

Neither side trusts the other. What cannot be decoded, or exceeds a bound, ends the inspector (it may be taken over by
what a client sent, or the proxy may be).
"""

from __future__ import annotations

import enum
from typing import Annotated, Final, TypeAlias

import msgspec

from sidestep.snapshots.waf import Profile

VERSION: Final = 3
"""Of these messages; both sides are of one release, so that a difference is an error."""
MAX_PACKET: Final = 144 * 1024
"""Bytes of a packet that is received. The longest are a profile (rules, their regexes once more, exemptions), and a
head of MAX_HEAD with PART of a body."""
PART: Final = 48 * 1024
"""Bytes of a body that are sent in one packet."""
MAX_HEAD: Final = 64 * 1024
"""Bytes of target, names and values of a question; more is not inspected, but over a limit."""
MAX_BODY: Final = 1024 * 1024
"""Bytes of a body that an inspector takes."""
MAX_SEVERAL: Final = 64
"""Questions in one packet."""
MAX_FIELDS: Final = 512
MAX_PROFILES: Final = 64
MAX_RULES: Final = 64
"""Ids of rules in a verdict; there may have been more."""

Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32)]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=1024)]


class Configure(msgspec.Struct, frozen=True, array_like=True, tag="configure"):
    """All profiles; a question names one by its place. `more` says that further ones follow."""

    profiles: Annotated[tuple[Profile, ...], msgspec.Meta(max_length=MAX_PROFILES)]
    more: bool = False


class Question(msgspec.Struct, frozen=True, array_like=True, tag="question"):
    """A request: `target` as sent, fields as received (of HTTP/2 with `host`), body decoded.

    With a `status` it is the response to this request: fields and body are the response's, whose body may end early.

    `expires` is on CLOCK_MONOTONIC, in seconds; `more` says that a Part follows.
    """

    id: Number
    profile: Number
    expires: float
    method: bytes
    target: bytes
    version: Text
    fields: Annotated[tuple[tuple[bytes, bytes], ...], msgspec.Meta(max_length=MAX_FIELDS)]
    client: tuple[Text, Port]
    server: tuple[Text, Port]
    body: bytes = b""
    more: bool = False
    status: Annotated[int, msgspec.Meta(ge=0, le=999)] = 0


class Part(msgspec.Struct, frozen=True, array_like=True, tag="part"):
    """The next bytes of the body of the question before it."""

    id: Number
    body: bytes
    more: bool


class Head(msgspec.Struct, frozen=True, array_like=True, tag="head"):
    """A question about a request of HTTP/1 without a body, by its head as it was sent; else as `Question`."""

    id: Number
    profile: Number
    expires: float
    head: bytes
    client: tuple[Text, Port]
    server: tuple[Text, Port]


class Several(msgspec.Struct, frozen=True, array_like=True, tag="several"):
    """Questions without a Part, in order."""

    questions: Annotated[tuple[Question | Head, ...], msgspec.Meta(max_length=MAX_SEVERAL)]


class Outcome(enum.Enum):
    """What becomes of a request."""

    PASS = 0
    BLOCK = 1
    """The score reaches the threshold, or a rule denies."""
    OVER_LIMIT = 2
    """It has more arguments than the profile allows: the engine has not seen it."""
    EXPIRED = 3
    """Nobody waited any more."""


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """The inspector is locked in, or cannot be."""

    version: int
    error: Text | None = None


class Configured(msgspec.Struct, frozen=True, array_like=True, tag="configured"):
    """The profiles are in force, or the first one that is not possible, and why."""

    profile: Number = 0
    error: Text | None = None


class Verdict(msgspec.Struct, frozen=True, array_like=True, tag="verdict"):
    """The answer to a question: `rules` are ids of rules that matched, `score` is CRS's anomaly score."""

    id: Number
    outcome: Outcome
    rules: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_RULES)] = ()
    score: Number = 0


ToInspector: TypeAlias = Configure | Question | Head | Part | Several
FromInspector: TypeAlias = Ready | Configured | Verdict
