"""Removes secrets from the head of a request before it is shown.

The value of a field that carries credentials is replaced, so that a reader sees only that it is there. The result is
kept and sent, so it is bounded: whole fields from the first one on, until MAX_BYTES are reached.
"""

from __future__ import annotations

from sidestep.model.secret_fields import REDACTED, SECRET
from sidestep.policy.route import Fields

MAX_BYTES = 4096
"""Bytes of names and values of one head, after replacement."""


def redact(fields: Fields) -> Fields:
    """Return the fields of a head (names in lower case, or pseudo-fields) with secrets replaced, at most MAX_BYTES."""
    shown = []
    left = MAX_BYTES
    for name, value in fields:
        kept = REDACTED if name in SECRET else value
        left -= len(name) + len(kept)
        if left < 0:
            break
        shown.append((name, kept))
    return tuple(shown)
