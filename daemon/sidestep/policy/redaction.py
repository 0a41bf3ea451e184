"""Removes secrets from the head of a request, or of an answer, before it is shown.

The value of a field that carries credentials is replaced, so that a reader sees only that it is there. The result is
kept and sent, so it is bounded: whole fields from the first one on, until MAX_BYTES are reached.
"""

from __future__ import annotations

import re
from typing import Final

from sidestep.model.secret_fields import REDACTED, SECRET
from sidestep.policy.route import Fields

MAX_BYTES = 4096
"""Bytes of names and values of one head, after replacement."""
_SECRET_LINE: Final = re.compile(
    rb"^(" + rb"|".join(re.escape(name) for name in sorted(SECRET)) + rb")[ \t]*:[^\r\n]*", re.IGNORECASE | re.MULTILINE
)
_SHOWN: Final = rb"\1: " + REDACTED
_BREAK: Final = re.compile(rb"[\r\n\0]")

_MEMO_HEAD: Final = 1024
"""Bytes of the longest head of HTTP/1 whose lines are remembered."""
_MEMO_ENTRIES: Final = 64
_remembered: dict[bytes, bytes] = {}
"""Heads -> their lines: under load most heads of answers repeat until their Date changes (as in `http1_responses`)."""


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


def answer_lines(raw: bytes, fields: Fields | None) -> bytes:
    """Return the field lines of an answer's head as HTTP/1 has them, redacted, whole ones of at most MAX_BYTES.

    `raw` is a head of HTTP/1 that was read without an anomaly, `fields` are those of HTTP/2, which nobody has checked.
    """
    if fields is not None:
        return _bounded(
            b"\r\n".join(
                [
                    name + b": " + (REDACTED if name.lower() in SECRET else value)
                    for name, value in fields
                    if name[:1] != b":" and _BREAK.search(name + value) is None
                ]
            )
        )
    found = _remembered.get(raw)
    if found is None:
        found = _http1_lines(raw)
        if len(raw) <= _MEMO_HEAD:
            if len(_remembered) >= _MEMO_ENTRIES:
                _remembered.clear()
            _remembered[raw] = found
    return found


def _http1_lines(raw: bytes) -> bytes:
    lines = raw[raw.find(b"\n") + 1 : -4]
    low = lines.lower()
    if b"cookie" in low or b"authorization" in low:  # each name of SECRET has one of them; most heads have neither
        lines = _SECRET_LINE.sub(_SHOWN, lines)
    return _bounded(lines)


def _bounded(lines: bytes) -> bytes:
    if len(lines) > MAX_BYTES:
        lines = lines[: max(0, lines.rfind(b"\r\n", 0, MAX_BYTES + 2))]
    return lines
