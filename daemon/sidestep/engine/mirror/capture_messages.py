"""How messages of HTTP stand in a capture: as bytes of HTTP/1 or HTTP/2 that a reader of packets understands.

Whole messages (`Snap.ALL`) are as they were: HTTP/1 byte for byte; HTTP/2 with the same fields and data, in frames of
our own, because what is captured may be some streams of a connection and because header blocks then need no table.

Heads (`Snap.HEADS`) have no body, and no secret that is known as one: values of `authorization`, `cookie`,
`set-cookie`, `proxy-authorization` and of the fields that a policy of the port redacts, values of queries, user names
and passwords in URLs, what follows `#` (`protocols.eve_redaction`). So that a reader does not wait for a body, HTTP/1
`content-length` and `transfer-encoding` are renamed (`sidestep-original-…`), and a length of 0 stands in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidestep.protocols.hpack import encode
from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    FRAME,
    PREFACE,
    SETTINGS_ACK,
    frame,
    header_frames,
    rst_stream,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidestep.protocols.eve_redaction import Redaction

CLIENT_PREFACE: Final = PREFACE + settings({}) + SETTINGS_ACK
"""What a client says first in HTTP/2 ..."""
SERVER_PREFACE: Final = settings({}) + SETTINGS_ACK
"""... and a server."""

_FRAMING: Final = frozenset((b"content-length", b"transfer-encoding"))
_NO_BODY: Final = frozenset((204, 304))
"""Statuses of responses that never have a body (RFC 9110 section 6.4.1), beside 1xx."""


def http1_head(raw: bytes, redaction: Redaction, *, status: int = 0) -> bytes:
    """A head of HTTP/1 without secrets, of a message without a body. What is no field is left out.

    `status` is that of a response, 0 for a request.
    """
    first, *lines = raw.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    if not status:
        method, _, rest = first.partition(b" ")
        target, _, version = rest.rpartition(b" ")
        first = b" ".join((method, redaction.clean(b":path", target), version))
    shown = [first]
    has_body = False
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or name[:1] in b" \t":
            continue
        value = value.strip(b" \t")
        lower = name.lower()
        if lower in _FRAMING:
            has_body = has_body or value != b"0"
            shown.append(b"sidestep-original-" + name + b": " + value)
        else:
            shown.append(name + b": " + redaction.clean(lower, value))
    if has_body or (status >= 200 and status not in _NO_BODY):
        shown.append(b"content-length: 0")
    return b"\r\n".join(shown) + b"\r\n\r\n"


def http2_head(stream: int, fields: Iterable[tuple[bytes, bytes]], redaction: Redaction | None, *, ends: bool) -> bytes:
    """A head, or trailers, of HTTP/2; with a redaction, without secrets. `ends`: nothing follows."""
    if redaction is not None:
        fields = [(name, redaction.clean(name, value)) for name, value in fields]
    return header_frames(stream, encode(fields), end_stream=ends)


def http2_data(stream: int, data: bytes) -> bytes:
    """Data of HTTP/2."""
    return b"".join([frame(DATA, 0, stream, data[at : at + FRAME]) for at in range(0, len(data), FRAME)])


def http2_end(stream: int) -> bytes:
    """The end of one side of a stream."""
    return frame(DATA, END_STREAM, stream)


def http2_cut(stream: int) -> bytes:
    """The rest of a stream is not told."""
    return rst_stream(stream, 8)
