"""What the proxy tells about its room and its descriptors."""

import errno
import os
import resource

import pytest

from sidestep.proxy.control import readiness
from sidestep.proxy.control.readiness import EASED, FULL, NO_MEMORY, NO_ROOM, Readiness, Room
from sidestep.proxy.io.loop import Loop
from sidestep.snapshots.hindrance import Hindrance


class DaemonLink:
    """A daemon that listens."""

    def __init__(self):
        self.told = []

    def next_seq(self):
        return len(self.told) + 1

    def send(self, message):
        self.told.append(set(message.hindrances))
        return True


class Usage:
    used = 0

    def descriptors(self):
        return self.used


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(readiness, "TRY", 0.05)
    monkeypatch.setattr(readiness, "MEMORY_PAUSE", 0.05)
    loop, line = Loop(on_crash=lambda owner, error: None), DaemonLink()
    yield loop, line, Readiness(loop, line)
    loop.close()


def run(loop, seconds):
    loop.later(seconds, loop.stop)
    loop.run()


def test_everything_is_told_whenever_something_comes_or_goes_and_nothing_twice(scene):
    _, line, some = scene
    deaf, mute = Hindrance("cannot-accept", 80, 0, 22), Hindrance("cannot-dial", 81, 2, 110)
    some.hinder(deaf)
    some.hinder(deaf)
    some.hinder(mute)
    some.clear(Hindrance("cannot-accept", 80))
    some.clear(Hindrance("cannot-accept", 80))
    assert line.told == [{deaf}, {deaf, mute}, {mute}]
    some.keep_ports({80})
    some.hinder(deaf)
    assert line.told[-1] == {deaf}


def test_room_is_told_to_end_before_it_has_and_to_be_back_later(scene):
    _, line, some = scene
    usage = Usage()
    room = Room(some, usage)
    limit = room._limit
    for used, left, hindered in (
        (FULL * limit - 1, True, False),
        (FULL * limit + 1, True, True),
        (limit, False, True),
        (EASED * limit + 1, True, True),
        (EASED * limit - 1, True, False),
    ):
        usage.used = int(used)
        assert room.is_left() is left
        assert (bool(line.told) and NO_ROOM in line.told[-1]) is hindered
        assert room.is_short is (not left)


def test_the_limit_may_be_lowered_meanwhile(scene):
    _, line, some = scene
    usage = Usage()
    room = Room(some, usage)
    usage.used = 1000
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        room.look()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert line.told == [{NO_ROOM}]
    assert not room.is_left()


def test_descriptors_are_told_to_be_wanting_until_some_can_be_had(scene):
    loop, line, some = scene
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        some.exhausted(errno.EMFILE)
        some.exhausted(errno.EMFILE)
        run(loop, 0.2)
        assert line.told == [{Hindrance("no-descriptors", error=errno.EMFILE)}]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    run(loop, 0.2)
    assert line.told[-1] == set()


def test_want_of_memory_is_told_for_a_while(scene):
    loop, line, some = scene
    some.out_of_memory()
    some.out_of_memory()
    run(loop, 0.2)
    assert line.told == [{NO_MEMORY}, set()]
