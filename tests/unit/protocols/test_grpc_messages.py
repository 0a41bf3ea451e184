"""Messages of gRPC calls: framing however it is cut, compression, and what is neither."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.protocols.decoding import ENCODING, MALFORMED, RATIO, WINDOW, Bounds
from sidestep.protocols.grpc_messages import GrpcMessages, carries_messages

BOUNDS = Bounds(64 * 1024)


def message(data: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(data).to_bytes(4) + data


def read(stream: bytes, *encodings: bytes, cut: int = 1 << 20, bounds: Bounds = BOUNDS):
    """The messages (the last may not have ended), and the reason."""
    reader = GrpcMessages(encodings, bounds)
    found, open_ = [b""], True
    for at in range(0, len(stream), cut):
        for piece, ends in reader.feed(stream[at : at + cut]):
            if not open_:
                found.append(b"")
            found[-1] += piece
            open_ = not ends
    return found, reader.reason


ROWS = {
    "one": (message(b"abc"), (), [b"abc"], None),
    "an empty one": (message(b"") + message(b"x"), (), [b"", b"x"], None),
    "an empty one that is compressed": (message(b"", 1) + message(b"x"), (b"gzip",), [b"", b"x"], None),
    "one that has not ended": (message(b"abc")[:-1], (), [b"ab"], None),
    "gzip": (message(gzip.compress(b"abc"), 1) + message(b"x"), (b"gzip",), [b"abc", b"x"], None),
    "deflate": (message(zlib.compress(b"abc"), 1) * 2, (b"deflate",), [b"abc", b"abc"], None),
    "compressed by nothing": (message(b"abc", 1), (), [b"abc"], None),
    "compressed by identity": (message(b"abc", 1), (b"identity",), [b"abc"], None),
    "an encoding that is not known": (message(b"a") + message(b"x", 1), (b"snappy",), [b"a", b""], ENCODING),
    "what is not gzip": (message(b"abcdefghijklmnop", 1), (b"gzip",), [b""], MALFORMED),
    "a bomb": (message(gzip.compress(bytes(60_000)), 1), (b"gzip",), None, RATIO),
    "too much": (message(gzip.compress(bytes(70_000), 0), 1), (b"gzip",), None, WINDOW),
    "trailers of gRPC-Web": (
        message(b"a") + message(b"status:0\r\n", 128),
        (),
        [b"a", b"status:0\r\n"],
        None,
    ),
    "no messages": (b"name=value&a=b", (b"gzip",), [b"name=value&a=b"], None),
    "no messages behind one": (message(b"a") + b"{}", (), [b"a", b"{}"], None),
    "another flag": (message(b"a", 2), (), [message(b"a", 2)], None),
}


@pytest.mark.parametrize("cut", [1 << 20, 1, 3])
@pytest.mark.parametrize("row", ROWS)
def test_messages(row, cut):
    stream, encodings, messages, reason = ROWS[row]
    found, why = read(stream, *encodings, cut=cut)
    assert why == reason
    if messages is not None:
        assert found == messages


@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), min_size=1), st.integers(1, 30))
def test_what_is_sent_is_read_however_it_is_cut(sent, cut):
    stream = b"".join(message(gzip.compress(data), 1) if packed else message(data) for data, packed in sent)
    assert read(stream, b"gzip", cut=cut) == ([data for data, _ in sent], None)


@given(st.binary(), st.integers(1, 9), st.sampled_from([b"gzip", b"deflate", b"identity", b"br"]))
def test_anything_is_read_alike_however_it_is_cut(stream, cut, encoding):
    assert read(stream, encoding, cut=cut) == read(stream, encoding)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        (b"application/grpc", True),
        (b"Application/gRPC+proto", True),
        (b"application/grpc-web", True),
        (b"application/grpc-web-text", False),
        (b"application/json", False),
    ],
)
def test_what_carries_messages(content_type, expected):
    assert carries_messages([content_type]) is expected
