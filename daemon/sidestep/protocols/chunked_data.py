"""The data of a chunked body (RFC 9112 section 7.1), without its framing.

For bytes that `chunked.ChunkedBody` has followed and found good; it says where the body ends.
"""

from __future__ import annotations

_SIZE, _DATA, _END, _TRAILER = range(4)


class ChunkedData:
    """Unframes one body, in pieces of any size; keeps the beginning of a size line at most.

    `trailers` is what the last `read` got of the trailer section, the empty line at its end included.
    """

    __slots__ = ("_left", "_line", "_state", "trailers")

    def __init__(self) -> None:
        self._state = _SIZE
        self._left = 0
        """Bytes to come: of data in a chunk, or of the line end behind it."""
        self._line = b""
        self.trailers = b""

    def read(self, body: bytes) -> bytes:
        """Take the next bytes of the body; returns the data in them."""
        pieces = []
        at, size = 0, len(body)
        while at < size:
            if self._state == _DATA:
                piece = body[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state, self._left = _END, 2
            elif self._state == _END:
                skipped = min(self._left, size - at)
                at += skipped
                self._left -= skipped
                if not self._left:
                    self._state = _SIZE
            elif self._state == _SIZE:
                at = self._read_size(body, at)
            else:
                self.trailers = body[at:]
                break
        return b"".join(pieces)

    def _read_size(self, body: bytes, at: int) -> int:
        end = body.find(b"\n", at) + 1
        if not end:
            self._line += body[at:]
            return len(body)
        line = self._line + body[at:end]
        self._line = b""
        self._left = int(line.partition(b";")[0], 16)
        self._state = _DATA if self._left else _TRAILER
        return end
