"""Rewriting of request heads on their way to the app and to handlers, for `forward-client-cert`.

A relay is given its `Rewriter`, or None, when it is made. Without one nothing here costs anything. With one, HTTP/1
heads and trailers are rewritten before anything is decided about them, and an HTTP/2 connection is *mixed* (see
`engine.http2.connection`) from the client's preface on: every header block for the app is written anew. A rewriter
requires `OnUnreadable.CLOSE`: a head that passed unread would pass unrewritten.

Invariants: filters, app and handlers see the same head; rewriting twice gives the same head, so bytes that are kept and
read again need no special case.
"""

from __future__ import annotations

from typing import Protocol

from sidestep.protocols.chunked import ChunkedBody
from sidestep.protocols.client_certificate import is_forwarded, rewrite_fields, rewrite_head, strip_trailer
from sidestep.protocols.hpack import NONE, Block, Memo, State
from sidestep.protocols.http1 import Http1Limits


class Rewriter(Protocol):
    """Rewrites heads, trailers and header blocks. Idempotent; its input was validated before. Never raises."""

    def head(self, head: bytes) -> bytes:
        """Rewrite an HTTP/1 request head, which ends with its empty line."""

    def trailers(self, lines: bytes) -> bytes:
        """Rewrite whole lines of an HTTP/1 trailer section; an empty line at the end stays."""

    def block(self, block: Block) -> Block:
        """Rewrite a decoded HTTP/2 header block of a head or of trailers; the same object when nothing changes."""


class ClientCertificate:
    """Tells the app who its client proved to be (see `protocols.client_certificate`).

    `value` is the field's value, None when the client proved nothing: then only what the client says itself is removed.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes | None) -> None:
        self._value = value

    def head(self, head: bytes) -> bytes:
        """See `Rewriter`."""
        return rewrite_head(head, self._value)

    def trailers(self, lines: bytes) -> bytes:
        """See `Rewriter`."""
        return strip_trailer(lines)

    def block(self, block: Block) -> Block:
        """See `Rewriter`. Trailers, which have no `:method`, get no field."""
        fields = block.fields
        value = self._value if any(name == b":method" for name, _ in fields) else None
        if value is None and not any(is_forwarded(name) for name, _ in fields):
            return block
        never = NONE
        if block.never:
            kept = [position for position, (name, _) in enumerate(fields) if not is_forwarded(name)]
            never = frozenset(new for new, old in enumerate(kept) if old in block.never)
        rewritten = Block(rewrite_fields(fields, value), never, block.updates, block.state)
        rewritten.large = block.large
        return rewritten


class TrailerFilter:
    """Rewrites the trailers of one chunked body, whose bytes were validated before.

    Chunks pass as they come; from the last size line on, a line is held until it is whole (bounded by the limit of the
    trailer section, which the first reading enforced).
    """

    __slots__ = ("_chunks", "_inside", "_line", "_rewriter")

    def __init__(self, rewriter: Rewriter, limits: Http1Limits) -> None:
        self._rewriter = rewriter
        self._chunks = ChunkedBody(limits)
        self._inside = False
        self._line = b""

    def rewrite(self, body: bytes) -> bytes:
        """Take the next bytes of the body and return what may be passed on now."""
        if self._inside:
            return self._lines(body)
        self._chunks.read(body)
        begins = self._chunks.trailer_at
        if begins < 0:
            return body
        self._inside = True
        return body[:begins] + self._lines(body[begins:])

    def _lines(self, data: bytes) -> bytes:
        data = self._line + data
        end = data.rfind(b"\n") + 1
        self._line = data[end:]
        return self._rewriter.trailers(data[:end])


class RewritingMemo(Memo):
    """A memo of the client's header blocks that returns them rewritten; `inner` remembers them as they came."""

    __slots__ = ("_inner", "_rewriter")

    def __init__(self, inner: Memo, rewriter: Rewriter) -> None:
        super().__init__(inner.limit)
        self._inner = inner
        self._rewriter = rewriter

    def decode(self, state: State, data: bytes, *, list_limit: int, table_limit: int) -> Block:
        """As `Memo.decode`. Raises HpackError."""
        return self._rewriter.block(self._inner.decode(state, data, list_limit=list_limit, table_limit=table_limit))

    def with_allowed(self, state: State, allowed: int) -> State:
        """As `Memo.with_allowed`."""
        return self._inner.with_allowed(state, allowed)
