"""Once streams are diverted every bound concerns one stream, or delays its sender; floods end with GOAWAY."""

from __future__ import annotations

import struct
from dataclasses import replace

import hpack
import pytest

from sidestep.engine.memory_budget import Account, Budget
from sidestep.engine.mirror.ledger import Ledger, TapLimits
from sidestep.engine.relay import Ending
from sidestep.protocols.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_LIMITS,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    SETTINGS_ACK,
    WINDOW_UPDATE,
    ErrorCode,
    Setting,
    frame,
    goaway,
    header_frames,
    rst_stream,
    settings,
    window_update,
)
from tests.unit.engine.http2.test_link_pool import ticks
from tests.unit.engine.http2.test_relay import Talk
from tests.unit.engine.http2_peers import MATCH, request

PIECE = b"x" * 16_384
MIB = 1 << 20


def mixed(**limits: int) -> Talk:
    """Stream 1 is diverted and open, stream 3 is the app's and open."""
    talk = Talk(limits=replace(DEFAULT_LIMITS, **limits), app={Setting.INITIAL_WINDOW_SIZE: 1 << 24})
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    talk.send(talk.head(3, request(b"/"), ends=False))
    talk.app.data.clear()
    talk.client.data.clear()
    return talk


def goes_on(talk: Talk) -> bool:
    """Whether both other streams of the connection live."""
    talk.send(frame(DATA, 0, 3, b"relayed"))
    talk.from_handler(window_update(1, 1000))
    talk.send(frame(DATA, 0, 1, b"diverted"))
    relayed = (0, b"relayed") in talk.app.of(DATA, 3)
    return relayed and bool(talk.handlers[0].of(DATA, 1, skip=24)) and not talk.client.of(GOAWAY)


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [70_000, 300_000, 900_000])
@pytest.mark.parametrize("match", [False, True])
def test_a_large_head_goes_to_the_app_and_nobody_notices(size: int, match: bool) -> None:
    talk = mixed()
    large = request(b"/large", (b"x-large", b"l" * size), *([MATCH] if match else []))
    block = talk.encoder.encode(large.head, huffman=False)
    frames = frame(HEADERS, END_STREAM, 5, block[:16_384])
    rest = [block[at : at + 16_384] for at in range(16_384, len(block), 16_384)]
    frames += b"".join(frame(CONTINUATION, 0, 5, piece) for piece in rest[:-1])
    talk.send(frames + frame(CONTINUATION, END_HEADERS, 5, rest[-1]))
    sent = b"".join(payload for kind, _, stream, payload in talk.app.frames() if stream == 5)
    decoder = hpack.Decoder(max_header_list_size=4 * MIB)
    assert [(bytes(n), bytes(v)) for n, v in decoder.decode(sent, raw=True)] == large.head
    assert goes_on(talk)
    assert talk.relay._connection.budget.held < 20_000


def test_a_list_beyond_all_bounds_is_answered_alone_and_keeps_the_compression_context() -> None:
    talk = mixed()
    cookie = (b"cookie", b"c" * 3000)
    talk.send(talk.head(5, request(b"/", cookie)))
    bomb = talk.encoder.encode([*request(b"/bomb").head, *[cookie] * 400])
    assert len(bomb) < 1000
    talk.send(header_frames(7, bomb, end_stream=False))
    assert [fields[0] for fields in talk.heads(talk.client, 7)] == [(b":status", b"431")]
    assert talk.client.of(RST_STREAM, 7) == [(0, bytes(4))]
    assert not talk.app.of(HEADERS, 7)
    talk.send(frame(DATA, END_STREAM, 7, b"late") + window_update(7, 5))
    assert not talk.app.of(DATA, 7)
    talk.send(talk.head(9, request(b"/", cookie)))
    sent = talk.app.of(HEADERS, 9)[0][1]
    assert hpack.Decoder().decode(sent, raw=True)[-1] == cookie
    assert goes_on(talk)


