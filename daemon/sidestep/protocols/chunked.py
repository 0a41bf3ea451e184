"""Where a chunked body ends (RFC 9112 section 7.1). Watches bytes that are forwarded untouched; keeps none of the data.

States, in the order in which they follow each other:

    SIZE     hex digits, well-formed extensions, CRLF      -> DATA, or TRAILER after a size of 0
    DATA     `left` bytes                                  -> CR
    CR, LF   the two bytes after the data                  -> SIZE
    TRAILER  field lines, then an empty line               -> the end

Invariants: `_line` holds the beginning of an unfinished line in SIZE and TRAILER and is bounded by the limits; a line
that can no longer become good is refused when its bytes arrive. Everything that readers are known to differ on (bare
LF, blanks around the size, `0x`, signs, more digits than 2**60 needs, malformed extensions, framing fields in a
trailer) is refused.
"""

from __future__ import annotations

import re

from sidestep.protocols.http1 import LIMITS, Http1Limits

MORE = -1
"""`read`: the body goes on after these bytes."""
BROKEN = -2
"""`read`: this is not a chunked body, or not surely."""

_SIZE, _DATA, _CR, _LF, _TRAILER = range(5)

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,15})(?:;" + _TOKEN + rb"++(?:=(?:" + _TOKEN + rb"++|" + _QUOTED + rb"))?)*\r\n"
)
_SIZE_PREFIX = re.compile(rb"[0-9A-Fa-f]{1,15}+(?:;[\t\x20-\x7e\x80-\xff]*+)?\r?")
_TRAILER_LINE = re.compile(rb"(" + _TOKEN + rb"++):[\t\x20-\x7e\x80-\xff]*+\r\n")
_TRAILER_PREFIX = re.compile(rb"(?:" + _TOKEN + rb"++(?::[\t\x20-\x7e\x80-\xff]*+)?)?\r?")
_NEVER_IN_TRAILERS = frozenset(
    (
        *(b"content-length", b"transfer-encoding", b"content_length", b"transfer_encoding", b"host"),
        *(b"connection", b"upgrade", b"expect", b"te", b"trailer"),
    )
)
"""Fields of framing and of the connection (RFC 9110 section 6.5.1): servers that merge trailers into heads differ."""


class ChunkedBody:
    """Follows one chunked body through its bytes."""

    __slots__ = ("_left", "_limits", "_line", "_state", "_trailer", "size", "trailer_at")

    def __init__(self, limits: Http1Limits = LIMITS) -> None:
        self._limits = limits
        self._state = _SIZE
        self._left = 0
        self._line = b""
        self._trailer = 0
        self.size = 0
        """Bytes of data in the chunks that have begun."""
        self.trailer_at = -1
        """Where the trailer section begins in the data whose reading reached it."""

    def read(self, data: bytes, at: int = 0) -> int:
        """Follow `data` from `at`: the offset just after the body, or MORE, or BROKEN. After the end it is used up."""
        size = len(data)
        while at < size:
            state = self._state
            if state == _DATA:
                left = self._left
                if left >= size - at:
                    self._left = left - (size - at)
                    if not self._left:
                        self._state = _CR
                    return MORE
                at += left
                self._state = _CR
            elif state == _CR:
                if data[at] != 0x0D:
                    return BROKEN
                at += 1
                self._state = _LF
            elif state == _LF:
                if data[at] != 0x0A:
                    return BROKEN
                at += 1
                self._state = _SIZE
            elif state == _SIZE:
                at = self._read_size(data, at)
                if at < 0:
                    return at
            else:
                return self._read_trailer(data, at)
        return MORE

    def _read_size(self, data: bytes, at: int) -> int:
        if self._line:
            end = data.find(b"\n", at) + 1
            self._line += data[at:end] if end else data[at:]
            match = _SIZE_LINE.fullmatch(self._line) if end else None
        else:
            match = _SIZE_LINE.match(data, at)
            end = match.end() if match else data.find(b"\n", at) + 1
            if not end:
                self._line = data[at:]
        if match is None:
            too_long = len(self._line) > self._limits.chunk_line
            return BROKEN if end or too_long or _SIZE_PREFIX.fullmatch(self._line) is None else MORE
        if match.end() - match.start() > self._limits.chunk_line:
            return BROKEN
        self._line = b""
        self._left = int(match[1], 16)
        if self._left:
            self.size += self._left
            self._state = _DATA
        else:
            self._state = _TRAILER
            self.trailer_at = end
        return end

    def _read_trailer(self, data: bytes, at: int) -> int:
        size = len(data)
        while at < size:
            end = data.find(b"\n", at) + 1
            piece = data[at:end] if end else data[at : at + self._limits.trailer + 1]
            self._trailer += len(piece)
            if self._trailer > self._limits.trailer:
                return BROKEN
            prefix = self._line
            self._line += piece
            if not end:
                # A long line in small pieces is validated once whole; only its fresh bytes are looked at before.
                fresh = self._line if len(prefix) < 64 else piece
                viable = _TRAILER_PREFIX.fullmatch(fresh) if fresh is self._line else b"\0" not in fresh
                return MORE if viable else BROKEN
            if self._line == b"\r\n":
                return end
            match = _TRAILER_LINE.fullmatch(self._line)
            if match is None or match[1].lower() in _NEVER_IN_TRAILERS:
                return BROKEN
            self._line = b""
            at = end
        return MORE
