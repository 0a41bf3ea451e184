"""Reads one direction of a WebSocket connection for inspection (RFC 6455), with permessage-deflate (RFC 7692).

The connection belongs to others: nothing is answered or refused here. A `Reader` is fed the bytes that one end sends
after the 101 and returns the messages that have ended, unmasked, put together and decompressed. Each says where in the
stream it began and ended, so that a relay can keep its bytes back until it was looked at.

A message that is longer than the bounds allow, or that cannot be decompressed, comes with what was decoded and a reason
(those of `decoding`, and `context`). `Reader.reason` is set to `malformed` when the stream itself breaks the protocol;
from then on nothing is read.

`websockets` is not used here: its protocol objects are an end of a connection, which answer, close and enforce what
that end must; an observer has to go on where an end would give up, and needs positions in the stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from sidestep.model.errors import PeerError
from sidestep.protocols.decoding import MALFORMED, RAW, TRAILING, WINDOW, Bounds, Inflater

CONTINUATION: Final = 0
TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

CONTEXT: Final = "context"
"""A message is compressed with reference to one that was not decompressed, or to a stream that the sender ended."""

MAX_CONTROL: Final = 125
"""Bytes of a control frame's payload (RFC 6455 section 5.5)."""
_MAX_PARAMETERS: Final = 16
_TAIL: Final = b"\x00\x00\xff\xff"
"""What a sender leaves out at the end of a message (RFC 7692 section 7.2.2)."""
_PADDING: Final = b"\x00"
"""What may follow a compressed stream that the sender has ended, before _TAIL (RFC 7692 section 7.2.3.5)."""
_FIN: Final = 0x80
_COMPRESSED: Final = 0x40
_RESERVED: Final = 0x30
_MASKED: Final = 0x80


class Deflate(msgspec.Struct, frozen=True):
    """What was agreed on for permessage-deflate: whether each end compresses with reference to earlier messages."""

    client_takeover: bool = True
    server_takeover: bool = True


class Message(msgspec.Struct, frozen=True):
    """A message, or a control frame. `kind` is its opcode; `data` is all of it unless there is a `reason`.

    `start` and `end` are offsets in the stream: of the first byte of its first frame, and behind its last byte. Control
    frames between the frames of a message come before it and lie within it.
    """

    kind: int
    data: bytes
    start: int
    end: int
    reason: str | None = None


def negotiated(values: Iterable[bytes]) -> Deflate | None:
    """What the values of Sec-WebSocket-Extensions in a 101 agree on, None for no extension.

    Raises PeerError for an extension that is not permessage-deflate, and for parameters that it does not have.
    """
    extensions = [each.strip(b" \t") for value in values for each in value.split(b",", 1)]
    extensions = [each for each in extensions if each]
    if not extensions:
        return None
    name, *parameters = extensions[0].split(b";", _MAX_PARAMETERS)
    if len(extensions) > 1 or name.strip(b" \t").lower() != b"permessage-deflate":
        raise PeerError("an extension that is not known")
    names = [parameter.partition(b"=")[0].strip(b" \t").lower() for parameter in parameters]
    known = {b"server_no_context_takeover", b"client_no_context_takeover", b"server_max_window_bits",
             b"client_max_window_bits"}  # fmt: skip
    if not known.issuperset(names) or len(set(names)) < len(names):
        raise PeerError("parameters that permessage-deflate does not have")
    return Deflate(b"client_no_context_takeover" not in names, b"server_no_context_takeover" not in names)


