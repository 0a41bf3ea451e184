"""Frames of a snapshot of files: whole, byte by byte, re-chunked; and what is none."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.model.errors import PeerError
from sidestep.protocols.file_frames import MAX_DATA, MAX_PATH, Entry, Frames, Problem, Summary, Whole, encode

FRAMES = [
    Entry(b"/etc", "folder", 0o755, 1.5),
    Entry(b"/etc/\xff\n", "file", 0o640, 2.0, 3),
    b"abc",
    Whole(),
    Entry(b"/etc/link", "link", target=b"../\xfe"),
    Problem(b"/etc/fifo", "a device, pipe or socket", asked=True),
    Summary("it takes more than 300 s"),
]


def frame(kind, payload):
    return kind + len(payload).to_bytes(4, "big") + payload


def test_frames_are_read_whole_and_byte_by_byte():
    data = b"".join(map(encode, FRAMES))
    assert Frames().feed(data) == FRAMES
    frames = Frames()
    assert [each for byte in data for each in frames.feed(bytes([byte]))] == FRAMES
    assert frames.feed(data + b"E") == FRAMES


@given(st.lists(st.integers(min_value=0, max_value=200), max_size=6))
def test_the_pieces_do_not_matter(cuts):
    data = b"".join(map(encode, FRAMES))
    frames, found, at = Frames(), [], 0
    for cut in [*sorted(cuts), len(data)]:
        found += frames.feed(data[at:cut])
        at = max(at, cut)
    assert found == FRAMES


def test_the_largest_data_is_a_frame():
    assert Frames().feed(encode(bytes(MAX_DATA))) == [bytes(MAX_DATA)]


@pytest.mark.parametrize(
    "data",
    [
        b"D" + (MAX_DATA + 1).to_bytes(4, "big"),
        b"E\xff\xff\xff\xff",
        frame(b"D", b""),
        frame(b"X", b"x"),
        frame(b"Z", b""),
        frame(b"\0", b"\0"),
        frame(b"E", b""),
        frame(b"E", b"\xc1"),
        frame(b"E", b"\x91" * 5000),
        frame(b"E", msgspec.msgpack.encode([b"/", "file"])),
        frame(b"E", msgspec.msgpack.encode(["/text", "file"])),
        frame(b"E", msgspec.msgpack.encode([b"/a", "device"])),
        frame(b"E", msgspec.msgpack.encode([b"/a", "file", -1])),
        frame(b"E", msgspec.msgpack.encode([b"/a", "file", 0o10000])),
        frame(b"E", msgspec.msgpack.encode([b"/a", "file", 0, 0.0, -1])),
        frame(b"E", msgspec.msgpack.encode([b"/" + b"a" * MAX_PATH, "file"])),
        frame(b"E", msgspec.msgpack.encode([b"/a", "link", 0, 0.0, 0, b"a" * (MAX_PATH + 1)])),
        frame(b"P", msgspec.msgpack.encode([b"/a", "x" * 301])),
        frame(b"P", msgspec.msgpack.encode([b"/a", b"\xff"])),
        frame(b"P", b"\x92\xc4\x01/\xa1\xff"),
        frame(b"S", msgspec.msgpack.encode({})),
    ],
)
def test_what_is_no_frame_is_an_error_of_the_peer(data):
    with pytest.raises(PeerError):
        Frames().feed(data)


@given(st.binary(max_size=64))
def test_any_bytes_are_frames_or_an_error_of_the_peer(data):
    for prefix in (b"", b"E\0\0\0\x10", b"P\0\0\0\x08", b"S\0\0\0\x04"):
        frames = Frames()
        try:
            frames.feed(prefix + data)
        except PeerError:
            pass