@pytest.mark.parametrize("stream", [1, 3])
def test_trailers_beyond_all_bounds_end_their_stream_alone(stream: int) -> None:
    talk = mixed()
    cookie = (b"cookie", b"c" * 3000)
    talk.send(talk.head(5, request(b"/", cookie), ends=False))
    talk.send(header_frames(stream, talk.encoder.encode([cookie] * 400), end_stream=True))
    assert talk.client.of(RST_STREAM, stream) == [(0, b"\0\0\0\x0b")]
    assert bool(talk.app.of(RST_STREAM, stream)) is (stream == 3)
    assert not talk.client.of(GOAWAY)
    talk.send(frame(DATA, 0, 5, b"on"))
    assert talk.app.of(DATA, 5)


def test_a_flood_of_continuations_is_an_attack() -> None:
    talk = mixed()
    talk.send(frame(HEADERS, 0, 5, b"\x82") + frame(CONTINUATION, 0, 5) * 300)
    assert talk.client.of(GOAWAY)[0][1][4:8] == b"\0\0\0\x0b"


def test_large_heads_in_the_making_count() -> None:
    ledger = Ledger(budget=Budget(100_000))
    talk = Talk()
    talk.relay._connection.diversion.account = Account(ledger.budget)
    talk.divert(1)
    talk.send(frame(HEADERS, 0, 3, b"\x00\x01x\x7f" + b"l" * 10_000) + frame(CONTINUATION, 0, 3, PIECE) * 13)
    assert talk.client.of(GOAWAY)
    assert ledger.budget.held <= 0 or talk.relay.done


def test_a_large_answer_passes_and_one_beyond_all_bounds_is_a_502() -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.open_handler()
    talk.from_handler(talk.respond(1, (b"x-large", b"l" * 100_000)))
    sent = b"".join(payload for kind, _, stream, payload in talk.client.frames() if stream == 1)
    assert hpack.Decoder(max_header_list_size=MIB).decode(sent, raw=True)[1] == (b"x-large", b"l" * 100_000)
    bomb = [(b":status", b"200"), *[(b"x-c", b"c" * 3000)] * 400]
    talk.from_handler(header_frames(3, talk.responses.encode(bomb), end_stream=True))
    assert talk.heads(talk.client, 3)[0][0] == (b":status", b"502")
    assert b"larger than" in talk.client.of(DATA, 3)[0][1]
    talk.divert(5)
    talk.from_handler(talk.respond(5))
    assert talk.heads(talk.client, 5)[0][0] == (b":status", b"200")


# --- streams and control frames ---------------------------------------------------------------------------------------


def test_too_many_streams_of_the_app_are_refused_alone() -> None:
    talk = mixed(open_streams=2)
    talk.send(talk.head(5, request(b"/"), ends=False) + talk.head(7, request(b"/"), ends=False))
    assert talk.client.of(RST_STREAM, 7) == [(0, b"\0\0\0\x07")]
    assert talk.app.of(HEADERS, 5)
    talk.send(frame(DATA, END_STREAM, 7, b"late"))
    assert not talk.app.of(DATA, 7)
    assert goes_on(talk)
    talk.from_app(goaway(3, 0))
    assert talk.client.of(GOAWAY)[0][1][:4] == b"\0\0\0\x07"


def test_settings_that_nobody_acknowledges_are_not_read_on() -> None:
    talk = mixed()
    talk.shell.stands = True
    for _ in range(66):
        talk.send(settings({}))
    assert not talk.relay.reads(talk.relay.client)
    talk.from_app(SETTINGS_ACK * 10)
    assert talk.relay.reads(talk.relay.client)
    for _ in range(66):
        talk.from_app(settings({}))
    assert not talk.relay.reads(talk.relay.app)
    talk.send(SETTINGS_ACK * 10)
    assert talk.relay.reads(talk.relay.app)
    assert not talk.relay.done


def test_large_settings_pass() -> None:
    talk = mixed()
    large = frame(SETTINGS, 0, 0, struct.pack(">HI", 0xAAAA, 1) * 2000)
    talk.send(large)
    talk.from_app(large)
    assert talk.app.of(SETTINGS)
    assert talk.client.of(SETTINGS)


def test_a_table_larger_than_we_follow_is_announced_as_large_as_we_do() -> None:
    talk = mixed()
    talk.from_app(settings({Setting.HEADER_TABLE_SIZE: 1 << 30, Setting.INITIAL_WINDOW_SIZE: 5}))
    entries = dict(struct.iter_unpack(">HI", talk.client.of(SETTINGS)[0][1]))
    assert entries == {Setting.HEADER_TABLE_SIZE: DEFAULT_LIMITS.table, Setting.INITIAL_WINDOW_SIZE: 5}


