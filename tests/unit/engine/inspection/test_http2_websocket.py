"""WebSockets on streams of HTTP/2 (RFC 8441): each message is judged, and goes on when it has ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.policy.accepted_policy import Outcome
from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    RST_STREAM,
    WINDOW_UPDATE,
    Setting,
    header_frames,
    settings,
)
from sidestep.protocols.http2 import frame as http2_frame
from tests.harness.table import each_row
from tests.unit.engine.inspection.eve_lines import assert_told
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    ENFORCE,
    FAIL,
    MODES,
    NO_ADMIN,
    NO_LEAK,
    NO_SECRET,
    SECRET,
    inspection,
)
from tests.unit.engine.inspection.test_http2 import Inspected
from tests.unit.engine.inspection.test_websocket import BLOCKED, CLIENT, DEFLATE, frame, packed

CONNECT = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https"), (b":path", b"/chat"),
           (b":authority", b"app.test")]  # fmt: skip


class WebSocketTalk:
    """One WebSocket: over the app's first connection where nothing can block, else over its second."""

    def __init__(self, *rules, offer=b"", **policy) -> None:
        self.talk = Inspected(*rules, **policy)
        fields = [*CONNECT, (b"sec-websocket-extensions", offer)] if offer else CONNECT
        self.talk.send(header_frames(1, self.talk.encoder.encode(fields), end_stream=False))
        self.is_second = bool(self.talk.seconds)
        if self.is_second:
            self.talk.seconds[0].out += settings({Setting.ENABLE_CONNECT_PROTOCOL: 1})
            self.talk.peers.run()

    def client(self, data: bytes, *, ends: bool = False) -> None:
        if not self.is_over:
            self.talk.send(http2_frame(DATA, END_STREAM if ends else 0, 1, data))

    def app(self, data: bytes) -> None:
        if self.is_second:
            self.talk.second_says(data)
        else:
            self.talk.from_app(data)

    def accept(self, extensions: bytes = b"", status: bytes = b"200") -> None:
        more = [(b"sec-websocket-extensions", extensions)] if extensions else []
        fields = self.talk.responses.encode([(b":status", status), *more])
        self.app(header_frames(1, fields, end_stream=False))

    @property
    def is_over(self) -> bool:
        return bool(self.talk.client.of(RST_STREAM, 1)) or any(
            flags & END_STREAM for flags, _ in self.talk.client.of(DATA, 1)
        )

    @property
    def to_app(self) -> bytes:
        raw = self.talk.seconds[0].of(DATA, 1, skip=24) if self.is_second else self.talk.app.of(DATA, 1)
        return b"".join(payload for _, payload in raw)

    @property
    def to_client(self) -> bytes:
        return b"".join(payload for _, payload in self.talk.client.of(DATA, 1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [9000, pytest.param(1, marks=pytest.mark.unmeasured)])
@each_row("row", CLIENT)
def test_what_a_client_says(mode, cut, row):
    extensions, said, expected = CLIENT[row]
    socket = WebSocketTalk(NO_SECRET, offer=extensions, **MODES[mode])
    socket.accept(extensions)
    clean = frame(b"hello")
    socket.client(clean)
    is_extension = expected == "h1-websocket-extension"
    assert socket.to_app == (b"" if is_extension and mode == "Enforce+Fail" else clean)
    cut = 1000 if cut == 1 and len(said) > 1000 else cut
    for at in range(0, len(said), cut):
        socket.client(said[at : at + cut])
        if socket.is_second and len(said) > 1000:
            more = (cut * 2).to_bytes(4)
            socket.app(http2_frame(WINDOW_UPDATE, 0, 0, more) + http2_frame(WINDOW_UPDATE, 0, 1, more))
    socket.client(b"", ends=True)
    assert_told(socket.talk.seen, inspection(NO_SECRET, **MODES[mode]))
    told = {record.action for record in socket.talk.seen.records}
    reasons = {reason for reason, _ in socket.talk.seen.reasons}
    if expected == BLOCKED:
        assert not reasons - {"request-incomplete"}
        assert told == {Outcome.BLOCK if mode != "Detect" else Outcome.ALERT}
    else:
        assert reasons
        if not is_extension and row != "more than is decompressed":
            assert expected in reasons
    if mode == "Detect":
        assert not socket.is_second
        assert socket.to_app == clean + said
    elif expected == BLOCKED:
        assert socket.is_over
        assert SECRET not in socket.to_app
        assert not socket.to_app.endswith(said)
    elif mode == "Enforce+Fail":
        assert socket.is_over
        assert all(closed for _, closed in socket.talk.seen.reasons)
        assert (clean + said).startswith(socket.to_app)
        assert len(socket.to_app) <= len(clean) + 6  # an empty close frame
    else:
        assert socket.to_app == clean + said


@pytest.mark.parametrize("mode", MODES)
def test_what_the_app_says(mode):
    socket = WebSocketTalk(NO_LEAK, **MODES[mode])
    socket.accept()
    clean, secret = frame(b"hello", masked=False), frame(SECRET, masked=False)
    socket.app(http2_frame(DATA, 0, 1, clean) + http2_frame(DATA, 0, 1, secret))
    if mode == "Detect":
        assert socket.to_client == clean + secret
        assert [record.action for record in socket.talk.seen.records] == [Outcome.ALERT]
    else:
        assert socket.talk.client.of(RST_STREAM, 1)
        assert SECRET not in socket.to_client
        assert [record.action for record in socket.talk.seen.records] == [Outcome.BLOCK]


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_what_is_said_before_the_app_answers_waits(policy):
    socket = WebSocketTalk(NO_SECRET, **policy)
    assert socket.talk.heads(socket.talk.seconds[0], 1, skip=24)
    socket.client(packed(b"hello"))
    assert socket.to_app == b""
    socket.accept(DEFLATE)
    assert socket.to_app == packed(b"hello")
    assert not socket.talk.seen.reasons


@pytest.mark.parametrize("policy", [ENFORCE, FAIL], ids=["Ignore", "Fail"])
def test_a_secret_that_is_said_before_the_app_answers(policy):
    socket = WebSocketTalk(NO_SECRET, **policy)
    socket.client(packed(SECRET))
    socket.accept(DEFLATE)
    assert socket.to_app == b""
    assert socket.is_over
    assert [record.action for record in socket.talk.seen.records] == [Outcome.BLOCK]


def test_an_app_that_declines_is_not_a_websocket():
    socket = WebSocketTalk(NO_SECRET, **FAIL)
    socket.client(b"anything")
    socket.accept(status=b"404")
    assert not socket.is_over
    assert socket.talk.heads(socket.talk.client, 1)[0][0] == (b":status", b"404")


def test_messages_go_on_when_they_end():
    socket = WebSocketTalk(NO_SECRET, NO_LEAK, **ENFORCE)
    socket.accept()
    first = frame(b"a" * 300)
    socket.client(first[:-1])
    assert socket.to_app == b""
    socket.client(first[-1:] + frame(b"b")[:3])
    assert socket.to_app == first
    socket.client(frame(b"b")[3:], ends=True)
    assert socket.to_app == first + frame(b"b")
    assert not socket.talk.seen.reasons


@pytest.mark.parametrize("mode", MODES)
def test_a_websocket_that_no_rule_is_about(mode):
    socket = WebSocketTalk(NO_ADMIN, **MODES[mode])
    assert not socket.is_second
    socket.accept()
    socket.client(b"anything")
    assert socket.to_app == b"anything"


@given(st.lists(st.binary(max_size=100), max_size=5), st.integers(1, 70), st.booleans())
def test_what_precedes_a_secret_reaches_the_app_and_nothing_of_the_secret(messages, cut, ends_with_secret):
    socket = WebSocketTalk(NO_SECRET, **FAIL)
    socket.accept()
    clean = b"".join(map(frame, messages))
    whole = clean + (frame(SECRET) if ends_with_secret else b"")
    for at in range(0, len(whole), cut):
        socket.client(whole[at : at + cut])
    if ends_with_secret:
        assert clean.startswith(socket.to_app)
        assert socket.is_over
        assert len(socket.talk.seen.records) == 1
    else:
        assert socket.to_app == clean
        assert not socket.talk.seen.reasons


@pytest.mark.parametrize("rules", [(NO_SECRET,), (NO_SECRET, NO_LEAK)], ids=["by the offer", "by the answer"])
def test_detect_reads_what_is_compressed(rules):
    socket = WebSocketTalk(*rules, offer=DEFLATE + b"; client_max_window_bits", **DETECT)
    socket.accept(DEFLATE)
    socket.client(packed(b"x", SECRET))
    assert socket.to_app == packed(b"x", SECRET)
    assert [record.would_block for record in socket.talk.seen.records] == [True]
    assert socket.talk.app.of(HEADERS, 1)
