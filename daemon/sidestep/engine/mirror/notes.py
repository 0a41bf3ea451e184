"""What the session of an intercept or wiretap is told of one request, and of its answer: lines of its log.

A request is told by one note, its answer in the same note if it is known by then, and else in a second note with the
same `number` (`Note.is_answer`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidestep.policy.route import Fields, Rule


class Lost(enum.IntEnum):
    """What of a copy did not reach its handler."""

    NOTHING = 0
    ALL = 1
    """It was dropped: there was no room."""
    REST = 2
    """It was truncated, and its connection or stream reset. Noted once more when it happens, without the texts."""


@dataclass(slots=True)
class Answer:
    """How an exchange ended."""

    status: int
    """0: without a final head."""
    by: str
    """Of `events.Answerer`; "" without a head."""
    handler: str
    """`Rule.display` of the intercept, if its handler has answered."""
    seconds: float
    """From the request's head to the end."""
    sent: int
    """Bytes of the request's body that had come by then. HTTP/1: as on the wire, with the framing of chunks."""
    received: int
    """Bytes of the answer's body, in the same way."""
    is_whole: bool
    """Whether it has ended as it should. After a switch of protocols: it has begun."""
    head: bytes = b""
    """For flows and wiretaps: the answer's field lines, as in HTTP/1, secrets redacted."""


@dataclass(slots=True)
class Note:
    """One diverted or copied request. Values are bytes as received; `path` with query."""

    rule: Rule
    method: bytes
    path: bytes
    authority: bytes
    copied: bool
    lost: Lost = Lost.NOTHING
    fields: Fields = ()
    """For a rule that wants heads only: header fields, secrets redacted."""
    at: float = 0.0
    """When the head came, in monotonic seconds; 0.0: now."""
    protocol: str = ""
    """"http/1.0", "http/1.1" or "h2"; "" where it is not known."""
    trace: bytes = b""
    """Id of the trace that the request belongs to (`policy.tracing`)."""
    number: int = 0
    """By which its answer is known; 0: none will be told."""
    answer: Answer | None = None
    is_answer: bool = False
    """Nothing but the answer to the request that was noted with this number."""


def truncated(rule: Rule) -> Note:
    """The note of a copy that ends before its original."""
    return Note(rule, b"", b"", b"", copied=True, lost=Lost.REST)
