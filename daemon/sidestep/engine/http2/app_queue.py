"""Frames of the app that wait because diverted responses have spent the client's connection window.

    DATA                          waits for the window
    frames of the same stream     that end it (trailers, RST_STREAM) wait behind its DATA
    header blocks                 wait behind a waiting header block: the client's HPACK table must see the app's blocks
                                  in their order
    an ACK of SETTINGS            waits behind all of them: it says under which windows and table size everything
                                  before it was sent
    all other frames              overtake: SETTINGS, PING, WINDOW_UPDATE, GOAWAY, headers of other streams. So an
                                  upload, or a stream that needs no window, does not stall behind a download

A frame that fits the window is written as it came. One that does not is cut at the window: a client may give no more
window before it has been used up. The padding of a cut frame goes with its last piece.
"""

from __future__ import annotations

from collections import deque

from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME,
    HEADER,
    PADDED,
    RST_STREAM,
    SETTINGS,
    Http2Error,
    frame,
)


class _QueuedFrame:
    """A waiting frame, or a header block with its CONTINUATIONs; `missing` bytes of payload have not come yet."""

    __slots__ = (
        "flags",
        "is_ack",
        "is_data",
        "missing",
        "offset",
        "open_block",
        "orders_blocks",
        "payload",
        "prefix",
        "stream",
    )

    def __init__(self, kind: int, flags: int, stream: int, length: int) -> None:
        self.is_data = kind == DATA
        self.flags = flags
        self.stream = stream
        self.missing = length
        self.prefix = HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)
        self.payload = bytearray()
        self.offset = 0
        """Bytes of the payload that have been written in frames of our own."""
        self.is_ack = kind == SETTINGS
        self.orders_blocks = kind not in (DATA, RST_STREAM)
        self.open_block = self.orders_blocks and not self.is_ack and not flags & END_HEADERS

    def add_frame(self, flags: int, length: int) -> None:
        """Begin a CONTINUATION of this block."""
        self.payload += HEADER.pack(length >> 8, length & 0xFF, CONTINUATION, flags, self.stream)
        self.missing = length
        self.open_block = not flags & END_HEADERS


class AppQueue:
    """The waiting frames in order; `size` is the number of payload bytes they hold."""

    __slots__ = ("_blocks", "_items", "_streams", "passed_ack", "passed_block", "size")

    def __init__(self) -> None:
        self._items: deque[_QueuedFrame] = deque()
        self._streams: dict[int, int] = {}
        self._blocks = 0
        self.passed_block = False
        self.passed_ack = False
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def is_open(self) -> bool:
        """Whether the newest frame is a header block that goes on in a CONTINUATION."""
        return bool(self._items) and self._items[-1].open_block

    def takes(self, kind: int, stream: int) -> bool:
        """Whether a frame other than DATA with a length must wait here."""
        if stream in self._streams:
            return True
        return kind not in (DATA, RST_STREAM) and self._blocks > 0

    def begin(self, kind: int, flags: int, stream: int, length: int) -> None:
        """Queue a frame whose header has come; its payload follows by `feed`."""
        if kind == CONTINUATION:
            self._items[-1].add_frame(flags, length)
            return
        self._items.append(_QueuedFrame(kind, flags, stream, length))
        self._streams[stream] = self._streams.get(stream, 0) + 1
        self._blocks += self._items[-1].orders_blocks

    def feed(self, data: bytes) -> None:
        """Queue payload of the newest frame."""
        item = self._items[-1]
        item.payload += data
        item.missing -= len(data)
        self.size += len(data)

    def flush(self, window: int, out: list[bytes]) -> int:
        """Move what may be written to `out`. Returns the bytes that are left of the window.

        Stops after an ACK (`passed_ack`), which may change what follows. `passed_block` is set when a header block was
        among it. Raises Http2Error for padding that is longer than its frame.
        """
        items = self._items
        self.passed_block = self.passed_ack = False
        while items and not self.passed_ack:
            item = items[0]
            if item.is_data:
                done, window = _cut(item, window, out)
            else:
                done = not item.missing and not item.open_block
                if done:
                    out.append(item.prefix + bytes(item.payload))
            if not done:
                break
            self._pop()
        self.size = sum(len(item.payload) - item.offset for item in items)
        return window

    def _pop(self) -> None:
        item = self._items.popleft()
        count = self._streams.pop(item.stream) - 1
        if count:
            self._streams[item.stream] = count
        self._blocks -= item.orders_blocks
        self.passed_block |= item.orders_blocks and not item.is_ack
        self.passed_ack = item.is_ack


def _cut(item: _QueuedFrame, window: int, out: list[bytes]) -> tuple[bool, int]:
    """Write as much of a DATA frame as the window takes. Returns whether all is written, and the window left."""
    payload = item.payload
    if not item.offset and not item.missing and len(payload) <= max(window, 0):
        out.append(item.prefix + bytes(payload))
        return True, window - len(payload)
    length = len(payload) + item.missing
    padding = 0
    if item.flags & PADDED:
        if not payload:
            return False, window
        padding = 1 + payload[0]
        if padding > length:
            raise Http2Error("h2-padding")
        item.offset = item.offset or 1
    stop = length - max(padding - 1, 0)
    while window > 0:
        size = min(window, FRAME, min(len(payload), stop) - item.offset)
        if size <= 0:
            break
        ends = item.offset + size == stop and not padding
        piece = bytes(payload[item.offset : item.offset + size])
        out.append(frame(DATA, item.flags & END_STREAM if ends else 0, item.stream, piece))
        item.offset += size
        window -= size
        if ends:
            return True, window
    if padding and item.offset == stop and not item.missing and padding <= window:
        out.append(frame(DATA, item.flags, item.stream, bytes((padding - 1,)) + bytes(padding - 1)))
        return True, window - padding
    return False, window
