"""Decodes bodies for inspection within bounds: identity, gzip and deflate (RFC 9110 section 8.4.1), also two layers.

A `Decoder` is fed a body's bytes as they come, without chunk framing, and returns what they decode to. Once a body
cannot be decoded any further, `reason` says why, and nothing more comes out; what came out before that is right:

    encoding    the body has an encoding that is not decoded here (brotli, zstd, anything unknown, more than two)
    malformed   the data is not what its encoding says, or the checksum is wrong
    ambiguous   `deflate` that is one thing with a zlib header and another without: receivers differ in what they take
    trailing    data follows the end of the compressed data: receivers differ in whether they read it
    members     gzip in more than MAX_MEMBERS pieces
    truncated   the body ended before its compressed data did
    ratio       it decodes to more than `Bounds.ratio` times its size
    window      it decodes to more than `Bounds.window` bytes

Output and reason do not depend on how the bytes were cut: bounds are checked at fixed offsets of the input. Work and
memory are linear in what was fed.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable
from typing import Final

import msgspec

ENCODING: Final = "encoding"
MALFORMED: Final = "malformed"
AMBIGUOUS: Final = "ambiguous"
TRAILING: Final = "trailing"
MEMBERS: Final = "members"
TRUNCATED: Final = "truncated"
RATIO: Final = "ratio"
WINDOW: Final = "window"

MAX_LAYERS: Final = 2
"""Encodings that one body may have on top of each other; identity does not count."""
MAX_MEMBERS: Final = 64
"""Members of one gzip body (RFC 1952 section 2.2); making a decompressor costs as much as some KiB of output."""
FREE: Final = 16 * 1024
"""Bytes of output for which the ratio is not looked at: short repetitive texts compress well."""

STEP: Final = 4096
"""Bytes of input between two looks at the ratio: at most 4 MiB of output, where the window permits that."""

_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
RAW: Final = -zlib.MAX_WBITS
"""`wbits` of deflate without a header."""
_BEGINNING: Final = 5
"""Bytes of deflate by which a zlib header and a stored block (RFC 1951 section 3.2.4) are told apart."""


class Bounds(msgspec.Struct, frozen=True):
    """How far a body is decoded: `window` bytes of output, and beyond FREE `ratio` bytes for each byte of input.

    Deflate's own limit is 1032 to 1; text rarely exceeds 20.
    """

    window: int
    ratio: int = 200


class Inflater:
    """A zlib decompressor within bounds; `reason` says why there will be no more output."""

    __slots__ = ("_bounds", "_fed", "_made", "_zlib", "reason")

    def __init__(self, wbits: int, bounds: Bounds) -> None:
        self._zlib = zlib.decompressobj(wbits)
        self._bounds = bounds
        self._fed = 0
        self._made = 0
        self.reason: str | None = None

    @property
    def is_over(self) -> bool:
        """Whether the compressed data has ended."""
        return self._zlib.eof

    @property
    def rest(self) -> bytes:
        """What was fed behind the end of the compressed data."""
        return self._zlib.unused_data

    def begin_again(self) -> None:
        """Count input and output from here on, for the bounds: another message of the same stream begins."""
        self._fed = self._made = 0

    def feed(self, data: bytes) -> bytes:
        """The output for more input."""
        pieces = []
        at = 0
        while at < len(data) and self.reason is None:
            piece = data[at : at + STEP - self._fed % STEP]
            at += len(piece)
            pieces.append(self._step(piece))
            if self._fed % STEP == 0 or self.is_over:
                self.check_ratio()
        return b"".join(pieces)

    def check_ratio(self) -> None:
        """Set the reason if there was too much output for the input so far."""
        used = self._fed - len(self.rest)
        if self.reason is None and self._made > max(FREE, used * self._bounds.ratio):
            self.reason = RATIO

    def _step(self, data: bytes) -> bytes:
        """Output up to the window. zlib tells nothing of the output before an error, so that it is found bytewise."""
        saved = self._zlib.copy()
        try:
            made = self._inflate(data)
        except zlib.error:
            self._zlib = saved
            self.reason = MALFORMED
            made = self._before_the_error(data)
        self._fed += len(data)
        return made

    def _inflate(self, data: bytes) -> bytes:
        allowed = self._bounds.window - self._made
        made = self._zlib.decompress(data, allowed + 1)
        if len(made) > allowed:
            made = made[:allowed]
            self.reason = WINDOW
        self._made += len(made)
        return made

    def _before_the_error(self, data: bytes) -> bytes:
        made = b""
        with contextlib.suppress(zlib.error):
            for at in range(len(data)):
                made += self._inflate(data[at : at + 1])
        return made


class _Gzip:
    """One or more gzip members (RFC 1952)."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._inflater = Inflater(_GZIP, bounds)
        self._members = 1
        self._made = 0
        self.reason: str | None = None

    def feed(self, data: bytes) -> bytes:
        made = self._take(data)
        while self._inflater.is_over and self._inflater.rest and self.reason is None:
            rest = self._inflater.rest
            if rest[:2] != b"\x1f\x8b"[: len(rest)]:
                self.reason = TRAILING
            elif self._members == MAX_MEMBERS:
                self.reason = MEMBERS
            elif len(rest) >= 2:
                self._members += 1
                self._inflater = Inflater(_GZIP, Bounds(self._bounds.window - self._made, self._bounds.ratio))
                made += self._take(rest)
            else:
                break
        return made

    def finish(self) -> bytes:
        if not self._inflater.is_over:
            self.reason = TRUNCATED
        elif self._inflater.rest:
            self.reason = TRAILING
        return b""

    def _take(self, data: bytes) -> bytes:
        made = self._inflater.feed(data)
        self._made += len(made)
        self.reason = self._inflater.reason
        return made


