"""What the media type of a response says about how long it lasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_STREAMS: Final = (b"text/event-stream", b"application/grpc", b"multipart/x-mixed-replace")
"""How the media types of responses begin that last as long as the server has something to say."""


def is_stream(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response with these fields (lower-case names) is a stream of messages."""
    return any(name == b"content-type" and value.lower().startswith(_STREAMS) for name, value in fields)
