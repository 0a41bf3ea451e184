"""Frames of a snapshot of files: what a node's reader sends, and a developer's machine writes. Sans-IO.

A frame is a type, one byte; the length of its payload, four bytes in network order; and the payload:

    E   `Entry`, MessagePack       the next file, folder or link
    D   bytes                      of the file whose entry came last; at least one, at most MAX_DATA
    X   nothing                    that file is whole
    P   `Problem`, MessagePack     something is not in the snapshot, or the file that was begun is not whole
    S   `Summary`, MessagePack     the end; without it the snapshot has broken off

Paths are bytes, as in the container: absolute, without `.`, `..` and empty parts. The root needs no entry. Order:

    a folder comes before what is in it, and nothing is in a link
    a file is `E` `D`* `X`, or `E` `D`* `P`, without anything in between
    nothing comes after `S`

This module checks single frames. Who writes the files checks the order and the paths: the node is not trusted with
that.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

import msgspec

from sidestep.model.errors import PeerError

MAX_ENTRIES: Final = 100_000
"""Files, folders, links and problems of a snapshot, without the folders above the ones that were asked for."""
MAX_PATH: Final = 4096
"""Bytes of a path or of a link's target (PATH_MAX, linux/limits.h)."""
MAX_PARTS: Final = 200
"""Parts of a path."""
MAX_DATA: Final = 128 * 1024
_MAX_PAYLOAD: Final = MAX_DATA
_HEAD: Final = 5

_Path = Annotated[bytes, msgspec.Meta(min_length=2, max_length=MAX_PATH)]


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A file, folder or symbolic link."""

    path: _Path
    kind: Literal["file", "folder", "link"]
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)] = 0o600
    """Permission bits."""
    modified: float = 0.0
    """Seconds since the epoch."""
    size: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Bytes of a file that are to come."""
    target: Annotated[bytes, msgspec.Meta(max_length=MAX_PATH)] = b""
    """Of a link."""


class Problem(msgspec.Struct, array_like=True, frozen=True):
    """Why something is left out, or not whole. `asked`: it is one of the paths that were asked for."""

    path: Annotated[bytes, msgspec.Meta(max_length=MAX_PATH)]
    reason: Annotated[str, msgspec.Meta(max_length=300)]
    asked: bool = False


class Whole(msgspec.Struct, frozen=True):
    """The file whose entry came last is whole."""


class Summary(msgspec.Struct, array_like=True, frozen=True):
    """The end. `stopped`: which bound the snapshot reached before it had everything, or ""."""

    stopped: Annotated[str, msgspec.Meta(max_length=300)] = ""


Frame = Entry | bytes | Whole | Problem | Summary
_T = TypeVar("_T")


def encode(frame: Frame) -> bytes:
    """Encode one frame."""
    match frame:
        case bytes():
            kind, payload = b"D", frame
        case Whole():
            kind, payload = b"X", b""
        case Entry():
            kind, payload = b"E", msgspec.msgpack.encode(frame)
        case Problem():
            kind, payload = b"P", msgspec.msgpack.encode(frame)
        case Summary():
            kind, payload = b"S", msgspec.msgpack.encode(frame)
    return b"%b%b%b" % (kind, len(payload).to_bytes(4, "big"), payload)


class Frames:
    """Reads frames from bytes in whatever pieces they come."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now. Raises PeerError for what is none."""
        self._rest += data
        found: list[Frame] = []
        at = 0
        while len(self._rest) - at >= _HEAD:
            size = int.from_bytes(self._rest[at + 1 : at + _HEAD], "big")
            if size > _MAX_PAYLOAD:
                raise PeerError(f"a frame of a snapshot has more than {_MAX_PAYLOAD} bytes")
            end = at + _HEAD + size
            if len(self._rest) < end:
                break
            found.append(_frame(self._rest[at : at + 1], bytes(self._rest[at + _HEAD : end])))
            at = end
        del self._rest[:at]
        return found


def _frame(kind: bytes | bytearray, payload: bytes) -> Frame:
    match bytes(kind):
        case b"D" if payload:
            return payload
        case b"X" if not payload:
            return Whole()
        case b"E":
            return _decoded(payload, Entry)
        case b"P":
            return _decoded(payload, Problem)
        case b"S":
            return _decoded(payload, Summary)
        case _:
            raise PeerError("a snapshot has a frame that cannot be understood")


def _decoded(payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError("a frame of a snapshot cannot be read") from error
