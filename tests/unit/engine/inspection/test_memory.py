"""What exchanges keep for verdicts comes from one budget: it is bounded, given back, and what exceeds it is told."""

from __future__ import annotations

import gzip
import os

import pytest

from sidestep.engine.inspection.body import INFLATER
from sidestep.engine.memory_budget import Budget
from sidestep.protocols.http2 import DATA, END_STREAM, ErrorCode, frame, rst_stream
from tests.unit.engine.http2_peers import request
from tests.unit.engine.inspection.inspecting import (
    DETECT,
    ENFORCE,
    FAIL,
    NO_LEAK,
    NO_SECRET,
    SECRET,
    Inspected,
    answer,
    get,
)
from tests.unit.engine.inspection.test_http2 import Inspected as InspectedTalk

POST = get(b"/p", b"Content-Length: 50000").replace(b"GET", b"POST", 1)


def shell(*rules, total, **policy):
    made = Inspected(*rules, **policy)
    budget = Budget(total)
    made.gate.memory.budget = budget
    return made, budget


def test_a_body_that_is_held_is_charged_and_given_back():
    made, budget = shell(NO_SECRET, total=1 << 20, **FAIL)
    made.client(POST)
    for _ in range(40):
        made.client(b"xy" * 500)
    assert 40_000 <= budget.held <= 60_000
    made.client(b"x" * 10_000)
    assert made.to_app.endswith(b"x" * 10_000)
    assert budget.held < 5_000
    made.app(answer())
    made.client(get())
    assert budget.held == 0


@pytest.mark.parametrize(("policy", "closed"), [(ENFORCE, False), (FAIL, True)])
def test_a_body_for_which_there_is_no_room_is_released_or_refused(policy, closed):
    made, budget = shell(NO_SECRET, total=40_000, **policy)
    made.client(POST)
    for _ in range(49):
        made.client(b"x" * 1000)
    assert ("request-memory", closed) in made.seen.reasons
    assert (b" 403 " in made.to_client) is closed
    assert made.to_app == (b"" if closed else POST + b"x" * 49_000)
    assert budget.held == 0


@pytest.mark.parametrize(("policy", "closed"), [(ENFORCE, False), (FAIL, True)])
def test_a_response_for_which_there_is_no_room_is_released_or_refused(policy, closed):
    made, budget = shell(NO_LEAK, total=40_000, **policy)
    made.client(get())
    said = answer(b"x" * 50_000)
    for at in range(0, len(said), 1000):
        if not made.relay.client.ending:
            made.app(said[at : at + 1000])
    assert ("response-memory", closed) in made.seen.reasons
    assert (b" 403 " in made.to_client) is closed
    assert (made.to_client == said) is not closed
    assert budget.held == 0


def test_tiny_pieces_of_a_held_body_are_joined():
    made, _ = shell(NO_SECRET, total=1 << 20, **FAIL)
    made.client(POST)
    for _ in range(3000):
        made.client(b"xy")
    held = made.relay._from_client._current.held
    assert len(held) < 100
    assert b"".join(held) == b"xy" * 3000


def test_decoders_are_charged_until_their_body_has_ended():
    data = gzip.compress(gzip.compress(os.urandom(1000)))
    talk = InspectedTalk(NO_SECRET, **DETECT)
    memory = talk.relay._connection.inspection.gate.memory
    streams = range(1, 17, 2)
    for stream in streams:
        talk.send(talk.head(stream, request(b"/p", (b"content-encoding", b"gzip, gzip")), ends=False))
    heads = memory.held
    assert heads < len(streams) * 500
    for stream in streams:
        talk.send(frame(DATA, 0, stream, data[:-20]))
    assert 2 * len(streams) * INFLATER <= memory.held - heads <= 3 * len(streams) * INFLATER
    for stream in streams:
        talk.send(frame(DATA, END_STREAM, stream, data[-20:]))
    assert memory.held == 0
    assert not talk.seen.reasons


@pytest.mark.parametrize("rule", [NO_SECRET, NO_LEAK])
def test_heads_of_streams_that_are_read_are_charged_until_these_are_over(rule):
    talk = InspectedTalk(rule, **DETECT)
    memory = talk.relay.gate.memory
    large = (b"x-large", b"v" * 5000)
    streams = range(1, 17, 2)
    for stream in streams:
        talk.send(talk.head(stream, request(b"/p", large), ends=rule is NO_LEAK))
    assert len(streams) * 5000 < memory.held < len(streams) * 7000
    for stream in streams:
        if rule is NO_SECRET:
            talk.send(frame(DATA, END_STREAM, stream, b"x"))
        elif stream % 4 == 1:
            talk.from_app(talk.respond(stream, ends=False) + frame(DATA, END_STREAM, stream, b"x"))
        else:
            talk.from_app(rst_stream(stream, ErrorCode.CANCEL))
    assert memory.held == 0
    assert not talk.seen.reasons


def test_streams_for_whose_heads_there_is_no_room_are_not_read():
    talk = InspectedTalk(NO_LEAK, **DETECT)
    memory = talk.relay.gate.memory
    memory.budget = budget = Budget(40_000)
    large = (b"x-large", b"v" * 5000)
    streams = range(1, 41, 2)
    for stream in streams:
        talk.send(talk.head(stream, request(b"/p", large)))
    inspection = talk.relay._connection.inspection
    read = len(inspection.responses) + len(inspection.asked)
    assert 0 < read <= 5
    assert budget.held <= 20_000 + 6000
    assert talk.seen.reasons == [("response-memory", False)] * (len(streams) - read)
    for stream in streams:
        talk.from_app(talk.respond(stream, ends=False) + frame(DATA, END_STREAM, stream, SECRET))
    assert len(talk.client.of(DATA)) == len(streams)
    assert len(talk.seen.records) == len(streams) - len(talk.seen.reasons)
    assert budget.held == 0