def test_a_connection_whose_table_we_cannot_follow_is_a_wire() -> None:
    talk = Talk(app={Setting.HEADER_TABLE_SIZE: 1 << 30})
    data = talk.head(1, request(b"/", MATCH))
    talk.send(data)
    assert talk.relay.anomaly == "h2-table"
    assert talk.app.data == data


def test_a_priority_of_a_wrong_size_is_not_the_connections_end() -> None:
    talk = mixed()
    talk.send(frame(PRIORITY, 0, 3, b"four") + frame(PRIORITY, 0, 1, b"four"))
    assert talk.app.of(PRIORITY, 3)
    assert goes_on(talk)


def test_watches_that_were_answered_may_be_cancelled_for_ever() -> None:
    talk = Talk(limits=replace(DEFAULT_LIMITS, resets=50))
    for number in range(200):
        stream = 1 + 2 * number
        talk.divert(stream)
        if not number:
            talk.open_handler()
        talk.from_handler(talk.respond(stream, ends=False))
        talk.send(rst_stream(stream, ErrorCode.CANCEL))
    assert not talk.relay.done
    assert len(talk.handlers[0].of(RST_STREAM, skip=24)) == 200


def test_polls_cancelled_before_an_answer_are_judged_by_their_rate() -> None:
    limits = replace(DEFAULT_LIMITS, resets=50, reset_rate=20)
    talk = Talk(limits=limits)
    stream = 1
    for _ in range(20):
        for _ in range(20):
            talk.send(talk.head(stream, request(b"/", MATCH)) + rst_stream(stream, 8))
            stream += 2
        ticks(talk, 1)
    assert not talk.relay.done
    for _ in range(60):
        talk.send(talk.head(stream, request(b"/", MATCH)) + rst_stream(stream, 8))
        stream += 2
    assert talk.relay.anomaly == "h2-rapid-reset"


def test_idle_frames_are_judged_by_their_rate() -> None:
    talk = mixed(idle_frames=100, idle_rate=30)
    for _ in range(20):
        talk.send(frame(PRIORITY, 0, 1, b"12345") * 30)
        ticks(talk, 1)
    assert not talk.relay.done
    talk.send(frame(PRIORITY, 0, 1, b"12345") * 101)
    assert talk.relay.anomaly == "h2-flood"


# --- PING, an app that sees nothing -----------------------------------------------------------------------------------


def test_pings_are_answered_here_while_no_stream_is_the_apps() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    for number in range(5):
        talk.send(frame(PING, 0, 0, b"ping %03d" % number))
    assert talk.client.of(PING) == [(ACK, b"ping %03d" % number) for number in range(5)]
    talk.from_handler(talk.respond(1))
    talk.send(frame(PING, 0, 0, b"the last"))  # what a client measures with after the answer
    assert (ACK, b"the last") in talk.client.of(PING)
    assert not talk.app.data


def test_pings_reach_an_app_that_sees_calls_unless_they_follow_bytes_of_ours() -> None:
    talk = Talk()
    talk.send(talk.head(1, request(b"/")))
    talk.divert(3)
    talk.open_handler()
    talk.app.data.clear()
    talk.send(frame(PING, 0, 0, b"12345678"))
    assert talk.app.of(PING) == [(0, b"12345678")]
    talk.from_handler(talk.respond(1, ends=False) + frame(DATA, 0, 1, b"much data"))
    talk.send(frame(PING, 0, 0, b"measures"))
    assert (ACK, b"measures") in talk.client.of(PING)
    talk.send(frame(PING, 0, 0, b"again..."))
    assert talk.app.of(PING) == [(0, b"12345678"), (0, b"again...")]
    talk.from_app(frame(PING, 0, 0, b"from app"))
    assert (0, b"from app") in talk.client.of(PING)
    talk.send(frame(PING, ACK, 0, b"from app"))
    assert (ACK, b"from app") in talk.app.of(PING)


