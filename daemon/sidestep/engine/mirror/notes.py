"""What the session of an intercept or wiretap is told of one request: a line of its log."""

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


def truncated(rule: Rule) -> Note:
    """The note of a copy that ends before its original."""
    return Note(rule, b"", b"", b"", copied=True, lost=Lost.REST)
