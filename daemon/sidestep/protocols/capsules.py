"""Datagrams on a byte stream: HTTP capsules of type DATAGRAM with context 0 (RFC 9297 section 3.2, RFC 9298 section 5).

`encode` frames one UDP payload; a `Decoder` takes bytes as they come and gives payloads. Capsules of other types and
datagrams of other contexts are skipped, as the RFCs ask. Lengths are bounded: what is longer than a datagram can be is
an error (PeerError), and nothing of it is buffered.
"""

from __future__ import annotations

from typing import Final

from sidestep.model.errors import PeerError

MAX_PAYLOAD: Final = 65535
"""Bytes of one UDP payload (RFC 9298 section 5)."""
_DATAGRAM: Final = 0
_CONTEXT: Final = b"\x00"


def varint(value: int) -> bytes:
    """A variable-length integer (RFC 9000 section 16) in its shortest form."""
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    return (value | 3 << 62).to_bytes(8, "big")


def read_varint(data: bytes | bytearray, at: int) -> tuple[int, int] | None:
    """(value, offset behind it), None when it is not all there."""
    if at >= len(data):
        return None
    size = 1 << (data[at] >> 6)
    if at + size > len(data):
        return None
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size


def encode(payload: bytes) -> bytes:
    """One datagram as a capsule. Raises PeerError for what is too long to be one."""
    if len(payload) > MAX_PAYLOAD:
        raise PeerError(f"a datagram of {len(payload)} bytes is too long")
    return b"\x00" + varint(len(payload) + 1) + _CONTEXT + payload


class Decoder:
    """Bytes in, UDP payloads out."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the payloads that are whole now. Raises PeerError for what cannot be a datagram."""
        held = self._held
        held += data
        found: list[bytes] = []
        at = 0
        while True:
            capsule = self._next(held, at)
            if capsule is None:
                break
            kind, start, end = capsule
            if end > len(held):
                break
            if kind == _DATAGRAM and held[start : start + 1] == _CONTEXT:
                found.append(bytes(held[start + 1 : end]))
            at = end
        del held[:at]
        return found

    @staticmethod
    def _next(held: bytearray, at: int) -> tuple[int, int, int] | None:
        """(type, start, end) of the capsule at an offset, None when its header is not all there."""
        kind = read_varint(held, at)
        length = read_varint(held, kind[1]) if kind is not None else None
        if kind is None or length is None:
            return None
        if length[0] > MAX_PAYLOAD + 1:
            raise PeerError(f"a capsule of {length[0]} bytes is too long for a datagram")
        return kind[0], length[1], length[1] + length[0]

    @property
    def pending(self) -> int:
        """Bytes of a capsule that is not whole yet."""
        return len(self._held)
