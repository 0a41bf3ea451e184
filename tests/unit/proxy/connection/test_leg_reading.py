"""Reads beyond the first one: how many, and what ends them."""

import contextlib
import errno

import pytest

from sidestep.engine.leg import HIGH_WATER
from sidestep.engine.memory_budget import BACKLOG, Budget
from sidestep.engine.passthrough import WireRelay
from sidestep.engine.relay import Relay
from sidestep.proxy.connection import leg_reading
from sidestep.proxy.connection.backlog import BacklogShare
from sidestep.proxy.connection.leg_reading import DRAIN_READS, GATHER, drain, gather, read_last, read_more


class Stream:
    """Gives what it was made with, then would block."""

    full = 4

    def __init__(self, *said):
        self.said = list(said)
        self.grown = 0

    def read(self):
        data = self.said.pop(0) if self.said else None
        if isinstance(data, OSError):
            raise data
        return data

    def grow(self):
        self.grown += 1


class Whole:
    """Notes what was read."""

    def __init__(self):
        self.told = []

    def read(self, leg, data):
        self.told.append(data)


class Passing(Relay):
    """A relay that passes everything of its client to the app, and counts what it was given instead."""

    def __init__(self, *, passes):
        super().__init__()
        self._passes = passes
        self.received = []

    def passes(self, leg, data):
        return self.app if self._passes else None

    def receive(self, leg, data, now):
        self.received.append((data, now))

    def reads(self, leg):
        return self.app.queued < HIGH_WATER and not self.client.ending


def more(relay, stream, *, budget=None, whole=None):
    relay.client.active = 7.0
    return read_more(
        relay, relay.client, stream, whole=whole, backlog=BacklogShare(budget or Budget(BACKLOG)), protocol="http/1.1"
    )


@pytest.mark.parametrize("passes", [True, False])
def test_a_stream_is_read_until_it_would_block_and_bytes_that_pass_are_queued(passes):
    relay, whole = Passing(passes=passes), Whole()
    said = [b"aaaa", b"bbbb", b"cccc"]
    assert not more(relay, Stream(*said), whole=whole)
    assert whole.told == said
    assert b"".join(relay.app.out) == (b"aaaabbbbcccc" if passes else b"")
    assert relay.received == ([] if passes else [(data, 7.0) for data in said])


def test_a_read_that_is_not_full_ends_it_unless_the_relay_drains():
    relay = Passing(passes=True)
    stream = Stream(b"aaaa", b"b", b"cccc")
    assert not more(relay, stream)
    assert stream.said == [b"cccc"]
    relay.drain = True
    stream = Stream(b"a", b"b", b"c")
    assert not more(relay, stream)
    assert not stream.said


def test_reads_are_bounded_and_a_stream_that_is_always_full_is_read_in_larger_pieces():
    stream = Stream(*[b"aaaa"] * 3 * DRAIN_READS)
    assert not more(Passing(passes=True), stream)
    assert len(stream.said) >= 2 * DRAIN_READS
    assert stream.grown <= 1


@pytest.mark.parametrize("why", ["held back", "done", "joined"])
def test_a_leg_that_is_not_to_be_read_any_more_is_told(why):
    relay = Passing(passes=True)
    if why == "held back":
        relay.app.queued = HIGH_WATER
    elif why == "done":
        relay.done = True
    else:
        relay.joined = (relay.client, relay.app)
    stream = Stream(b"aaaa")
    assert more(relay, stream)
    assert stream.said == [b"aaaa"]


def test_a_leg_is_not_read_while_too_much_waits_in_all_connections():
    relay, budget = Passing(passes=True), Budget(1024)
    relay.app.queued = 10
    assert not more(relay, Stream(b"aaaa"), budget=budget)
    budget.held = 1024
    assert more(relay, Stream(b"aaaa"), budget=budget)


def test_an_end_is_left_to_the_next_event():
    assert not more(Passing(passes=True), Stream(b"aaaa", b""))


def test_an_error_of_a_read_is_the_caller_s():
    with pytest.raises(OSError, match="reset"):
        more(Passing(passes=True), Stream(OSError(errno.ECONNRESET, "reset")))


RESET = OSError(errno.ECONNRESET, "reset")


@pytest.mark.parametrize(("end", "is_all", "broken"), [(None, True, None), (b"", True, None), (RESET, False, RESET)])
def test_small_reads_are_joined_up_to_what_ends_them(end, is_all, broken):
    stream = Stream(b"b", b"c", end, b"d")
    assert gather(stream, b"a") == (b"abc", is_all, broken)
    assert stream.said == [b"d"]


def test_joined_reads_are_bounded_in_bytes_and_in_number():
    half = bytes(GATHER // 2)
    stream = Stream(half, half, half)
    assert gather(stream, b"a") == (b"a" + half + half, False, None)
    assert stream.said == [half]
    stream = Stream(half)
    assert gather(stream, half + half) == (half + half, False, None)
    assert stream.said == [half]
    stream = Stream(*[b"a"] * 3 * DRAIN_READS)
    assert gather(stream, b"a") == (b"a" * DRAIN_READS, False, None)


def test_a_relay_that_drains_gets_joined_reads_and_then_the_error_behind_them():
    relay, whole = Passing(passes=False), Whole()
    relay.drain = True
    with pytest.raises(OSError, match="reset"):
        more(relay, Stream(b"a", b"b", RESET), whole=whole)
    assert relay.received == [(b"ab", 7.0)]
    assert whole.told == [b"ab"]


@pytest.mark.parametrize("end", [None, RESET])
def test_a_relay_that_drains_gets_the_first_read_with_those_behind_it(end):
    relay, whole = Passing(passes=False), Whole()
    relay.drain = True
    relay.client.active = 7.0
    stream = Stream(b"b", b"c", end, b"d")
    backlog = BacklogShare(Budget(BACKLOG))
    with contextlib.nullcontext() if end is None else pytest.raises(OSError, match="reset"):
        assert not drain(relay, relay.client, stream, b"a", whole=whole, backlog=backlog, protocol="h2")
    assert relay.received == [(b"abc", 7.0)]
    assert whole.told == [b"abc"]
    assert stream.said == [b"d"]


def test_a_relay_that_drains_is_asked_between_joined_reads_whether_it_reads_on(monkeypatch):
    monkeypatch.setattr(leg_reading, "monotonic", lambda: 0.0)
    relay = Passing(passes=True)
    relay.drain = True
    half = bytes(GATHER // 2)
    stream = Stream(*[half] * 6)
    relay.app.queued = HIGH_WATER - 2 * GATHER
    assert more(relay, stream)
    assert stream.said == [half, half]


@pytest.mark.parametrize("end", [None, b"", RESET])
def test_what_arrived_before_a_break_is_read_to_its_end(end):
    relay, whole = Passing(passes=False), Whole()
    read_last(relay, relay.client, Stream(b"aaaa", b"b", end), whole=whole, now=9.0)
    assert relay.received == [(b"aaaa", 9.0), (b"b", 9.0)]
    assert whole.told == [b"aaaa", b"b"]


def test_nothing_is_read_for_a_relay_that_is_done():
    relay = WireRelay()
    relay.done = True
    stream = Stream(b"aaaa")
    read_last(relay, relay.client, stream, whole=None, now=0.0)
    assert stream.said == [b"aaaa"]
