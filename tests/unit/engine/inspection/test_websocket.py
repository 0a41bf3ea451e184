"""Messages of WebSockets: what is seen through, what is refused, and what passes, in each mode and however it is cut.

The ways around rules are those of `test_evasions`: a row is what a client sends after the 101, and what becomes of it.
"""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidestep.engine.inspection.limits import InspectionLimits
from sidestep.model.inspection import Action, Pattern, Rule
from sidestep.policy.accepted_policy import Outcome
from sidestep.policy.route import Route
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
    Inspected,
    get,
    inspection,
)
from tests.unit.engine.shell import everything

BLOCKED = "blocked"
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
ASK = get(b"/chat", b"Upgrade: websocket", b"Connection: upgrade")
DEFLATE = b"permessage-deflate"
KEY = b"\x11\x22\x33\x44"


def agree(extensions: bytes = b"") -> bytes:
    line = b"Sec-WebSocket-Extensions: " + extensions + b"\r\n" if extensions else b""
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n" + line + b"\r\n"


def frame(data: bytes, kind: int = TEXT, *, final: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    size = len(data)
    if size < 126:
        length = bytes([size])
    elif size < 1 << 16:
        length = b"\x7e" + size.to_bytes(2)
    else:
        length = b"\x7f" + size.to_bytes(8)
    first = bytes([(0x80 if final else 0) | reserved | kind])
    if not masked:
        return first + length + data
    hidden = bytes(byte ^ KEY[at % 4] for at, byte in enumerate(data))
    return first + bytes([length[0] | 0x80]) + length[1:] + KEY + hidden


class Deflater:
    """Messages of one end, compressed; with reference to earlier ones unless `alone`."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(wbits=-15)

    def __call__(self, data: bytes, *, alone: bool = False) -> bytes:
        if alone:
            self._deflate = zlib.compressobj(wbits=-15)
        return (self._deflate.compress(data) + self._deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def packed(*texts: bytes, masked: bool = True) -> bytes:
    """Compressed messages of one context."""
    deflate = Deflater()
    return b"".join(frame(deflate(text), reserved=0x40, masked=masked) for text in texts)


def unsettled(data: bytes) -> bytes:
    """A compressed message of two frames."""
    whole = Deflater()(data)
    first = frame(whole[:5], reserved=0x40, final=False)
    return first + frame(whole[5:], CONTINUATION)


HALF = len(SECRET) // 2

CLIENT = {
    "a text": (b"", frame(SECRET), BLOCKED),
    "bytes": (b"", frame(SECRET, BINARY), BLOCKED),
    "behind another message": (b"", frame(b"x" + SECRET), BLOCKED),
    "two frames": (b"", frame(SECRET[:HALF], final=False) + frame(SECRET[HALF:], CONTINUATION), BLOCKED),
    "a frame of a byte each": (
        b"",
        frame(SECRET[:1], final=False)
        + b"".join(frame(SECRET[at : at + 1], CONTINUATION, final=False) for at in range(1, len(SECRET)))
        + frame(b"", CONTINUATION),
        BLOCKED,
    ),
    "a ping between its frames": (
        b"",
        frame(SECRET[:HALF], final=False) + frame(b"?", PING) + frame(SECRET[HALF:], CONTINUATION),
        BLOCKED,
    ),
    "in a ping": (b"", frame(SECRET, PING), BLOCKED),
    "in a pong between frames": (b"", frame(b"a", final=False) + frame(SECRET, PONG), BLOCKED),
    "the reason of a close": (b"", frame(b"\x03\xe8" + SECRET, CLOSE), BLOCKED),
    "compressed": (DEFLATE, packed(SECRET), BLOCKED),
    "compressed with reference to another": (DEFLATE, packed(SECRET[:HALF], SECRET), BLOCKED),
    "not compressed where it may be": (DEFLATE, frame(SECRET), BLOCKED),
    "compressed in two frames": (DEFLATE, unsettled(SECRET), BLOCKED),
    "compressed without takeover": (
        DEFLATE + b"; client_no_context_takeover",
        frame(Deflater()(b"x"), reserved=0x40) + frame(Deflater()(SECRET), reserved=0x40),
        BLOCKED,
    ),
    "compressed though not agreed": (b"", packed(SECRET), "request-malformed"),
    "not masked": (b"", frame(SECRET, masked=False), "request-malformed"),
    "another reserved bit": (b"", frame(SECRET, reserved=0x20), "request-malformed"),
    "another opcode": (b"", frame(SECRET, 3), "request-malformed"),
    "another control opcode": (b"", frame(SECRET, 11), "request-malformed"),
    "a continuation of nothing": (b"", frame(SECRET, CONTINUATION), "request-malformed"),
    "a text within a text": (b"", frame(b"a", final=False) + frame(SECRET), "request-malformed"),
    "a ping that is too long": (b"", frame(SECRET * 10, PING), "request-malformed"),
    "a ping in two": (b"", frame(SECRET, PING, final=False), "request-malformed"),
    "a length that is too long": (b"", b"\x81\xfe\x00\x0e" + frame(SECRET)[2:], "request-malformed"),
    "behind a close": (b"", frame(b"", CLOSE) + frame(SECRET), "request-malformed"),
    "something else": (b"", b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n" + SECRET, "request-malformed"),
    "broken deflate": (DEFLATE, frame(b"\xff" + SECRET, reserved=0x40), "request-malformed"),
    "a bomb": (DEFLATE, packed(bytes(60_000)), "request-ratio"),
    "more than is decompressed": (DEFLATE, packed(bytes(range(256)) * 400 + SECRET), "request-ratio"),
    "more than is held": (b"", frame(b"x" * 70_000 + SECRET), "request-window"),
    "an extension that is not known": (b"x-webkit-deflate-frame", frame(SECRET), "h1-websocket-extension"),
    "two extensions": (DEFLATE + b", x", packed(SECRET), "h1-websocket-extension"),
    "a message without an end": (b"", frame(SECRET, final=False), BLOCKED),
    "a frame without an end": (b"", frame(SECRET)[:-1], "request-incomplete"),
}  # fmt: skip


def feed(take, data: bytes, cut: int) -> None:
    for at in range(0, len(data), cut):
        take(data[at : at + cut])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1 << 20, pytest.param(1, marks=pytest.mark.unmeasured)])
@each_row("row", CLIENT)
def test_what_a_client_says(mode, cut, row):
    extensions, said, expected = CLIENT[row]
    shell = Inspected(NO_SECRET, **MODES[mode])
    shell.client(ASK)
    shell.app(agree(extensions))
    clean = frame(b"hello")
    is_extension = expected == "h1-websocket-extension"
    shell.client(clean)
    before = len(ASK) + len(clean)
    assert len(shell.to_app) == (len(ASK) if is_extension and mode == "Enforce+Fail" else before)
    cut = 1000 if cut == 1 and len(said) > 1000 else cut
    for at in range(0, len(said), cut):
        if shell.relay.done:
            break
        shell.client(said[at : at + cut])
    if not shell.relay.done:
        shell.eof(shell.relay.client)
    assert_told(shell.seen, inspection(NO_SECRET, **MODES[mode]))
    told = {record.action for record in shell.seen.records}
    reasons = {reason for reason, _ in shell.seen.reasons}
    if expected == BLOCKED:
        assert not reasons - {"request-incomplete"}
        assert told == {Outcome.BLOCK if mode != "Detect" else Outcome.ALERT}
    else:
        assert expected in reasons or row == "more than is decompressed"
        assert reasons
    if mode == "Detect":
        assert shell.to_app == ASK + clean + said
    elif expected == BLOCKED:
        assert shell.relay.done
        assert SECRET not in shell.to_app
        assert not shell.to_app.endswith(said)
    elif mode == "Enforce+Fail":
        assert shell.relay.done
        assert all(closed for _, closed in shell.seen.reasons)
        assert len(shell.to_app) <= before + said.find(b"\x88\x80" + KEY) + 6
    else:
        assert shell.to_app == ASK + clean + said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", [1 << 20, 1])
@pytest.mark.parametrize("behind", [True, False], ids=["with the 101", "later"])
def test_what_the_app_says(mode, cut, behind):
    shell = Inspected(NO_LEAK, **MODES[mode])
    shell.client(ASK)
    clean, secret = frame(b"hello", masked=False), frame(SECRET, masked=False)
    if behind:
        feed(shell.app, agree() + clean + secret[:5], cut)
    else:
        shell.app(agree())
        feed(shell.app, clean + secret[:5], cut)
    assert shell.to_client == agree() + clean + (secret[:5] if mode == "Detect" else b"")
    feed(shell.app, secret[5:], cut if mode == "Detect" else 1 << 20)
    assert_told(shell.seen, inspection(NO_LEAK, **MODES[mode]))
    told = {record.action for record in shell.seen.records}
    if mode == "Detect":
        assert shell.to_client == agree() + clean + secret
        assert told == {Outcome.ALERT}
    else:
        assert shell.relay.done
        assert shell.to_client == agree() + clean
        assert told == {Outcome.BLOCK}
    shell_bytes = frame(b"ignored by the rule")
    if not shell.relay.done:
        shell.client(shell_bytes)
        assert shell.to_app.endswith(shell_bytes)


def test_messages_are_passed_on_when_they_end():
    shell = Inspected(NO_SECRET, NO_LEAK, **ENFORCE)
    shell.client(ASK)
    shell.app(agree())
    first, second = frame(b"a" * 300, final=False), frame(b"b", CONTINUATION)
    shell.client(first + frame(b"?", PING) + second[:-1])
    assert shell.to_app == ASK
    shell.client(second[-1:] + frame(b"c")[:3])
    assert shell.to_app == ASK + first + frame(b"?", PING) + second
    shell.client(frame(b"c")[3:])
    assert shell.to_app.endswith(frame(b"c"))
    assert not shell.seen.records
    assert shell.relay.joined is None
    shell.eof(shell.relay.client)
    shell.eof(shell.relay.app)
    assert shell.relay.done
    assert not shell.seen.reasons


def test_a_rule_that_has_applied_looks_no_further_and_the_wire_is_joined():
    shell = Inspected(Rule("see", Action.ALERT, patterns=(Pattern(regex="dawn"),)), **DETECT)
    shell.client(ASK)
    shell.app(agree())
    assert shell.relay.joined is None
    shell.client(frame(b"at dawn"))
    assert shell.seen.told == [("see", 2, False)]
    assert shell.relay.joined is not None


def test_a_websocket_that_no_rule_is_about_is_a_wire():
    shell = Inspected(NO_ADMIN, **FAIL)
    shell.client(ASK)
    shell.app(agree())
    assert shell.relay.joined is not None
    shell.client(b"anything")
    assert shell.to_app == ASK + b"anything"


@pytest.mark.parametrize("mode", MODES)
def test_what_is_said_before_the_app_agrees(mode):
    shell = Inspected(NO_SECRET, **MODES[mode])
    shell.client(ASK + frame(SECRET))
    assert shell.to_app == ASK + (frame(SECRET) if mode == "Detect" else b"")
    shell.app(agree())
    assert len(shell.seen.records) == 1
    assert shell.relay.done is (mode != "Detect")
    assert shell.to_app == ASK + (frame(SECRET) if mode == "Detect" else b"")


def test_a_long_message_is_counted_once_and_the_next_one_is_judged():
    shell = Inspected(NO_SECRET, limits=InspectionLimits(window=100), **ENFORCE)
    shell.client(ASK)
    shell.app(agree())
    said = frame(b"x" * 1000)
    feed(shell.client, said, 50)
    assert shell.seen.reasons == [("request-window", False)]
    assert shell.to_app == ASK + said
    shell.client(frame(SECRET))
    assert shell.relay.done
    assert shell.to_app == ASK + said


MESSAGE = st.tuples(st.binary(max_size=200), st.sampled_from([TEXT, BINARY]), st.integers(1, 4), st.booleans())


@given(st.lists(MESSAGE, max_size=6), st.integers(1, 80), st.booleans())
def test_a_secret_never_reaches_the_app_and_everything_before_it_does(messages, cut, ends_with_secret):
    shell = Inspected(NO_SECRET, **FAIL)
    shell.client(ASK)
    shell.app(agree())
    said = b""
    for data, kind, pieces, pings in messages:
        step = max(1, -(-len(data) // pieces))
        parts = [data[at : at + step] for at in range(0, len(data), step)] or [b""]
        for number, part in enumerate(parts):
            said += frame(part, kind if number == 0 else CONTINUATION, final=number == len(parts) - 1)
            if pings:
                said += frame(b"p", PING)
    whole = said + (frame(SECRET) if ends_with_secret else b"")
    for at in range(0, len(whole), cut):
        if shell.relay.done:
            break
        shell.client(whole[at : at + cut])
    assert shell.relay.done is ends_with_secret
    if ends_with_secret:
        assert (ASK + said).startswith(shell.to_app)
        assert len(shell.seen.records) == 1
    else:
        assert shell.to_app == ASK + said
        assert not shell.seen.reasons


@pytest.mark.parametrize("mode", MODES)
def test_a_handler_that_agrees_is_judged_like_the_app(mode):
    shell = Inspected(NO_SECRET, NO_LEAK, route=Route((everything(),)), **MODES[mode])
    shell.client(ASK + frame(b"early"))
    assert shell.to_handler == ASK + (frame(b"early") if mode == "Detect" else b"")
    clean = frame(b"hello", masked=False)
    shell.handler(agree() + clean)
    assert shell.to_client == agree() + clean
    assert shell.to_handler == ASK + frame(b"early")
    secret = frame(SECRET, masked=False)
    shell.handler(secret)
    if mode == "Detect":
        shell.client(frame(SECRET))
        assert [rule for rule, _, _ in shell.seen.told] == ["no-leak", "no-secret"]
        assert shell.to_client.endswith(secret)
    else:
        assert shell.relay.done
        assert shell.to_client == agree() + clean
        assert [rule for rule, _, _ in shell.seen.told] == ["no-leak"]
