"""Calls to the daemon: each ends once, whatever the daemon does; a silent daemon costs one wait."""

import contextlib

import pytest

from sidestep.proxy.control import messages
from sidestep.proxy.control.daemon_breaker import PATIENCE, TRIAL, DaemonBreaker
from sidestep.proxy.control.pending_calls import PendingCalls
from sidestep.proxy.io.loop import Loop, Timer


class Clock:
    """A loop without descriptors, whose time is made by the test."""

    def __init__(self):
        self.now = 0.0
        self.timers = []

    def later(self, delay, call):
        timer = Timer(self.now + delay, call)
        self.timers.append(timer)
        return timer

    def advance(self, seconds):
        until = self.now + seconds
        while due := sorted(timer for timer in self.timers if timer.call is not None and timer.when <= until):
            self.now = max(self.now, due[0].when)
            call, due[0].call = due[0].call, None
            call()
        self.now = until


class Link:
    """Takes every call, unless it is told not to."""

    def __init__(self, loop):
        self.breaker = DaemonBreaker(loop)
        self.is_backlogged = False
        self.sends = True
        self.sent = []

    def send(self, message):
        if self.sends:
            self.sent.append(message.seq)
        return self.sends


class Scene:
    """Calls whose callers are names."""

    def __init__(self, patience=15.0):
        self.loop = Clock()
        self.link = Link(self.loop)
        self.unanswered = []
        self.calls = PendingCalls(self.loop, self.link, patience=patience, unanswered=self._unanswered)

    def _unanswered(self, number):
        caller = self.calls.finish(number)
        if caller is not None:
            self.unanswered.append((self.loop.now, caller))

    def call(self, number, caller):
        return self.calls.call(number, messages.NoApp(number, 80, 2), caller)

    def acknowledge(self, number):
        self.link.breaker.received()
        self.link.breaker.acknowledged(number)


def test_a_call_that_is_answered_ends_once():
    scene = Scene()
    assert scene.call(1, "one")
    scene.acknowledge(1)
    assert len(scene.calls) == 1
    assert scene.calls.finish(1) == "one"
    assert scene.calls.finish(1) is None
    scene.loop.advance(60)
    assert not scene.unanswered
    assert not scene.calls.numbers()


def test_a_call_that_is_cancelled_has_no_answer():
    scene = Scene()
    scene.call(1, "one")
    scene.acknowledge(1)
    scene.calls.cancel(1)
    assert scene.calls.finish(1) is None
    scene.loop.advance(60)
    assert not scene.unanswered


def test_a_call_that_is_acknowledged_and_not_answered_ends_at_its_deadline():
    scene = Scene(patience=15.0)
    scene.call(1, "one")
    scene.acknowledge(1)
    scene.loop.advance(14.9)
    assert not scene.unanswered
    scene.loop.advance(0.2)
    assert scene.unanswered == [(15.0, "one")]


@pytest.mark.parametrize("why", ["closed", "behind"])
def test_a_call_that_cannot_be_made_ends_soon_but_not_at_once(why):
    scene = Scene()
    if why == "closed":
        scene.link.sends = False
    else:
        scene.link.is_backlogged = True
    assert not scene.call(1, "one")
    assert not scene.unanswered
    scene.loop.advance(0.0)
    assert scene.unanswered == [(0.0, "one")]
    assert not scene.link.sent


def test_a_silent_daemon_ends_all_calls_and_gets_no_more_until_it_says_something():
    scene = Scene()
    scene.call(1, "one")
    scene.loop.advance(0.5)
    scene.call(2, "two")
    scene.loop.advance(0.5)
    assert scene.unanswered == [(PATIENCE, "one"), (PATIENCE, "two")]
    assert scene.link.breaker.is_silent
    assert not scene.call(3, "three")
    scene.loop.advance(0.0)
    assert scene.unanswered[-1] == (PATIENCE, "three")
    scene.link.breaker.received()
    assert scene.call(4, "four")
    scene.loop.advance(TRIAL)
    assert scene.unanswered[-1] == (PATIENCE + TRIAL, "four")
    assert scene.link.breaker.is_silent
    scene.link.breaker.received()
    scene.call(5, "five")
    scene.acknowledge(5)
    scene.call(6, "six")
    scene.loop.advance(PATIENCE * 0.9)
    assert len(scene.calls) == 2
    assert scene.link.sent == [1, 2, 4, 5, 6]


def test_an_acknowledgement_of_something_else_is_none():
    scene = Scene()
    scene.call(1, "one")
    scene.link.breaker.received()
    scene.link.breaker.acknowledged(7)
    scene.loop.advance(PATIENCE)
    assert scene.unanswered == [(PATIENCE, "one")]


def test_the_oldest_call_without_an_acknowledgement_decides():
    scene = Scene()
    for number in range(1, 6):
        scene.call(number, number)
        scene.loop.advance(0.4)
        scene.acknowledge(number)
    assert not scene.unanswered
    assert not scene.link.breaker.is_silent


def test_a_real_loop_ends_a_call_at_its_deadline():
    with contextlib.closing(Loop(on_crash=lambda owner, error: pytest.fail(str(error)))) as loop:
        ended = []
        calls = PendingCalls(
            loop, Link(loop), patience=0.01, unanswered=lambda number: ended.append(calls.finish(number)) or loop.stop()
        )
        calls.call(1, messages.NoApp(1, 80, 2), "one")
        loop.run()
    assert ended == ["one"]