class _Deflate:
    """`deflate`: a zlib stream (RFC 1950), or bare deflate (RFC 1951) as some senders have it.

    The first byte of a zlib header is also that of a stored block, so that a sender can make data that is valid in both
    ways. Such data is ambiguous: which one the receiver takes is not known.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._inflater: Inflater | None = None
        self._beginning = b""
        self.reason: str | None = None

    def feed(self, data: bytes) -> bytes:
        if self._inflater is None:
            self._beginning += data
            if len(self._beginning) < _BEGINNING:
                return b""
            return self._begin()
        return self._take(self._inflater, data)

    def finish(self) -> bytes:
        made = self._begin() if self._inflater is None else b""
        if self.reason is None and self._inflater is not None and not self._inflater.is_over:
            self.reason = TRUNCATED
        return made

    def _begin(self) -> bytes:
        data, self._beginning = self._beginning, b""
        has_header = len(data) >= 2 and data[0] & 0x8F == 0x08 and int.from_bytes(data[:2]) % 31 == 0
        if has_header and len(data) >= _BEGINNING and int.from_bytes(data[1:3]) ^ int.from_bytes(data[3:5]) == 0xFFFF:
            self.reason = AMBIGUOUS
            return b""
        self._inflater = Inflater(_ZLIB if has_header else RAW, self._bounds)
        return self._take(self._inflater, data)

    def _take(self, inflater: Inflater, data: bytes) -> bytes:
        made = inflater.feed(data)
        self.reason = inflater.reason
        if self.reason is None and inflater.is_over and inflater.rest:
            self.reason = TRAILING
        return made


class _Identity:
    """A body that is not encoded."""

    def __init__(self, bounds: Bounds) -> None:
        self._left = bounds.window
        self.reason: str | None = None

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            self.reason = WINDOW
            data = data[: self._left]
        self._left -= len(data)
        return data

    def finish(self) -> bytes:
        return b""


_Layer = _Gzip | _Deflate | _Identity
_DECODERS: Final[dict[bytes, type[_Gzip | _Deflate]]] = {b"gzip": _Gzip, b"x-gzip": _Gzip, b"deflate": _Deflate}


class Decoder:
    """The decoder of one body. `encodings` are the values of its Content-Encoding fields, in their order."""

    def __init__(self, encodings: Iterable[bytes], bounds: Bounds) -> None:
        self._layers: list[_Layer] = []
        self._began = False
        self.reason: str | None = None
        named = [name.strip(b" \t").lower() for value in encodings for name in value.split(b",", MAX_LAYERS * 4)]
        for name in reversed([name for name in named if name and name != b"identity"]):
            made = _DECODERS.get(name)
            if made is None or len(self._layers) == MAX_LAYERS:
                self.reason = ENCODING
                return
            self._layers.append(made(bounds))
        if not self._layers:
            self._layers.append(_Identity(bounds))

    @property
    def layers(self) -> int:
        """How many decompressors there are; none that will not be used any more."""
        return 0 if self.reason is not None else sum(not isinstance(layer, _Identity) for layer in self._layers)

    def feed(self, data: bytes) -> bytes:
        """What more bytes of the body decode to; empty once there is a reason."""
        if self.reason is not None or not data:
            return b""
        self._began = True
        return self._through(data, 0)

    def finish(self) -> bytes:
        """The body has ended; returns what was held back until then.

        An empty body is right whatever its encoding: answers to HEAD have it, for example.
        """
        made = b""
        for index, layer in enumerate(self._layers if self._began else ()):
            if self.reason is not None:
                break
            held = layer.finish()
            self.reason = layer.reason
            made += self._through(held, index + 1)
        return made

    def _through(self, data: bytes, first: int) -> bytes:
        """Decode by the layers from one on. A reason of a later layer is about an earlier byte, so it counts."""
        for layer in self._layers[first:]:
            if not data:
                break
            data = layer.feed(data)
            self.reason = layer.reason or self.reason
        return data
