"""Bounds of inspection on one connection, and what is told of a request where one of them is reached."""

from __future__ import annotations

from typing import Final

import msgspec

WINDOW: Final = "window"
"""Why a request is not inspected as a whole: its body is longer than what is held."""
SLOW: Final = "slow"
"""The same: its body does not come."""
UNFINISHED: Final = "unfinished"
"""Why the rest of a request is not inspected: the connection passes unread before it is whole."""


class InspectionLimits(msgspec.Struct, frozen=True):
    """How much is kept back and decoded for a verdict."""

    window: int = 64 * 1024
    """Bytes of a body, as sent, that are held until there is a verdict, and one read more."""
    decoded: int = 512 * 1024
    """Bytes that an encoded body may decode to; about 1 ms of searching."""
    request_seconds: float = 60.0
    """Seconds for which the body of a request is held. As servers commonly give (nginx: client_body_timeout 60s)."""
    response_seconds: float = 1.0
    """Seconds for which a response without a length is held; after that it is a stream."""
    unfinished: int = 2048
    """Exchanges of a connection whose ends are searched when it ends with all of them: 12 to 25 microseconds each."""
    clean_heads: int = 256
    """Heads to which no rule applies that are remembered, and ..."""
    clean_head: int = 4096
    """... bytes of the longest one."""


LIMITS = InspectionLimits()
