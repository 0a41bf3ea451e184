"""Frames of the app that wait for the client's window: what waits, what is cut, in which order it leaves."""

from __future__ import annotations

import pytest

from sidestep.engine.http2.app_queue import AppQueue
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    Http2Error,
    frame,
)


def put(queue: AppQueue, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
    queue.begin(kind, flags, stream, len(payload))
    if payload:
        queue.feed(payload)


def flush(queue: AppQueue, window: int) -> tuple[list[bytes], int]:
    out: list[bytes] = []
    return out, queue.flush(window, out)


def test_data_that_fits_leaves_as_it_came() -> None:
    queue = AppQueue()
    put(queue, DATA, END_STREAM, 1, b"12345")
    assert queue.size == 5
    assert flush(queue, 5) == ([frame(DATA, END_STREAM, 1, b"12345")], 0)
    assert not queue
    assert queue.size == 0


def test_data_that_does_not_fit_is_cut_at_the_window() -> None:
    queue = AppQueue()
    put(queue, DATA, END_STREAM, 1, b"12345")
    assert flush(queue, 2) == ([frame(DATA, 0, 1, b"12")], 0)
    assert queue.size == 3
    assert flush(queue, 0) == ([], 0)
    assert flush(queue, -7) == ([], -7)
    assert flush(queue, 9) == ([frame(DATA, END_STREAM, 1, b"345")], 6)
    assert not queue


def test_the_padding_of_a_cut_frame_goes_with_its_last_piece() -> None:
    queue = AppQueue()
    put(queue, DATA, END_STREAM | PADDED, 1, b"\x02data\0\0")
    assert flush(queue, 3) == ([frame(DATA, 0, 1, b"dat")], 0)
    assert flush(queue, 3) == ([frame(DATA, 0, 1, b"a")], 2)
    assert flush(queue, 3) == ([frame(DATA, END_STREAM | PADDED, 1, b"\x02\0\0")], 0)


def test_padding_whose_length_has_not_come_waits_and_one_too_long_is_an_error() -> None:
    queue = AppQueue()
    queue.begin(DATA, PADDED, 1, 4)
    assert flush(queue, 10) == ([], 10)
    queue.feed(b"\x04")
    with pytest.raises(Http2Error):
        flush(queue, 10)


def test_data_that_is_still_coming_leaves_in_pieces() -> None:
    queue = AppQueue()
    queue.begin(DATA, END_STREAM, 1, 6)
    queue.feed(b"123")
    assert flush(queue, 10) == ([frame(DATA, 0, 1, b"123")], 7)
    queue.feed(b"456")
    assert flush(queue, 7) == ([frame(DATA, END_STREAM, 1, b"456")], 4)


@pytest.mark.parametrize(
    ("kind", "stream", "waits"),
    [
        (RST_STREAM, 1, True),
        (RST_STREAM, 3, False),
        (HEADERS, 1, True),
        (HEADERS, 3, False),
        (DATA, 1, True),
        (DATA, 3, False),
        (PING, 0, False),
    ],
)
def test_behind_data_waits_what_belongs_to_its_stream(kind: int, stream: int, waits: bool) -> None:
    queue = AppQueue()
    put(queue, DATA, 0, 1, b"data")
    assert queue.takes(kind, stream) is waits


def test_behind_a_header_block_wait_all_header_blocks() -> None:
    queue = AppQueue()
    put(queue, DATA, 0, 1, b"data")
    put(queue, HEADERS, END_HEADERS | END_STREAM, 1, b"\x88")
    assert queue.takes(HEADERS, 3)
    assert not queue.takes(RST_STREAM, 3)
    out, _ = flush(queue, 4)
    assert out[1:] == [frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x88")]
    assert queue.passed_block
    assert not queue.takes(HEADERS, 3)


def test_a_header_block_leaves_whole_with_its_continuations() -> None:
    queue = AppQueue()
    put(queue, HEADERS, 0, 1, b"\x88")
    assert queue.is_open
    assert flush(queue, 0)[0] == []
    put(queue, CONTINUATION, END_HEADERS, 1, b"\x89")
    assert not queue.is_open
    assert flush(queue, 0)[0] == [frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, END_HEADERS, 1, b"\x89")]


def test_an_acknowledgement_ends_a_flush() -> None:
    queue = AppQueue()
    put(queue, SETTINGS, ACK, 0)
    put(queue, DATA, 0, 1, b"data")
    assert flush(queue, 10) == ([frame(SETTINGS, ACK, 0)], 10)
    assert queue.passed_ack
    assert flush(queue, 10) == ([frame(DATA, 0, 1, b"data")], 6)
    assert not queue.passed_ack
