"""Reads the messages of one direction of a gRPC call for inspection ("gRPC over HTTP2", Length-Prefixed-Message).

    Length-Prefixed-Message -> Compressed-Flag (1 byte: 0 or 1)  Message-Length (4 bytes, big-endian)  Message

Each compressed message is compressed for itself, by what `grpc-encoding` names. gRPC-Web frames its messages likewise,
and sends its trailers as one with the highest bit of the flag set.

A stream that is not framed so is none that a gRPC peer would read. It is returned as it is, as if it were one message,
so that whatever else reads it has been searched for as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from sidestep.protocols.decoding import Bounds, Decoder

COMPRESSED: Final = 1
TRAILERS: Final = 0x80
PREFIX: Final = 5

_MESSAGES: Final = b"application/grpc"
_BASE64: Final = b"application/grpc-web-text"


def carries_messages(content_types: Iterable[bytes]) -> bool:
    """Whether a body with these values of Content-Type may consist of messages.

    It need not (see the module), so this says yes to more than `protocols.grpc.is_grpc`. gRPC-Web-Text is base64.
    """
    kinds = [value.lower() for value in content_types]
    return any(each.startswith(_MESSAGES) and not each.startswith(_BASE64) for each in kinds)


class GrpcMessages:
    """Bytes of a body in, pieces of messages out, each with whether its message ends behind it.

    `encodings` are the values of `grpc-encoding`. `reason` says why a compressed message cannot be decoded (those of
    `decoding`); nothing is read from then on. `pending` counts the bytes, as sent, of the message that has begun and
    not ended, its prefix included.
    """

    __slots__ = ("_bounds", "_decoder", "_encodings", "_left", "_prefix", "is_framed", "pending", "reason")

    def __init__(self, encodings: Iterable[bytes], bounds: Bounds) -> None:
        self._encodings = tuple(encodings)
        self._bounds = bounds
        self._prefix = bytearray()
        self._left = 0
        """Bytes of the message that have not come."""
        self._decoder: Decoder | None = None
        """Of the message, if it is compressed."""
        self.is_framed = True
        """What was read so far may be messages."""
        self.pending = 0
        self.reason: str | None = None

    @property
    def is_decoding(self) -> bool:
        """Whether a compressed message has begun."""
        return self._decoder is not None

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Return what these bytes add to messages."""
        at = 0
        while at < len(data) and self.reason is None:
            if not self.is_framed:
                yield data[at:], False
                return
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self.pending = self.pending + len(piece) if self._left else 0
                yield self._decoded(piece), self._left == 0
                continue
            piece = data[at : at + PREFIX - len(self._prefix)]
            at += len(piece)
            self._prefix += piece
            self.pending += len(piece)
            if self._prefix[0] & ~TRAILERS not in (0, COMPRESSED):
                self.is_framed = False
                yield bytes(self._prefix), False
            elif len(self._prefix) == PREFIX:
                self._begin()
                self._prefix.clear()
                if not self._left:
                    self.pending = 0
                    yield b"", True

    def _begin(self) -> None:
        self._left = int.from_bytes(self._prefix[1:])
        is_compressed = self._prefix[0] & COMPRESSED and self._left
        self._decoder = Decoder(self._encodings, self._bounds) if is_compressed else None

    def _decoded(self, piece: bytes) -> bytes:
        decoder = self._decoder
        if decoder is None:
            return piece
        made = decoder.feed(piece)
        if not self._left:
            made += decoder.finish()
        self.reason = decoder.reason
        return made
