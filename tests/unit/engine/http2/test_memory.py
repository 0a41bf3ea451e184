"""Windows, back-pressure and the memory that waiting bytes of diverted streams may take."""

from __future__ import annotations

import pytest

from sidestep.engine.memory_budget import Account, Budget
from sidestep.engine.mirror.ledger import Ledger, TapLimits
from sidestep.protocols.http2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    PADDED,
    PREFACE,
    RST_STREAM,
    SETTINGS_ACK,
    TICK,
    WINDOW_UPDATE,
    Setting,
    frame,
    rst_stream,
    settings,
    window_update,
)
from tests.unit.engine.http2.talk import Talk, mixed, ticks

PIECE = b"x" * 16_384


MIB = 1 << 20


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
        talk.peers.shell.drained(talk.peers.leg(talk.handlers[0]))  # type: ignore[arg-type]
        talk.peers.run()
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
        talk.peers.stands = True
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
        talk.peers.lose(talk.client)  # type: ignore[arg-type]
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
    talk.peers.stands = True
    while relay.reads(relay.client):
        talk.send(frame(DATA, 0, 1, PIECE))
    assert ledger.budget.held < MIB // 2
    assert not talk.client.of(RST_STREAM)
    assert relay.deadline == talk.peers.shell.now + TICK
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
    talk.peers.stands = True
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
    leg = talk.peers.leg(handler)  # type: ignore[arg-type]
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
