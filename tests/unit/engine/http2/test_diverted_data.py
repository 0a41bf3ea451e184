"""DATA that never reaches the app: whose windows it takes, what is given back at once."""

from __future__ import annotations

import pytest

from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    PADDED,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
    frame,
    settings,
)
from tests.unit.engine.http2.talk import Talk


def diverted(window: int = 1000) -> Talk:
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: window})
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    talk.client.data.clear()
    return talk


def given(talk: Talk, stream: int) -> int:
    return sum(int.from_bytes(payload, "big") for _, payload in talk.client.of(WINDOW_UPDATE, stream))


@pytest.mark.parametrize("chunk", [1, 10, 1 << 20])
def test_the_connection_gets_all_back_and_the_stream_its_padding(chunk: int) -> None:
    talk = diverted()
    data = frame(DATA, PADDED, 1, b"\x04data\0\0\0\0") + frame(DATA, 0, 1, b"more")
    for at in range(0, len(data), chunk):
        talk.send(data[at : at + chunk])
    assert (given(talk, 0), given(talk, 1)) == (13, 5)
    exchange = talk.relay._connection.state.streams.exchanges[1]
    assert b"".join(exchange.body) == b"datamore"
    assert exchange.room == 1000 - 8


def test_padding_of_the_last_frame_is_not_given_back() -> None:
    talk = diverted()
    talk.send(frame(DATA, PADDED | END_STREAM, 1, b"\x02data\0\0"))
    assert (given(talk, 0), given(talk, 1)) == (7, 0)
    assert talk.relay._connection.state.streams.exchanges[1].request_ended


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x05abcd"])
def test_padding_beyond_the_frame_ends_the_connection(payload: bytes) -> None:
    talk = diverted()
    talk.send(frame(DATA, PADDED, 1, payload))
    assert talk.client.of(GOAWAY)
    assert talk.relay.done
    assert talk.relay.anomaly == "h2-padding"


def test_beyond_its_window_the_stream_is_reset_and_the_connection_credited() -> None:
    talk = diverted(window=3)
    talk.send(frame(DATA, 0, 1, b"1234"))
    assert talk.client.of(RST_STREAM, 1) == [(0, int(ErrorCode.FLOW_CONTROL_ERROR).to_bytes(4, "big"))]
    talk.send(frame(DATA, 0, 1, b"late"))
    assert given(talk, 0) == 8
    assert not talk.app.of(DATA)
    assert not talk.relay.done


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(SETTINGS, 0, 1), "h2-settings"),
        (frame(SETTINGS, 0, 0, bytes(6) * 20_000), "h2-settings"),
        (frame(WINDOW_UPDATE, 0, 0, b"12345"), "h2-frame-size"),
        (frame(RST_STREAM, 0, 1, b"123"), "h2-frame-size"),
        (frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), "h2-window"),
    ],
)
def test_frames_that_no_client_may_send_end_a_mixed_connection(bad: bytes, reason: str) -> None:
    talk = diverted()
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"x"))
    talk.send(bad)
    assert talk.relay.done
    assert talk.relay.anomaly == reason
    assert talk.client.of(GOAWAY)


def test_settings_in_small_pieces_are_read_whole() -> None:
    talk = diverted()
    for byte in settings({Setting.INITIAL_WINDOW_SIZE: 7}):
        talk.send(bytes((byte,)))
    assert len(talk.app.of(SETTINGS)) == 1
    assert not talk.relay.done