GOODBYES = {
    "no word": b"",
    "GOAWAY in two steps": goaway(2**31 - 1, 0) + frame(PING, 0, 0, bytes(8)),
    "GOAWAY with a text": goaway(0, 0, b"max_age"),
    "GOAWAY of a gRPC server": goaway(2**31 - 1, ErrorCode.INTERNAL_ERROR, b"connection idle"),
    "too many PINGs": goaway(0, ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings"),
}


def leave(talk: Talk, how: str, data: bytes = b"") -> None:
    """The app says `data` and ends its connection in one of three ways."""
    app = talk.relay.app
    if data:
        talk.from_app(data)
    if how == "lost":
        talk.shell.lose(talk.app)  # type: ignore[arg-type]
    elif how == "closed":
        talk.relay.receive_eof(app, 0.0)
    talk.shell.run()


@pytest.mark.parametrize("data", GOODBYES.values(), ids=GOODBYES)
@pytest.mark.parametrize("ends", [False, True], ids=["in mid request", "between requests"])
@pytest.mark.parametrize("how", ["closed", "lost", "left open"])
def test_an_app_that_leaves_because_handlers_answer_is_replaced_and_the_client_is_not_told(
    data: bytes, ends: bool, how: str
) -> None:
    if how == "left open" and not data:
        return
    talk = Talk()
    talk.divert(1, ends=ends)
    talk.open_handler()
    if ends:
        talk.from_handler(talk.respond(1))
    leave(talk, how, data)
    assert talk.relay.client.ending is Ending.NONE
    assert not talk.client.of(GOAWAY)
    talk.send(frame(PING, 0, 0, b"anybody?") + settings({}))
    assert (ACK, b"anybody?") in talk.client.of(PING)
    assert talk.client.of(SETTINGS) == [(ACK, b"")]
    if not ends:
        talk.send(frame(DATA, END_STREAM, 1, b"up"))
        talk.from_handler(talk.respond(1))
    assert (talk.relay.idle, talk.relay.left) == (True, True)
    talk.divert(3)
    talk.from_handler(talk.respond(3))
    assert talk.client.of(HEADERS, 3)
    talk.send(talk.head(5, request(b"/"), ends=False) + frame(DATA, END_STREAM, 5, b"for the app"))
    second = talk.seconds[0]
    second.out += settings({})
    talk.shell.run()
    assert second.of(DATA, 1, skip=24)[0][1] == b"for the app"
    second.out += talk.respond(1)
    talk.shell.run()
    assert talk.client.of(HEADERS, 5)
    assert not talk.client.of(RST_STREAM)
    assert talk.relay.idle


def test_settings_that_the_app_owed_are_acknowledged_when_it_leaves() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    before = len(talk.client.of(SETTINGS))
    talk.send(settings({Setting.INITIAL_WINDOW_SIZE: 1}))
    assert len(talk.client.of(SETTINGS)) == before
    leave(talk, "closed")
    assert talk.client.of(SETTINGS)[before:] == [(ACK, b"")]


def test_an_app_that_is_gone_when_it_is_asked_again_ends_the_connection_in_an_orderly_way() -> None:
    talk = Talk()
    talk.divert(1)
    talk.divert(3)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    leave(talk, "closed")
    talk.second_is_there = False
    talk.send(talk.head(5, request(b"/")))
    assert talk.client.of(RST_STREAM, 5) == [(0, bytes((0, 0, 0, ErrorCode.REFUSED_STREAM)))]
    assert talk.client.of(GOAWAY) == [(0, b"\0\0\0\x05\0\0\0\0")]
    assert not talk.relay.done
    talk.from_handler(talk.respond(3))
    assert talk.client.of(HEADERS, 3)
    assert talk.relay.done


@pytest.mark.parametrize("how", ["closed", "lost"])
def test_an_app_that_leaves_after_it_was_asked_last_ends_the_connection_as_without_us(how: str) -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    talk.send(talk.head(3, request(b"/")))
    talk.from_app(talk.respond(3))
    leave(talk, how)
    assert talk.client.of(GOAWAY) == [(0, b"\0\0\0\x03\0\0\0\0")]
    assert talk.relay.done


def test_an_app_that_blames_the_client_is_heard() -> None:
    talk = Talk()
    talk.divert(1)
    talk.open_handler()
    talk.from_handler(talk.respond(1))
    talk.from_app(goaway(0, ErrorCode.PROTOCOL_ERROR))
    assert talk.client.of(GOAWAY)[0][1][4:8] == bytes((0, 0, 0, ErrorCode.PROTOCOL_ERROR))


# --- windows, memory --------------------------------------------------------------------------------------------------


def test_a_handler_at_a_breakpoint_gets_all_of_an_upload() -> None:
    talk = mixed()
    for _ in range(512):
        talk.send(frame(DATA, 0, 1, PIECE))
    assert talk.relay.reads(talk.relay.client)
    ticks(talk, 20)
    assert not talk.client.of(RST_STREAM)
    talk.send(frame(DATA, END_STREAM, 1))
    talk.from_handler(window_update(1, 1 << 24))
    talk.from_handler(window_update(0, 1 << 24))
    for _ in range(32):
        talk.relay.drained(talk.shell.leg(talk.handlers[0]), 0.0)  # type: ignore[arg-type]
        talk.shell.run()
    sent = talk.handlers[0].of(DATA, 1, skip=24)
    assert sum(len(piece) for _, piece in sent) == 512 * len(PIECE)
    assert sent[-1][0] == END_STREAM


@pytest.mark.parametrize("window", [1000, 65_535, 200_000])
@pytest.mark.parametrize("padded", [False, True])
def test_a_client_that_exceeds_its_window_gets_a_flow_control_error(window: int, padded: bool) -> None:
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: window})
    talk.divert(1, ends=False)
    talk.divert(3, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    left = window
    while left:
        size = min(left, 16_384)
        talk.send(frame(DATA, 0, 1, b"x" * size))
        left -= size
    assert not talk.client.of(RST_STREAM)
    talk.send(frame(DATA, PADDED, 1, b"\0") if padded else frame(DATA, 0, 1, b"x"))
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x03")]
    talk.send(frame(DATA, 0, 3, b"x"))
    assert not talk.client.of(RST_STREAM, 3)
    assert not talk.relay.done


def test_windows_of_the_app_hold_as_the_client_learns_of_them() -> None:
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: 1000})
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    talk.send(frame(DATA, 0, 1, b"x" * 1000))
    talk.from_app(settings({Setting.INITIAL_WINDOW_SIZE: 3000}))
    talk.send(frame(DATA, 0, 1, b"x" * 2000))  # maybe before its ACK
    talk.send(SETTINGS_ACK)
    talk.from_app(settings({Setting.INITIAL_WINDOW_SIZE: 500}))
    talk.divert(3, ends=False)
    talk.send(frame(DATA, 0, 3, b"x" * 3000) + SETTINGS_ACK)
    assert not talk.client.of(RST_STREAM)
    talk.divert(5, ends=False)
    talk.send(frame(DATA, 0, 5, b"x" * 501))
    assert talk.client.of(RST_STREAM, 5) == [(0, b"\0\0\0\x03")]
    talk.from_handler(window_update(1, 1 << 20))
    assert talk.relay._connection.state.streams.exchanges[1].room == 500


