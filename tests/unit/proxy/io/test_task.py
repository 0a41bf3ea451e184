"""Coroutines on the loop: what they await, how they are cancelled, and where their exceptions go."""

from __future__ import annotations

import socket
import time

import pytest

from sidestep.proxy.io.loop import READ, WRITE
from sidestep.proxy.io.task import Operation, Task, Watch
from tests.unit.proxy.looping import Running, stepped


class Call:
    """An operation whose answer the test gives."""

    def __init__(self, at_once=None):
        self.done = None
        self.cancelled = 0
        self.at_once = at_once

    def start(self, done):
        self.done = done
        if self.at_once is not None:
            done(self.at_once)
        return self.cancel

    def cancel(self):
        self.cancelled += 1


async def answer_of(call):
    return await Operation(call.start)


def test_an_answer_resumes_the_coroutine():
    call = Call()
    running = Running(answer_of(call))
    assert not running.over
    call.done("yes")
    assert (running.over, running.result, call.cancelled) == (True, "yes", 0)


def test_an_answer_may_come_before_the_call_returns():
    call = Call(at_once="yes")
    assert Running(answer_of(call)).result == "yes"
    assert not call.cancelled


def test_a_second_answer_is_ignored():
    call = Call()
    running = Running(answer_of(call))
    call.done("yes")
    call.done("no")
    assert running.result == "yes"


def test_cancelling_cancels_the_call_and_runs_finally_once():
    call, ended = Call(), []

    async def path():
        try:
            await Operation(call.start)
            ended.append("went on")
        finally:
            ended.append("released")

    task = Task(path())
    task.start()
    for _ in range(2):
        task.cancel()
    call.done("late")
    assert (ended, call.cancelled) == (["released"], 1)


def test_a_task_that_was_cancelled_first_never_starts():
    task = Task(answer_of(Call()))
    task.cancel()
    task.start()


def test_an_exception_goes_to_whoever_resumed_the_coroutine():
    call = Call()

    async def path():
        await Operation(call.start)
        raise ValueError("a bug")

    task = Task(path())
    task.start()
    with pytest.raises(ValueError, match="a bug"):
        call.done(None)
    task.cancel()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


async def watched(watch, *masks):
    try:
        return [await watch.event(mask) for mask in masks]
    finally:
        watch.close()


def test_a_watch_waits_for_what_is_asked(pair):
    ours, theirs = pair
    with stepped() as scene:
        running = Running(watched(Watch(scene.loop, ours.fileno(), seconds=10), WRITE, READ))
        assert not scene.run(lambda: running.over, within=0.2)
        theirs.sendall(b"x")
        assert scene.run(lambda: running.over)
        assert running.result == [WRITE, READ]


def test_all_waits_of_a_watch_share_one_deadline(pair):
    """A peer that does something now and then gains no time."""
    ours, theirs = pair
    with stepped() as scene:
        watch = Watch(scene.loop, ours.fileno(), seconds=0.5)

        async def drip():
            try:
                while True:
                    await watch.event(READ)
                    ours.recv(1)
                    scene.loop.later(0.1, lambda: theirs.sendall(b"x"))
            finally:
                watch.close()

        theirs.sendall(b"x")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            scene.finish(drip())
        assert time.monotonic() - began >= 0.45


def test_a_deadline_that_passed_between_two_waits_counts(pair):
    ours, _ = pair
    with stepped() as scene:
        watch = Watch(scene.loop, ours.fileno(), seconds=0.0)
        scene.run(within=0.1)
        with pytest.raises(TimeoutError):
            scene.finish(watched(watch, READ))


def test_an_error_of_ours_in_a_callback_ends_the_wait(pair):
    ours, _ = pair
    with stepped() as scene:
        watch = Watch(scene.loop, ours.fileno(), seconds=10)
        running = Running(watched(watch, READ))
        watch.abandon()
        assert isinstance(running.error, TimeoutError)
        watch.abandon()  # it is over


def test_a_restarted_deadline_replaces_the_first(pair):
    ours, theirs = pair
    with stepped() as scene:
        watch = Watch(scene.loop, ours.fileno(), seconds=0.0)
        watch.restart(10)
        running = Running(watched(watch, READ))
        assert not scene.run(lambda: running.over, within=0.2)
        theirs.sendall(b"x")
        assert scene.run(lambda: running.over)
        assert running.result == [READ]


def test_a_cancelled_wait_leaves_nothing_behind(pair):
    ours, theirs = pair
    with stepped() as scene:
        running = Running(watched(Watch(scene.loop, ours.fileno(), seconds=0.1), READ))
        running.cancel()
        theirs.sendall(b"x")
        scene.run(within=0.2)
        assert running.result is None


@pytest.mark.parametrize("registered", [True, False])
def test_a_descriptor_that_was_registered_before_stays_so(pair, registered):
    ours, _ = pair
    with stepped() as scene:
        if registered:
            scene.loop.add(ours.fileno(), lambda mask: None, READ)
        Watch(scene.loop, ours.fileno(), seconds=10, registered=registered).close()
        assert (len(scene.loop) == 1) is registered
        scene.loop.remove(ours.fileno())
