"""What of a request's head may be shown: everything but secrets (design, section 6).

Bodies are never shown; nor are the values of the fields below, of which a reader sees that they are there. What is
shown is bounded, because it is kept and sent: whole fields from the first one on, as far as they fit.
"""

from __future__ import annotations

from sidestep.policy.route import Fields

SECRET = frozenset((b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"))
"""Names, in lower case, of fields whose values are credentials."""

REDACTED = b"[redacted]"

MAX_BYTES = 4096
"""Bytes of names and values that are shown of one head."""


def redact(fields: Fields) -> Fields:
    """The fields of a head (names in lower case, or pseudo-fields) that may be shown, secrets replaced."""
    shown = []
    left = MAX_BYTES
    for name, value in fields:
        kept = REDACTED if name in SECRET else value
        left -= len(name) + len(kept)
        if left < 0:
            break
        shown.append((name, kept))
    return tuple(shown)
