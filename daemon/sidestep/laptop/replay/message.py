"""A recorded request as it is sent again, and the answer to it, whatever their version of HTTP."""

from __future__ import annotations

from typing import Final

import msgspec

from sidestep.model.errors import SidestepError

MAX_ANSWER: Final = 64 * 1024 * 1024
"""Bytes of an answer's body that are read."""
MAX_HEAD: Final = 256 * 1024
"""Bytes of an answer's head."""

Fields = list[tuple[bytes, bytes]]


class ReplayError(SidestepError):
    """A request got no answer. The text is for people."""


class UnusedError(ReplayError):
    """The server closed a connection that was kept before it read the request: it can be sent again."""


class Outgoing(msgspec.Struct, frozen=True):
    """A request. `fields` are in lower case and have no field of the connection or of framing."""

    method: bytes
    target: bytes
    authority: bytes
    fields: Fields = msgspec.field(default_factory=list)
    body: bytes = b""
    trailers: Fields = msgspec.field(default_factory=list)
    is_h2: bool = False
    """Whether it was recorded as HTTP/2."""


class Incoming(msgspec.Struct, frozen=True):
    """A final answer. Names are in lower case."""

    status: int
    fields: Fields
    body: bytes
    trailers: Fields
    seconds: float = 0.0
