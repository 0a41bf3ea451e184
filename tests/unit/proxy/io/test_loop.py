"""The loop when its events are slow."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from sidestep.proxy.io.loop import READ, TIMERS, Loop

BUSY = 0.02
"""Seconds that an event costs."""
EVENTS = 50


@pytest.fixture
def loop():
    loop = Loop(on_crash=lambda owner, error: pytest.fail(repr(error)))
    yield loop
    loop.close()


def test_timers_do_not_wait_for_the_end_of_a_dear_batch(loop):
    with contextlib.ExitStack() as stack:
        called, due = [], []

        def slow(sock):
            called.append(sock.recv(1))
            end = time.monotonic() + BUSY
            while time.monotonic() < end:
                pass

        def beat():
            due.append(len(called))
            if len(called) < EVENTS:
                loop.later(BUSY, beat)
            else:
                loop.stop()

        for _ in range(EVENTS):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            theirs.send(b"x")
            loop.add(ours.fileno(), lambda mask, sock=ours: slow(sock), READ)
        loop.later(BUSY, beat)
        loop.run()
        assert len(called) == EVENTS  # one batch
        assert max(after - before for before, after in zip([0, *due], due, strict=False)) <= 5


def test_cancelled_timers_are_forgotten_long_before_they_are_due(loop):
    called = []
    kept = [loop.later(0.0, lambda number=number: called.append(number)) for number in range(10)]
    for _ in range(100_000):
        loop.later(3600.0, loop.stop).cancel()
    assert len(loop._timers) <= TIMERS
    loop.later(0.0, loop.stop)
    loop.run()
    assert called == [*range(len(kept))]


def test_a_heap_of_timers_that_are_due_is_seldom_searched(loop):
    searched = []
    drop = loop._drop_cancelled
    loop._drop_cancelled = lambda: (searched.append(len(loop._timers)), drop())
    for _ in range(16 * TIMERS):
        loop.later(3600.0, loop.stop)
    assert searched == [TIMERS, 2 * TIMERS, 4 * TIMERS, 8 * TIMERS]
