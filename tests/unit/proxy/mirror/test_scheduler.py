"""When copies are made: late, between the events of clients, and with a fence around every connection's."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from sidestep.engine.leg import Ending
from sidestep.engine.mirror.copy_leg import CopyLeg
from sidestep.engine.mirror.events import ConnectionEnd, RequestDiverted
from sidestep.engine.mirror.producer import Mirror
from sidestep.engine.relay import Relay
from sidestep.policy.route import Rule
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.mirror.scheduler import EAGER, GRAIN, LATE, ConnectionMirror, MirrorScheduler

TAP = Rule("uid", "shop/tap", lambda *_: True)
BUSY = 0.0005
"""Seconds that consuming an event costs."""
DEADLINE = 30.0
ROUNDING = 1e-6
"""Seconds that sums of times are off at most."""


class Around:
    """A conductor, as far as the scheduler knows it, whose mirror has one sink: itself. Events are anything."""

    def __init__(self, loop, scheduler):
        self.relay = Relay(Mirror(lambda mirror: (self,)))
        self.source = self.relay.mirror
        self.source.diverted(0, TAP, b"", b"", b"")  # which makes the sink
        self.source.run()
        self.done = []
        self.told = []
        self.mirror = ConnectionMirror(loop, self, scheduler)

    # --- the conductor

    def mirrored(self):
        if self.source.events:
            self.mirror.glance()

    def sink_told(self):
        self.told.append("moved")

    def ask_for_copy(self, leg, done):
        self.told.append("asked")
        return lambda: self.told.append("cancelled")

    def defer(self, what, size=0):
        self.source.tell(what, 0, size)
        self.mirror.glance()

    # --- the sink

    def consume(self, event):
        if isinstance(event, Exception):
            raise event
        if isinstance(event, RequestDiverted):
            return
        if isinstance(event, ConnectionEnd):
            self.told.append("last call")
            return
        if event == "leg":
            self.source.opening.append(self.make_leg())
            return
        self.done.append(event)
        end = time.monotonic() + BUSY
        while time.monotonic() < end:
            pass

    def make_leg(self):
        return CopyLeg(TAP, self, None)

    def lost(self, leg):
        self.told.append(("lost", leg.ending))


@pytest.fixture
def crashes():
    return []


@pytest.fixture
def loop(crashes):
    def crashed(owner, error):
        crashes.append(error)
        owner.abandon()

    loop = Loop(on_crash=crashed)
    yield loop
    loop.close()


@pytest.fixture
def scheduler(loop):
    return MirrorScheduler(loop)


@contextlib.contextmanager
def readable(loop, called):
    """An event that is there every time somebody looks."""
    ours, theirs = os.pipe()
    os.write(theirs, b"x")
    loop.add(ours, lambda mask: called(), READ)
    try:
        yield
    finally:
        loop.remove(ours)
        os.close(ours)
        os.close(theirs)


def run(loop, until):
    """Let the loop turn until the scheduler has nothing to do."""
    guard = loop.later(DEADLINE, loop.stop)

    def look():
        if until():
            guard.cancel()
            loop.stop()
        else:
            loop.later(0.001, look)

    loop.later(0.0, look)
    loop.run()
    assert until()


def test_copies_are_made_late(loop, scheduler):
    around = Around(loop, scheduler)
    began = loop.now
    around.defer(1)
    around.defer(2)
    assert not scheduler.is_idle
    run(loop, lambda: scheduler.is_idle)
    assert around.done == [1, 2]
    assert loop.now - began >= LATE - ROUNDING


def test_many_bytes_do_not_wait(loop, scheduler):
    around = Around(loop, scheduler)
    around.defer(1)
    around.defer(2, size=EAGER)
    seen = []
    loop.later(LATE / 2, lambda: seen.extend(around.done))
    run(loop, lambda: bool(seen))
    assert seen == [1, 2]


def test_clients_get_their_turn_between_copies(loop, scheduler):
    several = [Around(loop, scheduler) for _ in range(5)]
    for number in range(100):
        for around in several:
            around.defer(number)
    turns = []
    with readable(loop, lambda: turns.append(sum(len(around.done) for around in several))):
        run(loop, lambda: scheduler.is_idle)
    assert all(around.done == list(range(100)) for around in several)
    under_way = [turn for turn in [*turns, 500] if turn > 0]
    assert max(after - before for before, after in zip([0, *under_way], under_way, strict=False)) <= 20
    assert len(set(under_way)) >= 500 // 20


def test_a_bug_ends_the_copies_of_one_connection_only(loop, scheduler, crashes):
    broken, other = Around(loop, scheduler), Around(loop, scheduler)
    for number in range(3):
        broken.defer(number)
    broken.defer(RuntimeError("a bug"))
    broken.defer("never")
    other.defer("done")
    run(loop, lambda: scheduler.is_idle)
    assert [str(error) for error in crashes] == ["a bug"]
    assert (broken.done, other.done) == ([0, 1, 2], ["done"])
    broken.source.tell("never", 0)  # nothing is copied of it any more
    assert not broken.source.events


def test_after_a_bug_no_leg_is_left(loop, scheduler, crashes):
    broken = Around(loop, scheduler)
    broken.mirror.open(broken.make_leg())
    broken.source.tell("leg", 0)
    broken.defer(RuntimeError("a bug"))
    run(loop, lambda: bool(crashes))
    assert broken.told == ["asked", ("lost", Ending.ABORT), ("lost", Ending.NONE), "cancelled", "moved"]
    assert not broken.source.opening
    assert scheduler.is_idle


def test_those_that_left_are_copied_to_the_end_and_then_taken_leave_of(loop, scheduler):
    around = Around(loop, scheduler)
    around.source.tell("leg", 0)
    for number in range(20):
        around.defer(number)
    around.mirror.leave()
    assert not around.told
    run(loop, lambda: "moved" in around.told)
    assert len(around.done) == 20
    assert around.told == ["asked", "last call", "moved"]
    assert [leg for leg in scheduler.living if leg._timer is not None] == [*scheduler.living]


def test_what_is_noted_later_waits_for_its_own_time(loop, scheduler):
    first, second = Around(loop, scheduler), Around(loop, scheduler)
    times = {}
    first.defer(1)
    loop.later(LATE * 0.9, lambda: (times.update(noted=loop.now), second.defer(2)))
    run(loop, lambda: bool(second.done))
    assert first.done == [1]
    assert loop.now - times["noted"] >= LATE - GRAIN - ROUNDING


def test_what_is_begun_counts_before_it_is_done(loop, scheduler):
    """Handlers take their time: copies may not be begun by the hundred until the first of them is there."""
    around = Around(loop, scheduler)
    for _ in range(256):
        around.mirror.open(around.make_leg())
    assert around.told.count("asked") < 256
    assert scheduler.gate.is_spent
    for leg in [*scheduler.living]:
        leg.abandon()
    assert scheduler.is_idle
    assert not scheduler._opening