def test_memory_of_all_connections_is_bounded_and_no_one_takes_all_of_it() -> None:
    ledger = Ledger(budget=Budget(8 * MIB))
    talks = []
    for _ in range(4):
        talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: 1 << 24}, ledger=ledger)
        talk.shell.stands = True
        for stream in range(1, 17, 2):
            talk.divert(stream, ends=False)
        talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
        while not talk.client.of(RST_STREAM):
            for stream in range(1, 17, 2):
                talk.send(frame(DATA, 0, stream, PIECE))
            if not talk.relay.reads(talk.relay.client):
                ticks(talk, 3)
        talks.append(talk)
        assert ledger.budget.held <= ledger.budget.total
    held = [talk.relay._connection.diversion.account.held for talk in talks]
    assert held[0] > MIB
    assert min(held) > 100_000
    late = Talk(ledger=ledger)
    late.divert(1, ends=False)
    late.open_handler()
    late.send(frame(DATA, END_STREAM, 1, b"x" * 10_000))
    assert late.handlers[0].of(DATA, 1, skip=24)
    assert not late.client.of(RST_STREAM)
    for talk in [*talks, late]:
        talk.shell.lose(talk.client)  # type: ignore[arg-type]
    assert ledger.budget.held == 0


def test_a_connection_that_is_forgotten_gives_its_memory_back() -> None:
    budget = Budget()
    account = Account(budget)
    account.change(1000)
    assert budget.held == 1000
    del account
    assert budget.held == 0


