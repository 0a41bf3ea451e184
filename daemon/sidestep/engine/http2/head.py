"""The head of an HTTP/2 request: read for matching, validated for diverting (RFC 9113 section 8).

A head that cannot be read with certainty is not matched: the app gets the request, and answers it as it would without a
relay. Reading is lenient and cheap, because it is done for every request. Whether a head is *valid* - what an HTTP/2
server must accept - is asked only when a rule wants the request, so that no ambiguity reaches the handler.

A `Head` is kept as the note of its decoded block, together with the decision of the newest route: a repeated block
costs neither parsing nor matching.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from sidestep.engine.mirror.gate import Tally
from sidestep.policy.route import TO_APP, Decision, Fields, Route
from sidestep.protocols.grpc import is_grpc
from sidestep.protocols.hpack import Block

_NAME_TEXT: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_PATH_TEXT: Final = bytes(each for each in range(0x21, 0x100) if each not in b"#\x7f")
"""What paths are made of, as in HTTP/1: servers cut off a fragment, and a URL drops white space."""
_LENGTH: Final = re.compile(rb"[0-9]{1,18}").fullmatch
_STATUS: Final = re.compile(rb"[1-9][0-9][0-9]").fullmatch
_PSEUDO: Final = frozenset((b":method", b":scheme", b":authority", b":path", b":protocol"))
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
NONE: Final = -1


class Head:
    """Method, path, authority and fields of a request, and the newest route's decision about it."""

    __slots__ = (
        "_route",
        "asked",
        "authority",
        "cleared",
        "cleared_alone",
        "decision",
        "fields",
        "listed",
        "method",
        "path",
        "pseudo",
        "readable",
        "regular",
        "tally",
        "told",
    )

    def __init__(self, fields: tuple[tuple[bytes, bytes], ...]) -> None:
        pseudo: dict[bytes, bytes] = {}
        count = 0
        for name, value in fields:
            if name[:1] != b":":
                break
            pseudo[name] = value
            count += 1
        self.listed = fields
        """All fields and pseudo-fields, as they came."""
        self.regular = regular = fields[count:]
        self.pseudo = pseudo
        self.method = pseudo.get(b":method", b"")
        self.path = pseudo.get(b":path", b"")
        self.authority = pseudo.get(b":authority", b"")
        self.readable = len(pseudo) == count and self.method != b""
        fields = regular
        names = [name for name, _ in regular]
        if names.count(b"cookie") > 1:
            crumbs = [value for name, value in regular if name == b"cookie"]
            fields = (*fields, (b"cookie", b"; ".join(crumbs)))  # as HTTP/1 would show it (section 8.2.3)
        if self.authority:
            if b"host" in names and any(name == b"host" and value != self.authority for name, value in regular):
                self.readable = False  # `host` contradicts `:authority`
            fields = (*fields, (b"host", self.authority))
        self.fields: Fields = fields
        self._route: Route | None = None
        self.cleared: object = None
        """The `Gate.token` of connections on which no inspection rule applies to this head ..."""
        self.cleared_alone: object = None
        """... and of those on which none does if the head is the whole request."""
        self.asked: object = None
        """The same (`AskedStreams.token`) of those on which none does, but the answer has to be searched."""
        self.tally: Tally | None = None
        """Where it is counted while all its wiretaps are held back (`TapGate`)."""
        self.told: tuple[tuple[str, bytes, bytes, bytes, bytes, bytes, bytes], int] | None = None
        """What a sample tells of the request (`samples.Http2Sample`)."""
        self.decision = TO_APP
        """What `decide` returned last."""

    def decide(self, route: Route) -> Decision:
        """Decide what the route does with this request; remembered until another route is asked."""
        if self._route is not route:
            self.decision = self._ask(route)
            self._route = route
            self.tally = None
        return self.decision

    def _ask(self, route: Route) -> Decision:
        if not self.readable:
            return TO_APP
        decision = route.decide(self.method, self.path, self.fields)
        if decision is not TO_APP and not self.is_valid():
            return TO_APP
        return decision

    def is_valid(self) -> bool:
        """Whether a strict HTTP/2 server accepts this request (RFC 9113 sections 8.2, 8.3; RFC 8441 section 4)."""
        pseudo = self.pseudo
        if not self.readable or not _PSEUDO.issuperset(pseudo) or b" " in b"".join(pseudo.values()):
            return False
        if not are_valid_fields(self.regular, (*pseudo.values(),)):
            return False
        if self.method == b"CONNECT" and b":protocol" not in pseudo:
            return self.authority != b"" and b":scheme" not in pseudo and b":path" not in pseudo
        if b":protocol" in pseudo and (self.method != b"CONNECT" or not self.authority):
            return False
        if not pseudo.get(b":scheme") or self.path.translate(None, _PATH_TEXT):
            return False
        return self.path[:1] == b"/" or (self.path == b"*" and self.method == b"OPTIONS")

    @property
    def is_extended_connect(self) -> bool:
        """Whether this is a CONNECT of RFC 8441."""
        return b":protocol" in self.pseudo

    @property
    def is_grpc(self) -> bool:
        """Whether the client waits for a grpc-status."""
        return is_grpc(self.regular)


def head_of(block: Block) -> Head:
    """The head of a decoded request block, made once."""
    head: Head | None = block.note
    if head is None:
        head = block.note = Head(block.fields)
        if block.large:
            head.readable = False  # a head over `hpack.LARGE` is not matched
    return head


def are_valid_fields(fields: Fields, pseudo: tuple[bytes, ...] = ()) -> bool:
    """Whether these are valid fields of a request, a response or a trailer section, and values of pseudo-fields."""
    if not fields:
        return not pseudo or _are_valid_values(pseudo)
    # All names in one pass, and all values: a few searches for bytes cost less than an expression for each field.
    names, values = zip(*fields, strict=True)
    if b"".join(names).translate(None, _NAME_TEXT) or b"" in names or not _CONNECTION_SPECIFIC.isdisjoint(names):
        return False
    if not _are_valid_values(values + pseudo):
        return False
    if b"te" in names and any(name == b"te" and value != b"trailers" for name, value in fields):
        return False
    if b"content-length" not in names:
        return True
    lengths = {value for name, value in fields if name == b"content-length"}
    return len(lengths) == 1 and all(map(_LENGTH, lengths))


def _are_valid_values(values: Collection[bytes]) -> bool:
    """Whether no value holds NUL, CR or LF, or begins or ends with white space."""
    text = b"\n" + b"\n".join(values) + b"\n"
    return not (
        text.count(b"\n") != len(values) + 1
        or b"\0" in text
        or b"\r" in text
        or b"\n " in text
        or b" \n" in text
        or b"\n\t" in text
        or b"\t\n" in text
    )


def status_of(block: Block) -> int:
    """The status of a response block, 0 for a valid trailer section, NONE for anything else; made once."""
    status: int | None = block.note
    if status is None:
        status = block.note = _status(block.fields)
    return status


def _status(fields: tuple[tuple[bytes, bytes], ...]) -> int:
    if fields and fields[0][0] == b":status":
        value = fields[0][1]
        if _STATUS(value) and are_valid_fields(fields[1:]):
            return int(value)
        return NONE
    return 0 if are_valid_fields(fields) else NONE
