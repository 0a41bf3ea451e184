"""SETTINGS of client and app, and the HPACK table size updates that follow from them."""

from __future__ import annotations

import hpack
import pytest

from sidestep.protocols.http2 import (
    DATA,
    HEADERS,
    SETTINGS,
    SETTINGS_ACK,
    Setting,
    frame,
    header_frames,
    settings,
    window_update,
)
from tests.unit.engine.http2.talk import Talk, spent
from tests.unit.engine.http2_peers import request


def test_an_ack_does_not_overtake_data_sent_under_the_old_settings() -> None:
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 1_000_000})
    spent(talk)
    talk.from_app(talk.respond(3, ends=False) + frame(DATA, 0, 3, b"x" * 300))
    talk.send(settings({Setting.INITIAL_WINDOW_SIZE: 0, Setting.HEADER_TABLE_SIZE: 0}))
    talk.from_app(SETTINGS_ACK + header_frames(5, b"\x20\x88", end_stream=True))
    exchange = talk.relay._connection.state.streams.exchanges[7]
    window = exchange.window
    assert not talk.client.of(SETTINGS)
    assert not talk.client.of(HEADERS, 5)
    talk.send(window_update(0, 200))
    kinds = [(kind, stream) for kind, _, stream, _ in talk.client.frames()]
    assert kinds == [(HEADERS, 3), (DATA, 3), (DATA, 3), (SETTINGS, 0), (HEADERS, 5)]
    assert exchange.window == window - 1_000_000
    talk.divert(9)
    talk.from_handler(header_frames(3, b"\x88", end_stream=True))
    assert talk.client.of(HEADERS, 9)[0][1][0] & 0xE0 != 0x20  # the app's own block has carried the update


def test_settings_of_the_client_hold_from_the_apps_ack_on() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.send(settings({Setting.INITIAL_WINDOW_SIZE: 10}))
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"x" * 20))
    assert talk.client.of(DATA, 1) == [(0, b"x" * 20)]
    talk.from_app(SETTINGS_ACK)
    talk.from_handler(frame(DATA, 0, 1, b"y" * 20))
    assert talk.client.of(DATA, 1) == [(0, b"x" * 20)]  # the window is -10 now
    talk.send(window_update(1, 15))
    assert talk.client.of(DATA, 1)[1:] == [(0, b"y" * 5)]


@pytest.mark.parametrize(("first", "second"), [(0, None), (100, None), (100, 4096), (4096, None), (8192, None)])
def test_injected_blocks_begin_with_the_size_update_that_is_owed(first: int, second: int | None) -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.open_handler()
    talk.send(talk.head(5, request(b"/")))
    for size in (first, second):
        if size is not None:
            talk.send(settings({Setting.HEADER_TABLE_SIZE: size}))
            talk.from_app(SETTINGS_ACK)
    talk.client.data.clear()
    talk.from_handler(talk.respond(1))
    [(_, payload)] = talk.client.of(HEADERS, 1)
    lowered = first < 4096
    assert (payload[0] & 0xE0 == 0x20) is lowered
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = first
    decoder.decode(payload)
    # after a block of the app's own nothing is owed any more
    talk.from_app(header_frames(5, b"\x20\x88" if lowered else b"\x88", end_stream=True))
    talk.from_handler(talk.respond(3))
    [(_, payload)] = talk.client.of(HEADERS, 3)
    assert payload[0] & 0xE0 != 0x20


def test_size_updates_of_a_diverted_block_are_owed_to_the_app() -> None:
    talk = Talk()
    talk.from_app(settings({Setting.HEADER_TABLE_SIZE: 100}))
    talk.send(SETTINGS_ACK)
    talk.encoder.header_table_size = 100
    talk.divert(1)
    assert talk.app.of(HEADERS) == []
    talk.send(talk.head(3, request(b"/")))
    talk.send(talk.head(5, request(b"/")))
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 100
    first, second = [payload for _, payload in talk.app.of(HEADERS)]
    assert first[0] & 0xE0 == 0x20
    assert second[0] & 0xE0 != 0x20
    assert [tuple(field) for field in decoder.decode(first, raw=True)] == request(b"/").head
    assert [tuple(field) for field in decoder.decode(second, raw=True)] == request(b"/").head