def test_where_memory_is_tight_the_client_is_held_up_while_the_handler_moves() -> None:
    ledger = Ledger(budget=Budget(MIB))
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: 1 << 24}, ledger=ledger)
    relay = talk.relay
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    talk.shell.stands = True
    while relay.reads(relay.client):
        talk.send(frame(DATA, 0, 1, PIECE))
    assert ledger.budget.held < MIB // 2
    assert not talk.client.of(RST_STREAM)
    assert relay.deadline == 0.0
    ticks(talk, 1)
    for _ in range(3):
        talk.from_handler(window_update(1, 10))
        ticks(talk, 1)
        assert not relay.reads(relay.client)
    ticks(talk, 2)
    assert relay.reads(relay.client)  # nothing moved: others may need what is behind
    assert not talk.client.of(RST_STREAM)
    for _ in range(64):
        talk.send(frame(DATA, 0, 1, PIECE))
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x0b")]
    assert relay.reads(relay.client)


def test_a_client_that_is_held_up_and_resets_is_read_again() -> None:
    talk = Talk(app={Setting.INITIAL_WINDOW_SIZE: 1 << 24}, ledger=Ledger(budget=Budget(MIB)))
    talk.divert(1, ends=False)
    talk.open_handler({Setting.INITIAL_WINDOW_SIZE: 0})
    talk.shell.stands = True
    talk.send(frame(DATA, 0, 1, PIECE) * 25)
    assert not talk.relay.reads(talk.relay.client)
    talk.relay.receive(talk.relay.client, rst_stream(1, 8), 0.0)
    assert talk.relay.reads(talk.relay.client)


def test_responses_that_the_client_does_not_take_count_as_well() -> None:
    ledger = Ledger(budget=Budget(MIB))
    talk = Talk(client={Setting.INITIAL_WINDOW_SIZE: 0}, ledger=ledger)
    for stream in range(1, 17, 2):
        talk.divert(stream)
    talk.open_handler()
    [handler] = talk.handlers
    leg = talk.shell.leg(handler)  # type: ignore[arg-type]
    for stream in range(1, 17, 2):
        if talk.relay.reads(leg):
            talk.from_handler(talk.respond(stream, ends=False) + frame(DATA, 0, stream, PIECE) * 12)
    assert not talk.relay.reads(leg)
    assert ledger.budget.held < MIB
    talk.send(b"".join(window_update(stream, 1 << 20) for stream in range(1, 17, 2)) + window_update(0, 1 << 22))
    assert talk.relay.reads(leg)


def test_a_request_that_finds_no_memory_is_refused_alone() -> None:
    ledger = Ledger(budget=Budget(10_000))
    talk = Talk(ledger=ledger)
    for stream in (1, 3, 5, 7):
        talk.divert(stream)
    assert talk.client.of(RST_STREAM, 7) == [(0, b"\0\0\0\x07")]
    assert not talk.client.of(RST_STREAM, 1)
    talk.send(rst_stream(1, 8))
    talk.divert(9)
    assert not talk.client.of(RST_STREAM, 9)


class Held:
    def __init__(self) -> None:
        self.queued = 0


def test_copies_of_all_wiretaps_share_their_part() -> None:
    ledger = Ledger(TapLimits(together=16 * MIB))
    total = 0
    holders = []
    for number in range(64):
        uid = f"t{number}"
        while ledger.admits(uid, 1000):
            holder = Held()
            ledger.enter(uid, holder)
            while ledger.has_room(uid, holder, 64 * 1024):
                holder.queued += 64 * 1024
            holders.append(holder)
            if not holder.queued:
                break
    total = sum(holder.queued for holder in holders)
    assert 8 * MIB < total <= 16 * MIB
    for holder in holders:
        holder.queued = 0
    assert ledger.has_room("t63", Held(), 64 * 1024)


def test_window_updates_of_a_diverted_stream_are_its_own_matter() -> None:
    talk = mixed()
    talk.send(window_update(1, 2**31 - 1))
    assert talk.client.of(RST_STREAM, 1) == [(0, b"\0\0\0\x03")]
    assert not talk.app.of(WINDOW_UPDATE, 1)
    assert not talk.client.of(GOAWAY)
    assert PREFACE not in talk.app.data
