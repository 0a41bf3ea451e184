"""The legs of a relay: the ends of one connection, what waits to be written to them, and how they end."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableSequence

    from sidestep.policy.route import Rule

HIGH_WATER = 256 * 1024
"""Bytes queued towards a leg above which its sources are not read (bytes)."""
SMALL = 2048
"""Neighbours in a queue that are both shorter than this (bytes) are joined."""


def queue(pieces: MutableSequence[Any], data: bytes) -> None:
    """Append to a queue of bytes, which may hold other things between them.

    Small neighbours are joined: queues are bounded in bytes of data, and every object costs fifty bytes more.
    """
    last = pieces[-1] if pieces else None
    if isinstance(last, bytes) and len(data) < SMALL and len(last) < SMALL:
        pieces[-1] = last + data
    else:
        pieces.append(data)


class Role(enum.IntEnum):
    """What stands at the other end of a leg."""

    CLIENT = 0
    APP = 1
    HANDLER = 2


class Ending(enum.IntEnum):
    """How the shell ends a leg."""

    NONE = 0
    AWAIT = 1
    """Only for copies: write what is queued, then read for a bounded time; after that as CLOSE."""
    FINISH = 2
    """Half-close: write what is queued, then FIN or close_notify; go on reading (a copy for a bounded time)."""
    CLOSE = 3
    """Write what is queued, then close in an orderly way."""
    ABORT = 4
    """Drop what is queued and reset, so that the peer cannot take a truncated message for a whole one."""


class Leg:
    """One end of a connection.

    `io` and `active` belong to the shell, the rest to the engine, with two exceptions: the shell takes what it has
    written from `out` and subtracts it from `queued` (bytes), and it sets `open`.
    """

    __slots__ = ("active", "ending", "io", "open", "out", "queued", "role", "rule")

    def __init__(self, role: Role, rule: Rule | None = None, *, is_open: bool = False) -> None:
        self.role = role
        self.rule = rule
        self.open = is_open
        self.out: list[bytes] = []
        self.queued = 0
        self.ending = Ending.NONE
        self.io: Any = None
        self.active = 0.0
        """When it was connected or bytes last came from it, in monotonic seconds."""

    def write(self, data: bytes) -> None:
        """Queue bytes for the peer."""
        out = self.out
        if out and len(data) < SMALL and len(out[-1]) < SMALL:  # as `queue`, without a call
            out[-1] += data
        else:
            out.append(data)
        self.queued += len(data)

    def end(self, ending: Ending) -> None:
        """Ask for an ending; a stronger one replaces a weaker one."""
        self.ending = max(self.ending, ending)

    @property
    def is_over(self) -> bool:
        """Whether an ending was asked for, and no byte has to be written before it."""
        return self.ending is Ending.ABORT or (self.ending is not Ending.NONE and not self.out)
