"""When copies are made: late, between the events of clients, and with a fence around every connection's."""

from __future__ import annotations

import contextlib
import os
import time

import pytest

from sidestep.engine.relay import CopyLeg, Ending, Relay
from sidestep.policy.route import Rule
from sidestep.proxy.io.loop import READ, Loop
from sidestep.proxy.mirror.scheduler import EAGER, GRAIN, LATE, Copying, Copyist

BUSY = 0.0005
"""Seconds that a deferred call costs."""
DEADLINE = 30.0
ROUNDING = 1e-6
"""Seconds that sums of times are off at most."""


class Quiet(Relay):
    """A relay that is told of its tap legs."""

    def __init__(self):
        super().__init__()
        self.told = []

    def lost(self, leg, now):
        self.told.append(("lost", leg.ending))

    def farewell(self):
        self.deferred.put(0, self.told.append, "last call")


class Around:
    """A conductor, as far as copies know it: after some calls it looks whether there are more."""

    def __init__(self, loop, copyist):
        self.relay = Quiet()
        self.done = []
        self.copying = Copying(loop, self, copyist)

    def defer(self, what, size=0):
        self.relay.deferred.put(size, self._do, what)
        self.copying.glance()

    def _do(self, what):
        if isinstance(what, Exception):
            raise what
        self.done.append(what)
        end = time.monotonic() + BUSY
        while time.monotonic() < end:
            pass

    def copied(self):
        if self.relay.deferred.calls:
            self.copying.glance()

    def tap_moved(self):
        self.relay.told.append("moved")

    def ask_for_copy(self, leg, done):
        self.relay.told.append("asked")
        return lambda: self.relay.told.append("cancelled")

    def make_leg(self):
        """A deferred call that asks for a tap leg."""
        self.relay.opening.append(CopyLeg(Rule("uid", "shop/tap", lambda *_: True), self.relay, None))


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
def copyist(loop):
    return Copyist(loop)


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
    """Let the loop turn until the copyist has nothing to do."""
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


def test_copies_are_made_late(loop, copyist):
    around = Around(loop, copyist)
    began = loop.now
    around.defer(1)
    around.defer(2)
    assert not copyist.is_idle
    run(loop, lambda: copyist.is_idle)
    assert around.done == [1, 2]
    assert loop.now - began >= LATE - ROUNDING


def test_many_bytes_do_not_wait(loop, copyist):
    around = Around(loop, copyist)
    around.defer(1)
    around.defer(2, size=EAGER)
    seen = []
    loop.later(LATE / 2, lambda: seen.extend(around.done))
    run(loop, lambda: bool(seen))
    assert seen == [1, 2]


def test_clients_get_their_turn_between_copies(loop, copyist):
    several = [Around(loop, copyist) for _ in range(5)]
    for number in range(100):
        for around in several:
            around.defer(number)
    turns = []
    with readable(loop, lambda: turns.append(sum(len(around.done) for around in several))):
        run(loop, lambda: copyist.is_idle)
    assert all(around.done == list(range(100)) for around in several)
    under_way = [turn for turn in [*turns, 500] if turn > 0]
    assert max(after - before for before, after in zip([0, *under_way], under_way, strict=False)) <= 20
    assert len(set(under_way)) >= 500 // 20


def test_a_bug_ends_the_copies_of_one_connection_only(loop, copyist, crashes):
    broken, other = Around(loop, copyist), Around(loop, copyist)
    for number in range(3):
        broken.defer(number)
    broken.defer(RuntimeError("a bug"))
    broken.defer("never")
    other.defer("done")
    run(loop, lambda: copyist.is_idle)
    assert [str(error) for error in crashes] == ["a bug"]
    assert (broken.done, other.done) == ([0, 1, 2], ["done"])
    broken.relay.deferred.put(0, broken.done.append, "never")  # nothing is copied of it any more
    assert not broken.relay.deferred.calls


def test_after_a_bug_no_leg_is_left(loop, copyist, crashes):
    broken = Around(loop, copyist)
    broken.copying.open(CopyLeg(Rule("uid", "shop/tap", lambda *_: True), broken.relay, None))
    broken.relay.deferred.put(0, broken.make_leg)
    broken.defer(RuntimeError("a bug"))
    run(loop, lambda: bool(crashes))
    assert broken.relay.told == ["asked", ("lost", Ending.ABORT), ("lost", Ending.NONE), "cancelled", "moved"]
    assert not broken.relay.opening
    assert copyist.is_idle


def test_those_that_left_are_copied_to_the_end_and_then_taken_leave_of(loop, copyist):
    around = Around(loop, copyist)
    around.relay.deferred.put(0, around.make_leg)
    for number in range(20):
        around.defer(number)
    around.copying.leave()
    assert not around.relay.told
    run(loop, lambda: "moved" in around.relay.told)
    assert len(around.done) == 20
    assert around.relay.told == ["asked", "last call", "moved"]
    assert [leg for leg in copyist.living if leg._timer is not None] == [*copyist.living]


def test_what_is_noted_later_waits_for_its_own_time(loop, copyist):
    first, second = Around(loop, copyist), Around(loop, copyist)
    times = {}
    first.defer(1)
    loop.later(LATE * 0.9, lambda: (times.update(noted=time.monotonic()), second.defer(2)))
    run(loop, lambda: bool(second.done))
    assert first.done == [1]
    assert time.monotonic() - times["noted"] >= LATE - GRAIN


def test_what_is_begun_counts_before_it_is_done(loop, copyist):
    """Handlers take their time: copies may not be begun by the hundred until the first of them is there."""
    around = Around(loop, copyist)
    for _ in range(256):
        around.copying.open(CopyLeg(Rule("uid", "shop/tap", lambda *_: True), around.relay, None))
    assert around.relay.told.count("asked") < 256
    assert copyist.gate.is_spent
    for leg in [*copyist.living]:
        leg.abandon()
    assert copyist.is_idle
    assert not copyist._opening
