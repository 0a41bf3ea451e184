"""WebSocket frames, client side (RFC 6455). Sans-IO: received bytes to messages, messages to bytes to send.

Supports what streams of an API server use: binary messages, ping, close. Text counts as binary. No extensions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from sidestep.model.errors import PeerError

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message. API servers send at most about 32 KiB."""


@dataclass(frozen=True, slots=True)
class Message:
    """A complete message, or a control frame."""

    opcode: int
    payload: bytes


@dataclass(slots=True)
class FrameReader:
    """Assembles messages from frames."""

    _buffer: bytearray = field(default_factory=bytearray)
    _parts: list[bytes] = field(default_factory=list)
    _opcode: int = 0
    _size: int = 0

    def feed(self, data: bytes) -> Iterator[Message]:
        """Process received bytes; yields completed messages. Raises PeerError."""
        self._buffer += data
        while (frame := self._frame()) is not None:
            final, opcode, payload = frame
            if opcode >= CLOSE:
                if not final:
                    raise PeerError("a WebSocket control frame was fragmented (RFC 6455, 5.5)", code=1002)
                yield Message(opcode, payload)
                continue
            if (opcode == CONTINUATION) != bool(self._opcode):
                raise PeerError("WebSocket fragments came out of order (RFC 6455, 5.4)", code=1002)
            self._opcode = self._opcode or opcode
            self._size += len(payload)
            if self._size > MAX_MESSAGE:
                raise PeerError(f"a WebSocket message of more than {MAX_MESSAGE} bytes", code=1009)
            self._parts.append(payload)
            if final:
                yield Message(self._opcode, b"".join(self._parts))
                self._parts, self._opcode, self._size = [], 0, 0

    def _frame(self) -> tuple[bool, int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if buffer[0] & 0x70 or buffer[1] & 0x80:
            raise PeerError("a WebSocket frame with unknown bits or a mask (RFC 6455, 5.1, 5.2)", code=1002)
        opcode = buffer[0] & 0x0F
        if opcode not in {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}:
            raise PeerError(f"a WebSocket frame of unknown kind {opcode}", code=1002)
        size, head = buffer[1] & 0x7F, 2
        if opcode >= CLOSE and size > 125:
            raise PeerError("a WebSocket control frame is too long (RFC 6455, 5.5)", code=1002)
        if size >= 126:
            width = 2 if size == 126 else 8
            head = 2 + width
            if len(buffer) < head:
                return None
            size = int.from_bytes(buffer[2:head], "big")
            if size > MAX_MESSAGE:
                raise PeerError(f"a WebSocket frame of more than {MAX_MESSAGE} bytes", code=1009)
        if len(buffer) < head + size:
            return None
        payload = bytes(buffer[head : head + size])
        final = bool(buffer[0] & 0x80)
        del buffer[: head + size]
        return final, opcode, payload


def frame(opcode: int, payload: bytes) -> bytes:
    """Encode one final, masked frame."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
    key = os.urandom(4)
    # One XOR over the whole payload, because a session can transfer gigabytes through port-forwards.
    mask = (key * (size // 4 + 1))[:size]
    masked = (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")
    return head + key + masked
