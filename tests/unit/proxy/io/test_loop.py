"""The loop when its events are slow."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from sidestep.proxy.io.loop import READ, Loop

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
