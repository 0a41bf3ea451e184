"""Frames as built and read here, against `hyperframe`."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hyperframe import frame as reference
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols import http2
from sidestep.protocols.http2 import ErrorCode, Http2Error, Setting


def parse(data: bytes) -> list[Any]:
    """Frames of the reference implementation, each of the class of its type."""
    found = []
    while data:
        one, length = reference.Frame.parse_frame_header(memoryview(data[:9]))
        one.parse_body(memoryview(data[9 : 9 + length]))
        found.append(one)
        data = data[9 + length :]
    return found


@given(
    st.integers(1, 2**31 - 1),
    st.binary(max_size=50_000),
    st.booleans(),
    st.one_of(st.just(b""), st.binary(min_size=5, max_size=5)),
)
def test_header_frames(stream: int, block: bytes, end_stream: bool, priority: bytes) -> None:
    frames = parse(http2.header_frames(stream, block, end_stream=end_stream, priority=priority))
    assert [type(one) for one in frames] == [reference.HeadersFrame] + [reference.ContinuationFrame] * (len(frames) - 1)
    assert b"".join(one.data for one in frames) == block
    assert all(one.stream_id == stream and one.body_len <= http2.FRAME for one in frames)
    assert ["END_HEADERS" in one.flags for one in frames] == [False] * (len(frames) - 1) + [True]
    assert ("END_STREAM" in frames[0].flags) is end_stream
    assert ("PRIORITY" in frames[0].flags) is bool(priority)


def test_control_frames() -> None:
    data = (
        http2.settings({Setting.ENABLE_PUSH: 0, Setting.INITIAL_WINDOW_SIZE: 9})
        + http2.SETTINGS_ACK
        + http2.window_update(3, 2**31 - 1)
        + http2.rst_stream(5, ErrorCode.CANCEL)
        + http2.goaway(7, ErrorCode.ENHANCE_YOUR_CALM, b"why")
    )
    first, ack, update, reset, away = parse(data)
    assert first.settings == {2: 0, 4: 9}
    assert "ACK" in ack.flags
    assert (update.stream_id, update.window_increment) == (3, 2**31 - 1)
    assert (reset.stream_id, reset.error_code) == (5, 8)
    assert (away.last_stream_id, away.error_code, away.additional_data) == (7, 11, b"why")


def test_settings_are_read_in_order() -> None:
    payload = struct.pack(">HIHIHI", 1, 0, 1, 4096, 0xFFFF, 2**32 - 1)
    assert http2.read_settings(payload) == ((1, 0), (1, 4096), (0xFFFF, 2**32 - 1))
    assert http2.read_settings(b"") == ()


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"12345", ErrorCode.FRAME_SIZE_ERROR), (struct.pack(">HI", 4, 2**31), ErrorCode.FLOW_CONTROL_ERROR)],
)
def test_bad_settings_are_refused(payload: bytes, code: ErrorCode) -> None:
    with pytest.raises(Http2Error) as caught:
        http2.read_settings(payload)
    assert caught.value.code == code


PRIORITY = b"\x00\x00\x00\x05\x10"
HEADERS = [
    (b"block", 0, (b"", b"block")),
    (b"\x03blockppp", http2.PADDED, (b"", b"block")),
    (b"\x00block", http2.PADDED, (b"", b"block")),
    (PRIORITY + b"block", http2.WITH_PRIORITY, (PRIORITY, b"block")),
    (b"\x01" + PRIORITY + b"blockp", http2.WITH_PRIORITY | http2.PADDED, (PRIORITY, b"block")),
    (b"\x02pp", http2.PADDED, (b"", b"")),
    (b"", 0, (b"", b"")),
]


@pytest.mark.parametrize(("payload", "flags", "expected"), HEADERS)
def test_headers_are_split(payload: bytes, flags: int, expected: tuple[bytes, bytes]) -> None:
    assert http2.split_headers(payload, flags) == expected


@pytest.mark.parametrize(
    ("payload", "flags"),
    [
        (b"", http2.PADDED),
        (b"\x01", http2.PADDED),
        (b"\x06block", http2.PADDED),
        (b"1234", http2.WITH_PRIORITY),
        (b"\x01" + PRIORITY, http2.WITH_PRIORITY | http2.PADDED),
    ],
)
def test_impossible_headers_are_refused(payload: bytes, flags: int) -> None:
    with pytest.raises(Http2Error):
        http2.split_headers(payload, flags)


@pytest.mark.parametrize("size", [16378, 16379, 16384, 16385, 32768, 49152])
def test_a_block_is_cut_where_frames_are_full(size: int) -> None:
    for priority in (b"", b"\x00\x00\x00\x05\x10"):
        frames = parse(http2.header_frames(1, b"b" * size, end_stream=True, priority=priority))
        assert sum(len(one.data) for one in frames) == size
        assert len(frames) == -(-(size + len(priority)) // http2.FRAME)
        assert all(one.body_len == http2.FRAME for one in frames[:-1])
