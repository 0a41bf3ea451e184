"""Converts header blocks between HTTP/2 and HTTP/1.1 (RFC 9113 section 8, RFC 9112 section 6). Pure.

Fields keep their order and spelling (lower case, as in HTTP/2; names are case-insensitive). Connection-specific fields
are removed: `connection` and the fields it names, `keep-alive`, `proxy-connection`, `te`, `transfer-encoding`,
`upgrade`. Values are latin-1 text in headers of the tunnel's streams, bytes in HTTP/1.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

import h11
import msgspec

from sidestep.protocols import grpc
from sidestep.tunnel.stream import Headers

Field = tuple[bytes, bytes]

_OF_A_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)
_WITH_BODY: Final = frozenset({b"POST", b"PUT", b"PATCH"})
"""Methods whose requests state a length of 0 when they have no body (RFC 9110 section 8.6)."""
_TAKEN_FOR_FRAMING: Final = frozenset({b"content_length", b"transfer_encoding"})
"""Names that some servers (CGI, WSGI) mistake for framing fields. HTTP/1.1 depends on framing fields, HTTP/2 does
not."""
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
_UNIMPLEMENTED: Final = "12"
"""grpc-status for a failure that retrying does not fix."""


class Request(msgspec.Struct, frozen=True):
    """A request head for HTTP/1.1. `chunked`: the body has no length of its own; only then trailers can follow."""

    head: h11.Request
    chunked: bool
    has_body: bool

    @property
    def repeatable(self) -> bool:
        """Whether the request may be sent twice, as after its server has just closed the connection (RFC 9110,
        9.2.2).
        """
        return not self.has_body and self.head.method in _IDEMPOTENT


def is_grpc(headers: Headers) -> bool:
    """Whether a request is gRPC."""
    return grpc.is_grpc((_bytes(name), _bytes(value)) for name, value in headers)


def request_of(headers: Headers, *, has_body: bool) -> Request:
    """Convert an HTTP/2 header block to a request. Raises h11.LocalProtocolError for what HTTP/1.1 cannot express.

    Cookie fields must have been joined already (RFC 9113 section 8.2.3).
    """
    pseudo = {name: value for name, value in headers if name.startswith(":")}
    method = _bytes(pseudo.get(":method", ""))
    host = pseudo.get(":authority")
    fields: list[Field] = [] if host is None else [(b"host", _bytes(host))]
    measured = False
    for name, value in headers:
        if name.startswith(":") or (name == "host" and host is not None):
            continue
        raw = _bytes(name)
        if raw in _TAKEN_FOR_FRAMING:
            raise h11.LocalProtocolError(f"the field {name} is ambiguous there")
        if raw == b"te":
            if value == "trailers":
                fields += [(b"te", b"trailers"), (b"connection", b"te")]
        elif raw not in _OF_A_CONNECTION:
            measured |= raw == b"content-length"
            fields.append((raw, _bytes(value)))
    if not any(name == b"host" for name, _ in fields):
        fields.insert(0, (b"host", b""))
    chunked = has_body and not measured
    if chunked:
        fields.append((b"transfer-encoding", b"chunked"))
    elif not has_body and not measured and method in _WITH_BODY:
        fields.append((b"content-length", b"0"))
    head = h11.Request(method=method, target=_bytes(pseudo.get(":path", "")), headers=fields)
    return Request(head, chunked, has_body)


def response_of(fields: Iterable[Field]) -> Headers:
    """Convert the regular fields of an HTTP/1.1 head, informational or final, to HTTP/2."""
    kept = [(name.lower(), value) for name, value in fields]
    named = {token.strip().lower() for name, value in kept if name == b"connection" for token in value.split(b",")}
    dropped = (_OF_A_CONNECTION | named) - {b"content-length"}
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in kept if name not in dropped)


def trailers_of(trailers: Headers) -> list[Field]:
    """Convert trailers of a request to HTTP/1.1."""
    return [(_bytes(name), _bytes(value)) for name, value in trailers if not name.startswith(":")]


def refusal(headers: Headers, reason: str, *, intercept: str) -> tuple[int, Headers, bytes]:
    """Return (status, fields, body) that explain why the handler does not answer a request.

    The body is empty for gRPC, whose clients do not read bodies, and for HEAD.
    """
    text = f"sidestep: intercept {intercept}: {reason}"
    if is_grpc(headers):
        message = quote(text, safe=" :/().,'")
        fields = (("content-type", "application/grpc"), ("grpc-status", _UNIMPLEMENTED), ("grpc-message", message))
        return 200, fields, b""
    body = _bytes(text) + b"\n"
    length = ("content-length", str(len(body)))
    without = (":method", "HEAD") in headers
    return 502, (("content-type", "text/plain; charset=utf-8"), length), b"" if without else body


def _bytes(text: str) -> bytes:
    return text.encode("latin-1", "replace")