class Reader:
    """Bytes of one direction in, messages out. `from_client`: its frames are masked, the server's are not."""

    def __init__(self, *, from_client: bool, bounds: Bounds, deflate: Deflate | None = None) -> None:
        self._from_client = from_client
        self._bounds = bounds
        self._compresses = deflate is not None
        self._takeover = deflate is not None and (deflate.client_takeover if from_client else deflate.server_takeover)
        self._inflater = Inflater(RAW, bounds)
        self._context_lost = False
        self.reason: str | None = None
        self._held = bytearray()
        """The beginning of a frame header, or of a control frame."""
        self._offset = 0
        """Of the first byte of `_held` in the stream, or of the next byte."""
        self._closed = False
        self._kind: int | None = None
        """The opcode of the message that has begun."""
        self._start = 0
        self._compressed = False
        self._payload = bytearray()
        self._fault: str | None = None
        """Why the message will not be whole."""
        self._left = 0
        """Bytes of the data frame's payload that have not come."""
        self._final = False
        self._mask = b""

    @property
    def begun(self) -> int | None:
        """Where the message begins that has begun and not ended; None between messages."""
        return None if self._kind is None else self._start

    @property
    def partial(self) -> bytes:
        """What was decoded so far of the message that has begun; empty between messages."""
        return bytes(self._payload)

    @property
    def complete(self) -> int:
        """The offset in the stream up to which every message has been returned."""
        return self._offset if self._kind is None else self._start

    def feed(self, data: bytes) -> list[Message]:
        """The messages and control frames that end in these bytes."""
        found: list[Message] = []
        at = 0
        while self.reason is None:
            if self._left:
                piece = data[at : at + self._left]
                if not piece:
                    break
                at += len(piece)
                self._take(piece)
                if self._left == 0 and self._final:
                    found.append(self._end())
                continue
            before = len(self._held)
            self._held += data[at : at + 14 + MAX_CONTROL - before]
            used = self._read_header(found)
            if used is None:
                break
            at += used - before
            self._held.clear()
        return found

    def _read_header(self, found: list[Message]) -> int | None:
        """Read the header at the beginning of `_held`, or a whole control frame; its size, None while bytes lack."""
        held = self._held
        if len(held) < 2:
            return None
        length, size = held[1] & 0x7F, 2
        if length >= 126:
            width = 2 if length == 126 else 8
            size += width
            if len(held) < size:
                return None
            shortest = 126 if width == 2 else 1 << 16
            length = int.from_bytes(held[2:size])
            if length < shortest or length >> 63:
                self.reason = MALFORMED
                return None
        masked = bool(held[1] & _MASKED)
        if masked:
            size += 4
        kind = held[0] & 0x0F
        if not self._is_right(held[0], length, masked=masked):
            self.reason = MALFORMED
            return None
        if kind >= CLOSE:
            size += length
        if len(held) < size:
            return None
        if kind >= CLOSE:
            payload = bytes(held[size - length : size])
            mask = bytes(held[2:6]) if masked else b""
            found.append(Message(kind, _unmask(payload, mask), self._offset, self._offset + size))
            self._closed = kind == CLOSE
            self._offset += size
            return size
        self._begin_frame(held[0], length, bytes(held[size - 4 : size]) if masked else b"")
        self._offset += size
        if length == 0 and self._final:
            found.append(self._end())
        return size

    def _is_right(self, first: int, length: int, *, masked: bool) -> bool:
        """Whether a frame may come here (RFC 6455 sections 5.1, 5.4 and 5.5; RFC 7692 section 6)."""
        kind = first & 0x0F
        if masked is not self._from_client or first & _RESERVED or self._closed:
            return False
        if kind >= CLOSE:
            return kind <= PONG and length <= MAX_CONTROL and bool(first & _FIN) and not first & _COMPRESSED
        if kind == CONTINUATION:
            return self._kind is not None and not first & _COMPRESSED
        return kind <= BINARY and self._kind is None and (self._compresses or not first & _COMPRESSED)

    def _begin_frame(self, first: int, length: int, mask: bytes) -> None:
        kind = first & 0x0F
        self._final = bool(first & _FIN)
        self._left = length
        self._mask = mask
        if kind != CONTINUATION:
            self._kind = kind
            self._start = self._offset
            self._compressed = bool(first & _COMPRESSED)
            if self._compressed:
                self._begin_compressed()

    def _begin_compressed(self) -> None:
        if self._context_lost:
            self._fault = CONTEXT
        elif self._takeover:
            self._inflater.begin_again()
        else:
            self._inflater = Inflater(RAW, self._bounds)

    def _take(self, piece: bytes) -> None:
        """A piece of the data frame's payload."""
        self._left -= len(piece)
        self._offset += len(piece)
        data = _unmask(piece, self._mask)
        if self._mask:
            turn = len(piece) % 4
            self._mask = self._mask[turn:] + self._mask[:turn]
        if self._fault is not None:
            return
        if self._compressed:
            self._inflate(data)
            return
        room = self._bounds.window - len(self._payload)
        self._payload += data[:room]
        if len(data) > room:
            self._fault = WINDOW

    def _inflate(self, data: bytes) -> None:
        self._payload += self._inflater.feed(data)
        self._fault = self._inflater.reason
        if self._fault is None and self._inflater.rest not in (b"", _PADDING):
            self._fault = TRAILING

    def _finish_compressed(self) -> None:
        if not self._inflater.is_over:
            self._inflate(_TAIL)
        self._inflater.check_ratio()
        if self._inflater.reason is not None:
            self._fault = self._inflater.reason

    def _end(self) -> Message:
        if self._compressed and self._fault is None:
            self._finish_compressed()
        if self._compressed and self._takeover and (self._fault is not None or self._inflater.is_over):
            self._context_lost = True
        kind = CONTINUATION if self._kind is None else self._kind
        message = Message(kind, bytes(self._payload), self._start, self._offset, self._fault)
        self._kind = self._fault = None
        self._payload.clear()
        return message


def _unmask(data: bytes, mask: bytes) -> bytes:
    """XOR with the repeated mask (RFC 6455 section 5.3), as one big number."""
    if not mask or not data:
        return data
    length = len(data)
    repeated = (mask * (length // 4 + 1))[:length]
    return (int.from_bytes(data) ^ int.from_bytes(repeated)).to_bytes(length)
