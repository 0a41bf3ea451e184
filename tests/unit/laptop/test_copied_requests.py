"""Requests as they are read from copies on their way to a handler."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.laptop import copied_requests
from sidestep.laptop.copied_requests import MAX_BODY, _Http1Copy, _Http2Copies
from sidestep.protocols.hpack import encode
from sidestep.protocols.http2 import DATA, END_STREAM, PREFACE, frame, header_frames
from tests.unit.tunnel.ends import OPENING

CHUNKED = (
    b"POST /a?b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 1\r\n\r\n"
)
SIZED = b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world"
HEAD = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/a?b")]


def read(kind, *pieces, ended=True):
    found = []
    reader = kind(OPENING, found.append)
    for piece in pieces:
        reader.receive(piece)
    if ended:
        reader.over()
        reader.over()
    return found


def streams(*numbers, trailers=True):
    data = PREFACE + frame(4, 0, 0)
    for number in numbers:
        data += header_frames(number, encode(HEAD), end_stream=False)
    for number in numbers:
        data += frame(DATA, 0, number, b"hello")
    for number in numbers:
        data += frame(DATA, 0 if trailers else END_STREAM, number, b" world")
        if trailers:
            data += header_frames(number, encode([(b"x-sum", b"1")]), end_stream=True)
    return data


def check(request, *, trailers):
    assert (request.method, request.target, bytes(request.body)) == (b"POST", b"/a?b", b"hello world")
    assert request.fields[0] == (b"host", b"a")
    assert request.trailers == ([(b"x-sum", b"1")] if trailers else [])
    assert not request.is_cut


CASES = [(_Http1Copy, CHUNKED, True), (_Http1Copy, SIZED, False), (_Http2Copies, streams(1), True)]


@pytest.mark.parametrize(("kind", "data", "trailers"), CASES)
def test_a_request_is_told_whole_however_it_comes(kind, data, trailers):
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        [request] = read(kind, *pieces)
        check(request, trailers=trailers)


@given(st.sampled_from(CASES), st.lists(st.integers(1, 60), max_size=12))
def test_however_it_is_cut(case, cuts):
    kind, data, trailers = case
    at, pieces = 0, []
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    [request] = read(kind, *[piece for piece in [*pieces, data[at:]] if piece])
    check(request, trailers=trailers)


def test_streams_are_told_apart():
    found = read(_Http2Copies, streams(1, 3, 5, trailers=False))
    assert len(found) == 3
    for request in found:
        check(request, trailers=False)


@pytest.mark.parametrize(("kind", "data"), [(_Http1Copy, CHUNKED), (_Http1Copy, SIZED), (_Http2Copies, streams(1))])
def test_what_does_not_come_whole_is_cut(kind, data):
    [request] = read(kind, data[:-4])
    assert request.is_cut
    assert b"hello world".startswith(bytes(request.body))


def test_a_body_is_kept_up_to_a_bound():
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1)
    [request] = read(_Http1Copy, head, b"x" * MAX_BODY, b"y")
    assert len(request.body) == MAX_BODY
    assert request.is_cut
    [request] = read(
        _Http1Copy, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % MAX_BODY, b"x" * MAX_BODY
    )
    assert not request.is_cut


def test_more_streams_than_so_many_are_not_told(monkeypatch):
    monkeypatch.setattr(copied_requests, "MAX_STREAMS", 2)
    assert len(read(_Http2Copies, streams(1, 3, 5))) == 2


@pytest.mark.parametrize("kind", [_Http1Copy, _Http2Copies])
@pytest.mark.parametrize("data", [b"\x00" * 100, b"GET / HTTP/1.1\nhost: a\n\n", PREFACE + b"\xff" * 60])
def test_what_cannot_be_read_is_not_told(kind, data):
    assert read(kind, data, data) == []


def test_nothing_is_read_behind_a_request():
    [request] = read(_Http1Copy, SIZED + SIZED)
    check(request, trailers=False)
