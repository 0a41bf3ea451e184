"""DATA that goes to the app and is told to the mirror, or to inspection, on its way.

The relay hands the bytes on unchanged; this only finds out which of them are data and which padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sidestep.protocols.http2 import END_STREAM, HEADER_SIZE, PADDED

if TYPE_CHECKING:
    from collections.abc import Mapping


class RequestFeed(Protocol):
    """Whoever is told of bodies: `Http2Feed`, or inspection."""

    @property
    def requests(self) -> Mapping[int, object]:
        """Streams whose bodies are wanted."""

    def body(self, stream: int, data: bytes, *, ends: bool) -> None:
        """Take data of a body that is wanted, possibly empty."""

    def cut(self, stream: int) -> None:
        """Learn that nothing more of this stream will come."""


class MirroredData:
    """The DATA frame at hand. `stream` is its stream, 0 when there is no such frame."""

    __slots__ = ("_data", "_ends", "_feed", "stream")

    def __init__(self, feed: RequestFeed) -> None:
        self._feed = feed
        self.stream = 0
        self._data = 0
        """Bytes of data still to come; padding follows."""
        self._ends = False

    def begin(self, data: bytes, position: int, stop: int, flags: int, stream: int) -> bool:
        """Tell what is here of a frame; False when the length of its padding has not come yet.

        A frame whose padding is longer than its payload cuts the exchange: the app answers it with an error.
        """
        payload = position + HEADER_SIZE
        padding = 0
        if flags & PADDED:
            if stop > payload == len(data):
                return False
            padding = 1 + data[payload] if stop > payload else 1
        if padding > stop - payload:
            self._feed.cut(stream)
            return True
        self.stream = stream
        self._data = stop - payload - padding
        self._ends = flags & END_STREAM != 0
        self.feed(data[payload + (padding > 0) : stop], whole=stop <= len(data))
        return True

    def feed(self, data: bytes, *, whole: bool) -> None:
        """Tell payload of that frame, what exceeds its data being padding; `whole` when the frame ends here."""
        stream = self.stream
        size = min(len(data), self._data)
        self._data -= size
        if whole:
            self.stream = 0
        if stream in self._feed.requests:
            self._feed.body(stream, data[:size], ends=whole and self._ends)
