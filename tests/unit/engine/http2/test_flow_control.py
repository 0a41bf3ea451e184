"""The client's connection window, and the debt of diverted responses."""

from __future__ import annotations

import struct

import hpack

from sidestep.protocols.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    WINDOW_UPDATE,
    Setting,
    frame,
    header_frames,
    rst_stream,
    window_update,
)
from tests.unit.engine.http2.talk import Talk, spent
from tests.unit.engine.http2_peers import request


def test_injected_data_makes_debt_that_credits_pay_before_they_reach_the_app() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1, ends=False))
    for _ in range(4):
        talk.from_handler(frame(DATA, 0, 1, b"d" * 15_000))
    assert sum(len(payload) for _, payload in talk.client.of(DATA, 1)) == 60_000
    to_client = talk.relay._connection.to_client
    assert (to_client.window, to_client.debt) == (5_535, 60_000)
    talk.send(window_update(0, 10_000))
    assert talk.app.data == b""  # an increment that becomes 0 is not sent
    assert (to_client.window, to_client.debt) == (15_535, 50_000)
    talk.send(window_update(0, 55_000))
    assert talk.app.of(WINDOW_UPDATE, 0) == [(0, struct.pack(">I", 5_000))]
    assert (to_client.window, to_client.debt) == (70_535, 0)
    talk.send(window_update(0, 7))
    assert talk.app.of(WINDOW_UPDATE, 0)[1] == (0, struct.pack(">I", 7))


def test_data_of_the_app_waits_for_the_clients_window_and_is_cut_to_it() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    body = bytes(range(256)) * 4
    talk.from_app(talk.respond(3, ends=False) + frame(DATA, 0, 3, body) + frame(PING, 0, 0, b"overtake"))
    assert talk.client.of(PING) == [(0, b"overtake")]
    assert b"".join(p for _, p in talk.client.of(DATA, 3)) == body[:100]
    trailers = header_frames(3, talk.responses.encode([(b"x", b"1")]), end_stream=True)
    talk.from_app(trailers + window_update(5, 9) + rst_stream(5, 2))
    assert talk.client.of(HEADERS, 3)[1:] == []
    assert talk.client.of(RST_STREAM, 5)
    assert talk.client.of(WINDOW_UPDATE, 5)
    talk.send(window_update(0, 500))
    assert b"".join(p for _, p in talk.client.of(DATA, 3)) == body[:600]
    assert talk.app.of(WINDOW_UPDATE, 0) == []
    talk.send(window_update(0, 500))
    assert b"".join(p for _, p in talk.client.of(DATA, 3)) == body
    assert len(talk.client.of(HEADERS, 3)) == 2
    assert talk.client.frames()[-1][:3] == (HEADERS, END_HEADERS | END_STREAM, 3)


def test_padded_data_that_waits_keeps_its_length_in_windows() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, ends=False) + frame(DATA, PADDED | END_STREAM, 3, b"\x32" + b"b" * 200 + bytes(50)))
    assert talk.client.of(DATA, 3) == [(0, b"b" * 100)]
    talk.send(window_update(0, 150))
    assert talk.client.of(DATA, 3)[1] == (0, b"b" * 100)
    assert len(talk.client.of(DATA, 3)) == 2
    talk.send(window_update(0, 1))
    assert talk.client.of(DATA, 3)[2] == (PADDED | END_STREAM, b"\x32" + bytes(50))
    to_client = talk.relay._connection.to_client
    assert to_client.window == 0
    assert not to_client.queue


def test_header_blocks_keep_the_apps_order() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, (b"a", b"1"), ends=False) + frame(DATA, 0, 3, b"x" * 500))
    talk.from_app(talk.respond(5, (b"b", b"2"), ends=False))  # another stream's head overtakes DATA
    assert talk.client.of(HEADERS, 5)
    talk.from_app(header_frames(3, talk.responses.encode([(b"c", b"3")]), end_stream=True))
    late = talk.responses.encode([(b"d", b"4")])
    talk.from_app(frame(HEADERS, END_STREAM, 5, late[:2]) + frame(CONTINUATION, END_HEADERS, 5, late[2:]))
    assert len(talk.client.of(HEADERS)) == 2
    talk.send(window_update(0, 1000))
    decoder = hpack.Decoder()
    seen = []
    block = b""
    for kind, flags, stream, payload in talk.client.frames():
        if kind in (HEADERS, CONTINUATION):
            block += payload
            if flags & END_HEADERS:
                seen.append((stream, decoder.decode(block, raw=True)[-1][0]))
                block = b""
    assert seen == [(3, b"a"), (5, b"b"), (3, b"c"), (5, b"d")]


def test_the_app_is_not_read_while_much_of_it_waits() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, ends=False))
    for _ in range(4):
        talk.from_app(frame(DATA, 0, 3, b"x" * 16_384))
    assert talk.relay.reads(talk.relay.app)
    talk.from_app(frame(DATA, 0, 3, b"x" * 16_384))
    assert not talk.relay.reads(talk.relay.app)
    talk.send(window_update(0, 60_000))
    assert talk.relay.reads(talk.relay.app)


def test_injection_waits_for_the_end_of_a_partly_written_frame() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.open_handler()
    app = hpack.Encoder()
    head = header_frames(1, app.encode([(b":status", b"200")]), end_stream=False)
    data = frame(DATA, 0, 1, b"x" * 1000)
    talk.from_app(head + data[:300])
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, END_STREAM, 1, b"diverted"))
    assert talk.client.data.endswith(data[:300])
    talk.from_app(data[300:] + head[:5])
    assert [kind for kind, _, stream, _ in talk.client.frames() if stream] == [HEADERS, DATA, HEADERS, DATA]
    assert talk.client.of(DATA, 3) == [(END_STREAM, b"diverted")]


def test_injection_waits_between_headers_and_continuation() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.open_handler()
    block = hpack.Encoder().encode([(b":status", b"200"), (b"x", b"y")])
    talk.from_app(frame(HEADERS, 0, 1, block[:3]))
    talk.from_handler(talk.respond(1))
    assert not talk.client.of(HEADERS, 3)
    talk.from_app(frame(CONTINUATION, END_HEADERS, 1, block[3:]))
    assert [(kind, stream) for kind, _, stream, _ in talk.client.frames() if stream] == [
        (HEADERS, 1),
        (CONTINUATION, 1),
        (HEADERS, 3),
    ]


def test_a_long_download_of_the_app_does_not_keep_diverted_responses_out() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")) + window_update(0, 1 << 20))
    talk.divert(3)
    talk.open_handler()
    data = frame(DATA, 0, 1, b"x" * 16_000)
    talk.from_app(talk.respond(1, ends=False) + data + data[:100])
    talk.from_handler(talk.respond(1))
    assert not talk.client.of(HEADERS, 3)
    talk.from_app(data[100:] + data + data[:5000])  # ends in mid-frame again
    assert talk.client.of(HEADERS, 3)
