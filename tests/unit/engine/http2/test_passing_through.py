"""What cannot be read passes through byte for byte, as long as nothing is diverted."""

from __future__ import annotations

import pytest

from sidestep.engine.leg import Ending
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    header_frames,
    settings,
)
from tests.unit.engine.http2.talk import Talk
from tests.unit.engine.http2_peers import MATCH, request
from tests.unit.engine.shell import Shell

BAD_BEGINNINGS = {
    "h2-preface": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "h2-hpack": PREFACE + settings({}) + frame(HEADERS, END_HEADERS, 1, b"\x80"),
    "h2-continuation": PREFACE + settings({}) + frame(CONTINUATION, END_HEADERS, 1, b"\x82"),
    "h2-header-size": PREFACE + settings({}) + frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 0, 1) * 300,
    "h2-settings": PREFACE + settings({}) * 70,
    "h2-frame-size": PREFACE + settings({}) + frame(WINDOW_UPDATE, 0, 0, b"12345"),
    "h2-flood": PREFACE + settings({}) + frame(PING, 0, 0, b"8 bytes.") * 10_001,
    "h2-padding": PREFACE + settings({}) + frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05\x82"),
}


@pytest.mark.parametrize(
    ("reason", "chunk"),
    [
        (reason, chunk)
        for reason, data in BAD_BEGINNINGS.items()
        for chunk in (1, 1 << 20)
        if chunk > 1 or len(data) < 5000
    ],
)
def test_what_cannot_be_read_becomes_a_wire_with_every_byte(reason: str, chunk: int) -> None:
    talk = Talk(begin=False)
    data = BAD_BEGINNINGS[reason] + b"and what follows"
    for start in range(0, len(data), chunk):
        talk.send(data[start : start + chunk])
    assert talk.relay.anomaly == reason
    assert talk.relay.wired == (talk.relay.client, talk.relay.app)
    assert talk.app.data == data
    talk.from_app(b"anything back")
    assert talk.client.data == b"anything back"
    assert not talk.relay.done


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "h2-app-not-http2"),
        (settings({}) + frame(CONTINUATION, 0, 1), "h2-continuation"),
        (settings({}) + frame(HEADERS, 0, 1, b"\x88") + frame(DATA, 0, 1), "h2-continuation"),
        (settings({}) + frame(GOAWAY, 0, 0, b"1234"), "h2-goaway"),
        (frame(SETTINGS, 0, 0, b"12345"), "h2-settings"),
    ],
)
def test_an_app_that_cannot_be_read_becomes_a_wire(data: bytes, reason: str) -> None:
    for chunk in (1, len(data)):
        talk = Talk(begin=False)
        talk.send(PREFACE + settings({}))
        for start in range(0, len(data), chunk):
            talk.from_app(data[start : start + chunk])
        assert talk.relay.anomaly == reason
        assert talk.client.data == data
        talk.send(b"more")
        assert talk.app.data == PREFACE + settings({}) + b"more"


def test_a_matching_request_waits_until_the_app_has_proved_to_speak_http2() -> None:
    talk = Talk(begin=False)
    head = talk.head(1, request(b"/", MATCH))
    talk.send(PREFACE + settings({}) + head + frame(PING, 0, 0, b"8 bytes."))
    assert talk.app.data == PREFACE + settings({})
    assert not talk.handlers
    assert not talk.relay.reads(talk.relay.client)
    talk.from_app(settings({}))
    assert len(talk.handlers) == 1
    assert talk.app.data == PREFACE + settings({})
    assert talk.client.of(PING) == [(ACK, b"8 bytes.")]
    assert talk.relay.reads(talk.relay.client)


@pytest.mark.parametrize("ending", ["other bytes", "end", "refused"])
def test_a_waiting_match_goes_to_an_app_that_is_no_http2_server(ending: str) -> None:
    talk = Talk(begin=False)
    if ending == "refused":
        talk.peers.app = None
    data = PREFACE + settings({}) + talk.head(1, request(b"/", MATCH))
    talk.send(data)
    if ending == "refused":
        assert talk.relay.done
        assert talk.peers.aborted
        return
    if ending == "other bytes":
        talk.from_app(b"HTTP/1.1 505 No\r\n\r\n")
    else:
        talk.peers.end(talk.relay.app)
        assert talk.relay.client.ending is Ending.FINISH
    assert talk.app.data == data
    assert talk.relay.anomaly == "h2-app-not-http2"


def test_what_a_client_waits_behind_passes_once_when_the_app_ends():
    talk = Talk(begin=False)
    asked = PREFACE + settings({}) + header_frames(1, talk.encoder.encode(request(b"/", MATCH).head), end_stream=True)
    shell = Shell(talk.relay, app_open=True)
    shell.client(asked)
    shell.app(b"ERR\r\n")
    shell.eof(talk.relay.app)
    assert (shell.to_client, shell.to_app) == (b"ERR\r\n", asked)
    assert talk.relay.anomaly == "h2-app-not-http2"


def test_a_client_that_cannot_be_read_after_the_app_has_ended_is_not_told_its_last_bytes_again():
    shell = Shell(Talk(begin=False).relay, app_open=True)
    shell.client(PREFACE + settings({}))
    shell.app(settings({}) + b"raw")
    shell.eof(shell.relay.app)
    shell.client(frame(CONTINUATION, END_HEADERS, 1, b"\x82"))
    assert shell.relay.anomaly == "h2-continuation"
    assert shell.to_client == settings({}) + b"raw"


def test_an_app_that_cannot_be_read_after_the_client_has_ended_is_not_told_its_last_bytes_again():
    shell = Shell(Talk(begin=False).relay, app_open=True)
    shell.client(PREFACE + settings({}) + b"raw")
    shell.eof(shell.relay.client)
    shell.app(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert shell.relay.anomaly == "h2-app-not-http2"
    assert shell.to_app == PREFACE + settings({}) + b"raw"
    assert shell.to_client == b"HTTP/1.1 400 Bad Request\r\n\r\n"
