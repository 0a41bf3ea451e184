"""The id of the trace that a request belongs to, from the fields by which tracers hand it on.

    traceparent       00-TRACE-SPAN-FLAGS         W3C Trace Context, section 3.2
    b3                TRACE-SPAN[-SAMPLED[-PARENT]]   Zipkin's B3, the single header
    x-b3-traceid      TRACE                           Zipkin's B3, several headers

W3C's is preferred. What is not the id of a trace by these rules is none: the text comes from a client.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidestep.policy.route import Fields

_W3C: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.DOTALL)
_B3: Final = re.compile(rb"([0-9a-fA-F]{32}|[0-9a-fA-F]{16})(?:-[0-9a-fA-F]{16}(?:-[01d](?:-[0-9a-fA-F]{16})?)?)?")
_PATTERNS: Final = {b"traceparent": _W3C, b"b3": _B3, b"x-b3-traceid": _B3}
_ZEROS: Final = frozenset((b"0" * 32, b"0" * 16))


def trace_id(fields: Fields) -> bytes:
    """Return the id, 16 or 32 hex digits in lower case; b"" if the fields (names in lower case) have none."""
    found = b""
    for name, value in fields:
        if name in _PATTERNS and (match := _PATTERNS[name].fullmatch(value)) is not None:
            trace = match[1].lower()
            if trace not in _ZEROS:
                if name == b"traceparent":
                    return trace
                found = found or trace
    return found
