"""Frames of a capture: what a pod proxy tells of one connection, from which the command line makes packets.

A capture has one stream for each client connection. It carries frames, each with a head and its data:

    kind (1 byte), side (1 byte: 0 client, 1 server), time (8 bytes, nanoseconds since 1970), length (4 bytes), data

    START     first and once: the server's address and port as text, "ADDRESS PORT". The client's are told by whoever
              opens the stream
    DATA      bytes that this side has sent
    LOST      this side has sent so many bytes more (8 bytes), of which nothing is known
    COMMENT   a text about what follows
    FINISHED  this side has finished sending
    RESET     this side has reset the connection; nothing follows

Integers are big-endian. A reader believes nothing: lengths are bounded by MAX_DATA, and what does not fit raises
PeerError.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

import msgspec

from sidestep.model.errors import PeerError

MAX_DATA: Final = 64 * 1024
"""Bytes of data of one frame."""
MAX_LOST: Final = 2**48
"""Bytes that one LOST may stand for."""

_HEAD: Final = struct.Struct("!BBQI")
HEAD_SIZE: Final = _HEAD.size
_COUNT: Final = struct.Struct("!Q")


class FrameKind(enum.IntEnum):
    """What a frame says; see the module."""

    START = 1
    DATA = 2
    LOST = 3
    COMMENT = 4
    FINISHED = 5
    RESET = 6


class Frame(msgspec.Struct, frozen=True):
    """One frame. `at` is in nanoseconds since 1970-01-01T00:00:00Z."""

    kind: FrameKind
    from_client: bool
    at: int
    data: bytes = b""

    @property
    def count(self) -> int:
        """The bytes that a LOST stands for. Raises PeerError for one that cannot be."""
        if len(self.data) != _COUNT.size or (count := _COUNT.unpack(self.data)[0]) > MAX_LOST:
            raise PeerError("a capture tells a loss that cannot be")
        return int(count)

    @property
    def text(self) -> str:
        """The data of a START or COMMENT."""
        return self.data.decode("utf-8", "replace")


def encode(kind: FrameKind, at: int, data: bytes = b"", *, from_client: bool = True) -> bytes:
    """One frame, or for DATA as many as its bytes need."""
    side = 0 if from_client else 1
    if len(data) <= MAX_DATA:
        return _HEAD.pack(kind, side, at, len(data)) + data
    pieces = [data[start : start + MAX_DATA] for start in range(0, len(data), MAX_DATA)]
    return b"".join([_HEAD.pack(kind, side, at, len(piece)) + piece for piece in pieces])


def encode_loss(count: int, at: int, *, from_client: bool) -> bytes:
    """A LOST."""
    return encode(FrameKind.LOST, at, _COUNT.pack(count), from_client=from_client)


class FrameReader:
    """Cuts bytes into frames. Holds at most one frame that is not whole."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    @property
    def is_between(self) -> bool:
        """Whether the bytes so far end with a frame."""
        return not self._rest

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole. Raises PeerError for bytes that are no frames."""
        data = self._rest + data
        at = 0
        frames = []
        while len(data) - at >= HEAD_SIZE:
            kind, side, when, length = _HEAD.unpack_from(data, at)
            if length > MAX_DATA or side > 1 or not FrameKind.START <= kind <= FrameKind.RESET:
                raise PeerError("a capture's stream carries something that is no frame")
            end = at + HEAD_SIZE + length
            if end > len(data):
                break
            frames.append(Frame(FrameKind(kind), side == 0, when, data[at + HEAD_SIZE : end]))
            at = end
        self._rest = data[at:]
        return frames
