"""DATA on its way to the app, told to the mirror: which bytes of a frame are data and which padding."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sidestep.engine.http2.mirrored_data import MirroredData
from sidestep.protocols.http2 import DATA, END_STREAM, HEADER_SIZE, PADDED, frame


class Feed:
    """Notes what it is told of stream 1."""

    def __init__(self) -> None:
        self.requests = {1}
        self.data = b""
        self.ended = False
        self.cuts: list[int] = []

    def body(self, stream: int, data: bytes, *, ends: bool) -> None:
        assert stream == 1
        assert not self.ended
        self.data += data
        self.ended = ends

    def cut(self, stream: int) -> None:
        self.cuts.append(stream)


def told(flags: int, payload: bytes, first: int) -> Feed:
    """What the mirror learns of a frame of which `first` bytes of payload come first, then one after the other."""
    feed = Feed()
    data = MirroredData(cast("Any", feed))
    whole = frame(DATA, flags, 1, payload)
    begin = whole[: HEADER_SIZE + first]
    assert data.begin(begin, 0, len(whole), flags, 1)
    rest = whole[len(begin) :]
    for at in range(len(rest)):
        data.feed(rest[at : at + 1], whole=at == len(rest) - 1)
    if not feed.cuts:
        assert data.stream == 0
    return feed


@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("flags", [0, END_STREAM])
def test_padding_is_left_out_however_the_frame_comes(first: int, flags: int) -> None:
    feed = told(flags | PADDED, b"\x03data\0\0\0", first)
    assert (feed.data, feed.ended) == (b"data", bool(flags))
    feed = told(flags, b"all data", first)
    assert (feed.data, feed.ended) == (b"all data", bool(flags))


@pytest.mark.parametrize("payload", [b"", b"\x05abcd"])
def test_padding_beyond_the_frame_ends_what_is_told(payload: bytes) -> None:
    feed = told(PADDED, payload, len(payload))
    assert (feed.cuts, feed.data) == ([1], b"")


def test_the_length_of_the_padding_is_waited_for() -> None:
    whole = frame(DATA, PADDED, 1, b"\x01x\0")
    feed = Feed()
    assert not MirroredData(cast("Any", feed)).begin(whole[:HEADER_SIZE], 0, len(whole), PADDED, 1)
    assert (feed.data, feed.cuts) == (b"", [])


def test_a_stream_that_nobody_wants_any_more_is_not_told() -> None:
    feed = Feed()
    feed.requests.clear()
    whole = frame(DATA, 0, 1, b"data")
    assert MirroredData(cast("Any", feed)).begin(whole, 0, len(whole), 0, 1)
    assert feed.data == b""
