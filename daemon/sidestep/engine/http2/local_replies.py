"""Responses that the relay writes itself, to diverted requests that nobody else can answer.

An HTTP client gets a 502 whose body begins with `sidestep:` and names the intercept. A gRPC client reads no bodies: it
gets the trailers-only response with status UNAVAILABLE that its libraries make of a lost connection (gRPC over HTTP/2,
"Responses"), so that it retries where it would after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from sidestep.protocols.hpack import INITIAL, NONE, Block

if TYPE_CHECKING:
    from sidestep.engine.http2.exchange import Exchange
    from sidestep.engine.inspection.judged import Judged

UNAVAILABLE = b"14"
"""The grpc-status of a service that cannot be reached now."""

PERMISSION_DENIED = b"7"
"""The grpc-status of a call that a policy refuses."""


def bad_gateway(exchange: Exchange, reason: str) -> tuple[Block, bytes]:
    """The header block and the body of a 502 with this reason. An empty body means that the block ends the stream."""
    name = "" if exchange.rule is None else f" intercept {exchange.rule.display}:"
    text = f"sidestep:{name} {reason}"
    if exchange.head.is_grpc:
        message = quote(text, safe=" :/().,'").encode()
        return _block((b"200", b"application/grpc"), (b"grpc-status", UNAVAILABLE), (b"grpc-message", message)), b""
    body = text.encode() + b"\n"
    block = _block((b"502", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)))
    return block, b"" if exchange.head.method == b"HEAD" else body


def refused(exchange: Exchange, judged: Judged) -> tuple[Block, bytes]:
    """The same for a request that inspection refuses: a 403, or a gRPC status."""
    text = judged.refusal or ""
    if exchange.head.is_grpc:
        message = quote(text, safe=" :/().,'").encode()
        return (
            _block((b"200", b"application/grpc"), (b"grpc-status", PERMISSION_DENIED), (b"grpc-message", message)),
            b"",
        )
    body = text.encode() + b"\n"
    status = b"503" if judged.is_unavailable else b"403"
    block = _block((status, b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body)))
    return block, b"" if exchange.head.method == b"HEAD" else body


def head_too_large() -> Block:
    """The 431 for a request whose head is over the limit (RFC 6585 section 5)."""
    return _block((b"431", b"text/plain; charset=utf-8"), (b"content-length", b"0"))


def _block(status_and_type: tuple[bytes, bytes], *more: tuple[bytes, bytes]) -> Block:
    status, content_type = status_and_type
    return Block(((b":status", status), (b"content-type", content_type), *more), NONE, None, INITIAL)
