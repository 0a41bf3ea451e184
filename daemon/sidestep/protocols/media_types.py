"""What the media type of a response says about how long it lasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_STREAMS: Final = (b"text/event-stream", b"application/grpc", b"multipart/x-mixed-replace")
"""How the media types of responses begin that last as long as the server has something to say."""

TEXT_TYPES: Final = (
    "text/plain", "text/html", "text/xml", "text/css", "text/csv", "text/javascript", "text/markdown",
    "application/json", "application/problem+json", "application/hal+json", "application/ld+json",
    "application/vnd.api+json", "application/xml", "application/xhtml+xml", "application/soap+xml",
    "application/javascript", "application/x-yaml", "application/graphql-response+json",
)  # fmt: skip
"""Media types of responses that are text, in whatever charset."""
_TEXTS: Final = frozenset(each.encode() for each in TEXT_TYPES)


def is_text(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response with these fields (lower-case names) is of one of TEXT_TYPES."""
    return any(name == b"content-type" and value.partition(b";")[0].strip().lower() in _TEXTS for name, value in fields)


def is_stream(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response with these fields (lower-case names) is a stream of messages."""
    return any(name == b"content-type" and value.lower().startswith(_STREAMS) for name, value in fields)
