"""Frames made by the websockets library and by hand, whole, cut, hostile."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from sidestep.model.errors import PeerError
from sidestep.protocols.decoding import MALFORMED, RATIO, TRAILING, WINDOW, Bounds
from sidestep.protocols.websocket import BINARY, CLOSE, CONTEXT, PING, PONG, TEXT, Deflate, Message, Reader, negotiated
from tests.effort import examples

WIDE = Bounds(window=1 << 20)


def frame(opcode, payload=b"", *, fin=True, mask=True, extensions=None):
    return Frame(Opcode(opcode), payload, fin).serialize(mask=mask, extensions=extensions)


def by_hand(first, payload, *, mask=b"\1\2\3\4", length=None):
    if length is None:
        size = len(payload)
        length = bytes([size]) if size < 126 else b"\x7e" + struct.pack(">H", size)
    masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload)) if mask else payload
    return bytes([first, length[0] | (0x80 if mask else 0)]) + length[1:] + mask + masked


def read(data, *, size=0, from_client=True, bounds=WIDE, deflate=None):
    """All messages and the reason."""
    reader = Reader(from_client=from_client, bounds=bounds, deflate=deflate)
    found = []
    for at in range(0, len(data), size or len(data) or 1):
        found += reader.feed(data[at : at + (size or len(data))])
    return found, reader.reason


def simple(found):
    return [(message.kind, message.data, message.reason) for message in found]


SIZES = [0, 125, 126, 127, 65535, 65536, 70000]


@pytest.mark.parametrize("length", SIZES)
@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 3, 1000])
def test_messages_of_each_length(length, from_client, cut):
    payload = bytes(range(256)) * 300
    data = frame(BINARY, payload[:length], mask=from_client) + frame(TEXT, b"next", mask=from_client)
    found, reason = read(data, size=cut, from_client=from_client)
    assert simple(found) == [(BINARY, payload[:length], None), (TEXT, b"next", None)]
    assert reason is None
    assert found[0].start == 0
    assert found[0].end == found[1].start
    assert found[1].end == len(data)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_fragments_with_control_frames_between_them(cut):
    pieces = [
        frame(TEXT, b"hel", fin=False), frame(PING, b"?"), frame(0, b"", fin=False), frame(PONG, b"!" * 125),
        frame(0, b"lo"), frame(CLOSE, b"\x03\xe8bye"),
    ]  # fmt: skip
    found, reason = read(b"".join(pieces), size=cut)
    assert simple(found) == [
        (PING, b"?", None), (PONG, b"!" * 125, None), (TEXT, b"hello", None), (CLOSE, b"\x03\xe8bye", None),
    ]  # fmt: skip
    assert reason is None
    assert found[2].start == 0 < found[0].start < found[0].end < found[1].end < found[2].end == found[3].start


MALFORMED_FRAMES = {
    "not masked": frame(TEXT, b"x", mask=False),
    "reserved bit 2": by_hand(0xA1, b"x"),
    "reserved bit 3": by_hand(0x91, b"x"),
    "compressed without agreement": by_hand(0xC1, b"x"),
    "opcode 3": by_hand(0x83, b"x"),
    "opcode 11": by_hand(0x8B, b"x"),
    "continuation of nothing": by_hand(0x80, b"x"),
    "message within a message": by_hand(0x01, b"x") + by_hand(0x81, b"y"),
    "fragmented ping": by_hand(0x09, b"x"),
    "long ping": by_hand(0x89, b"x" * 126),
    "longer length than needed": by_hand(0x81, b"x", length=b"\x7e\0\1"),
    "much longer length than needed": by_hand(0x81, b"x", length=b"\x7f" + struct.pack(">Q", 0xFFFF)),
    "negative length": by_hand(0x81, b"x", length=b"\x7f" + struct.pack(">Q", 1 << 63)),
    "something after the end": frame(CLOSE) + frame(TEXT, b"x"),
}


@pytest.mark.parametrize("data", MALFORMED_FRAMES.values(), ids=MALFORMED_FRAMES.keys())
@pytest.mark.parametrize("cut", [0, 1])
def test_what_breaks_the_protocol_ends_the_reading(data, cut):
    found, reason = read(frame(TEXT, b"before") + data + frame(PING), size=cut)
    assert reason == MALFORMED
    assert simple(found)[:1] == [(TEXT, b"before", None)]
    assert {message.kind for message in found[1:]} <= {CLOSE}


def test_a_server_does_not_mask():
    assert read(frame(TEXT, b"x", mask=True), from_client=False) == ([], MALFORMED)


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_longer_messages_than_the_bound_come_with_their_beginning(cut):
    data = frame(TEXT, b"a" * 60, fin=False) + frame(0, b"b" * 60) + frame(BINARY, b"next")
    found, reason = read(data, size=cut, bounds=Bounds(100))
    assert simple(found) == [(TEXT, b"a" * 60 + b"b" * 40, WINDOW), (BINARY, b"next", None)]
    assert reason is None


def test_a_message_that_never_ends_takes_no_more_memory_than_the_bound():
    reader = Reader(from_client=True, bounds=Bounds(1000))
    reader.feed(by_hand(0x82, b"", length=b"\x7f" + struct.pack(">Q", 1 << 60)))
    for _ in range(100):
        assert reader.feed(bytes(65536)) == []
    assert len(reader._payload) == 1000


def deflated(messages, *, takeover=True, from_client=True):
    """Messages as the websockets library compresses them."""
    extension = PerMessageDeflate(False, not takeover, 15, 15)
    return b"".join(frame(TEXT, message, mask=from_client, extensions=[extension]) for message in messages)


@pytest.mark.parametrize("takeover", [True, False])
@pytest.mark.parametrize("from_client", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_compressed_messages(takeover, from_client, cut):
    messages = [b"hello", b"hello again, hello", b"", b"the same hello " * 500, bytes(range(256)) * 40]
    data = deflated(messages, takeover=takeover, from_client=from_client) + frame(TEXT, b"plain", mask=from_client)
    agreed = Deflate(client_takeover=takeover if from_client else False, server_takeover=takeover)
    found, reason = read(data, size=cut, from_client=from_client, deflate=agreed)
    assert simple(found) == [(TEXT, message, None) for message in [*messages, b"plain"]]
    assert reason is None


@pytest.mark.parametrize("cut", [0, 1])
def test_a_compressed_message_in_fragments(cut):
    compress = zlib.compressobj(wbits=-15)
    packed = compress.compress(b"in three pieces") + compress.flush(zlib.Z_SYNC_FLUSH)
    packed = packed[:-4]
    data = by_hand(0x41, packed[:3]) + frame(PING) + by_hand(0x00, packed[3:5]) + by_hand(0x80, packed[5:])
    found, reason = read(data, size=cut, deflate=Deflate())
    assert simple(found) == [(PING, b"", None), (TEXT, b"in three pieces", None)]
    assert reason is None
    assert read(by_hand(0x41, packed) + by_hand(0xC0, b""), deflate=Deflate())[1] == MALFORMED


BOMB = bytes(200_000)


@pytest.mark.parametrize(("takeover", "then"), [(True, CONTEXT), (False, None)])
@pytest.mark.parametrize("cut", [0, 1])
@pytest.mark.parametrize(("bounds", "reason"), [(Bounds(5000), WINDOW), (Bounds(1 << 20, 10), RATIO)])
def test_what_follows_a_message_that_was_not_decompressed(takeover, then, cut, bounds, reason):
    data = deflated([b"first", BOMB, b"third first"], takeover=takeover) + frame(TEXT, b"plain")
    found, fault = read(data, size=cut, bounds=bounds, deflate=Deflate(takeover, takeover))
    assert fault is None
    assert [message.reason for message in found] == [None, reason, then, None]
    assert BOMB.startswith(found[1].data)
    assert found[2].data == (b"" if takeover else b"third first")
    assert found[3].data == b"plain"


@pytest.mark.parametrize("cut", [0, 1])
def test_a_stream_that_its_sender_ended(cut):
    compress = zlib.compressobj(wbits=-15)
    ended = compress.compress(b"the last") + compress.flush()
    for padding, reason in ((b"", None), (b"\0", None), (b"\0\0", TRAILING), (b"GET /", TRAILING)):
        data = by_hand(0xC1, ended + padding) + by_hand(0xC1, ended)
        found, fault = read(data, size=cut, deflate=Deflate())
        assert simple(found) == [(TEXT, b"the last", reason), (TEXT, b"", CONTEXT)]
        assert fault is None
        found, _ = read(data, size=cut, deflate=Deflate(False, False))
        assert simple(found)[1] == (TEXT, b"the last", None)


def test_no_deflate():
    found, _ = read(by_hand(0xC1, b"\xff\xff") + by_hand(0xC1, b"\xff"), deflate=Deflate())
    assert [message.reason for message in found] == [MALFORMED, CONTEXT]


@pytest.mark.parametrize(
    ("values", "agreed"),
    [
        ([], None),
        ([b""], None),
        ([b"permessage-deflate"], Deflate(True, True)),
        ([b"Permessage-Deflate; client_max_window_bits=12 ; server_no_context_takeover"], Deflate(True, False)),
        ([b"permessage-deflate;client_no_context_takeover;server_max_window_bits=8"], Deflate(False, True)),
    ],
)
def test_what_was_agreed_on(values, agreed):
    assert negotiated(values) == agreed


@pytest.mark.parametrize(
    "values",
    [[b"x-webkit-deflate-frame"], [b"permessage-deflate, permessage-deflate"], [b"permessage-deflate", b"other"],
     [b"permessage-deflate; unknown"], [b"permessage-deflate; server_max_window_bits; server_max_window_bits=9"],
     [b"permessage-deflate" + b";" * 9999]],
)  # fmt: skip
def test_extensions_that_are_not_known(values):
    with pytest.raises(PeerError):
        negotiated(values)


PAYLOADS = st.sampled_from([b"x" * 300, BOMB[:40000]]) | st.binary(max_size=200)
MESSAGES = st.lists(st.tuples(st.booleans(), PAYLOADS), max_size=6)


@given(messages=MESSAGES, takeover=st.booleans(), window=st.sampled_from([50, 5000, 1 << 20]), cut=st.integers(1, 400),
       spoil=st.none() | st.tuples(st.integers(0, 10**6), st.integers(0, 255)))  # fmt: skip
@settings(deadline=None, max_examples=examples(200))
def test_fuzzed_streams_have_the_same_outcome_however_they_are_rechunked(messages, takeover, window, cut, spoil):
    extension = PerMessageDeflate(False, not takeover, 15, 15)
    data = bytearray()
    for compressed, payload in messages:
        data += frame(BINARY, payload, extensions=[extension] if compressed else None)
    if spoil is not None and data:
        data[spoil[0] % len(data)] = spoil[1]
    options = {"bounds": Bounds(window), "deflate": Deflate(takeover, takeover)}
    whole = read(bytes(data), **options)
    assert read(bytes(data), size=cut, **options) == whole
    assert all(len(message.data) <= max(window, 125) for message in whole[0])
    if spoil is None:
        assert whole[1] is None
        for message, (_, payload) in zip(whole[0], messages, strict=True):
            assert payload.startswith(message.data)
            assert message.reason is not None or message.data == payload


@given(st.binary(max_size=200), st.booleans(), st.integers(1, 9))
@settings(deadline=None, max_examples=examples(200))
def test_arbitrary_bytes_are_read_alike_however_they_are_cut(data, from_client, cut):
    options = {"from_client": from_client, "deflate": Deflate()}
    found, reason = read(data, **options)
    assert read(data, size=cut, **options) == (found, reason)
    assert all(isinstance(message, Message) and 0 <= message.start < message.end <= len(data) for message in found)
