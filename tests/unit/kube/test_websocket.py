"""WebSocket frames: whole, byte by byte, fragmented, hostile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.kube.websocket import BINARY, CLOSE, MAX_MESSAGE, PING, FrameReader, Message, frame
from sidestep.model.errors import PeerError


def served(opcode, payload, *, final=True):
    """A frame as a server sends it: not masked."""
    size = len(payload)
    first = (0x80 if final else 0) | opcode
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def unmasked(data):
    """What a server reads of a client's frame."""
    size, head = data[1] & 0x7F, 2
    if size == 126:
        size, head = int.from_bytes(data[2:4], "big"), 4
    elif size == 127:
        size, head = int.from_bytes(data[2:10], "big"), 10
    key, body = data[head : head + 4], data[head + 4 :]
    assert len(body) == size
    return bytes(byte ^ key[index % 4] for index, byte in enumerate(body))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 100_000])
def test_a_frame_of_ours_is_final_masked_and_says_the_same(size):
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    data = frame(BINARY, payload)
    assert data[0] == 0x82
    assert data[1] & 0x80
    assert unmasked(data) == payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 70_000])
def test_messages_come_out_whole_with_what_follows_kept(size):
    data = served(BINARY, b"x" * size) + served(PING, b"p")
    assert list(FrameReader().feed(data)) == [Message(BINARY, b"x" * size), Message(PING, b"p")]


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 7))
def test_however_it_is_cut(payloads, step):
    data = b"".join(served(BINARY, payload) for payload in payloads)
    reader, found = FrameReader(), []
    for begin in range(0, len(data), step):
        found += reader.feed(data[begin : begin + step])
    assert [each.payload for each in found] == payloads


def test_fragments_with_a_ping_between_them():
    data = served(BINARY, b"ab", final=False) + served(PING, b"") + served(0, b"cd", final=False) + served(0, b"e")
    assert list(FrameReader().feed(data)) == [Message(PING, b""), Message(BINARY, b"abcde")]


@pytest.mark.parametrize(
    "data",
    [
        bytes((0x80 | BINARY, 0x80)) + b"abcd",  # masked by a server
        bytes((0xC0 | BINARY, 0)),  # a reserved bit
        served(0, b"x"),  # a continuation of nothing
        served(BINARY, b"x", final=False) + served(BINARY, b"y"),  # a message within a message
        served(PING, b"", final=False),
        served(CLOSE, b"x" * 126),
        served(3, b""),
        bytes((0x80 | BINARY, 127)) + (MAX_MESSAGE + 1).to_bytes(8, "big"),
    ],
)
def test_what_breaks_the_rules_is_refused(data):
    with pytest.raises(PeerError):
        list(FrameReader().feed(data))


def test_fragments_do_not_add_up_beyond_the_bound():
    reader = FrameReader()
    part = b"x" * (1 << 20)
    list(reader.feed(served(BINARY, part, final=False)))
    with pytest.raises(PeerError):
        for _ in range(5):
            list(reader.feed(served(0, part, final=False)))
