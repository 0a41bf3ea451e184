"""Dials to apps: their deadline, and what they tell the daemon about reaching the app."""

import errno
import socket
import time

import pytest

from sidestep.proxy.connection import app_dials
from sidestep.proxy.connection.app_dials import AppDials
from sidestep.proxy.connection.dial import is_unacknowledged
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.io.loop import Loop
from sidestep.snapshots.hindrance import Hindrance


class Told:
    """What is told of readiness."""

    def __init__(self):
        self.hindrances, self.errors = [], []

    def hinder(self, hindrance):
        self.hindrances.append(hindrance)

    def clear(self, hindrance):
        self.hindrances = [each for each in self.hindrances if each.kind != hindrance.kind]

    def exhausted(self, error):
        self.errors.append(error)


class Scene:
    """Dials to an app on loopback."""

    def __init__(self):
        self.crashes, self.results = [], []
        self.loop = Loop(on_crash=lambda owner, error: self.crashes.append(error))
        self.told = Told()
        self.dials = AppDials(self.loop, self.told)

    def dial(self, port):
        return self.dials.dial(Endpoints("192.0.2.1", 9, "127.0.0.1", port), lambda *words: self.results.append(words))

    def run(self, until=lambda: False, within=5.0):
        deadline = time.monotonic() + within
        while not until() and time.monotonic() < deadline:
            self.loop.later(0.02, self.loop.stop)
            self.loop.run()
        assert not self.crashes


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(app_dials, "PATIENCE", 0.4)
    monkeypatch.setattr(app_dials, "LAST_PATIENCE", 1.2)
    monkeypatch.setattr(app_dials, "LOOK", 0.05)
    monkeypatch.setattr(app_dials, "FIRST_TRY", 0.2)
    made = Scene()
    yield made
    for sock, _ in made.results:
        if sock is not None:
            sock.close()
    made.loop.close()


@pytest.fixture
def full():
    """A listener whose queue is full: the kernel drops what else is said to it."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, socket.socket() as filling:
        filling.connect(listener.getsockname())
        yield listener


def code_of(result):
    return result[1].errno if result[1] is not None else 0


@pytest.mark.alone
def test_a_dial_that_nothing_answers_is_given_up_told_and_tried_until_it_is_answered(scene, full):
    number = full.getsockname()[1]
    began = time.monotonic()
    scene.dial(number)
    scene.run(lambda: scene.results)
    assert time.monotonic() - began < 2
    assert [code_of(each) for each in scene.results] == [errno.ETIMEDOUT]
    assert scene.told.hindrances == [Hindrance("cannot-dial", number, socket.AF_INET, errno.ETIMEDOUT)]
    scene.run(within=0.5)
    assert scene.told.hindrances
    full.accept()[0].close()
    scene.run(lambda: not scene.told.hindrances)
    assert not scene.told.hindrances


@pytest.mark.alone
def test_an_app_that_answers_others_is_waited_for(scene, full):
    number = full.getsockname()[1]
    began = time.monotonic()
    scene.dial(number)

    def answer_another():
        scene.dials._answered[number, int(socket.AF_INET)] = scene.loop.now
        scene.loop.later(0.1, answer_another)

    scene.loop.later(0.1, answer_another)
    scene.run(lambda: scene.results)
    assert time.monotonic() - began > 1.0
    assert [code_of(each) for each in scene.results] == [errno.ETIMEDOUT]


def test_a_dial_that_was_cancelled_tells_nothing(scene, full):
    scene.dial(full.getsockname()[1])()
    scene.run(within=0.6)
    assert (scene.results, scene.told.hindrances) == ([], [])


def test_a_refusal_is_no_hindrance(scene):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
    scene.dial(number)
    scene.run(lambda: scene.results)
    assert [code_of(each) for each in scene.results] == [errno.ECONNREFUSED]
    assert scene.told.hindrances == []


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_want_of_descriptors_is_told_as_such(scene, monkeypatch, code):
    def fails(*words):
        raise OSError(code, "socket")

    monkeypatch.setattr("sidestep.proxy.connection.dial.socket.socket", fails)
    scene.dial(1)
    scene.run(lambda: scene.results)
    assert (scene.told.errors, scene.told.hindrances) == ([code], [])


@pytest.mark.parametrize("code", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPERM])
def test_any_other_failure_is_a_hindrance_of_the_port_and_family(scene, code):
    place = (80, int(socket.AF_INET))
    scene.dials._record_outcome(app_dials._Pending(place, "127.0.0.1", print), OSError(code, "connect"))
    assert scene.told.hindrances == [Hindrance("cannot-dial", *place, code)]
    scene.dials.keep_ports(())
    scene.run(within=0.5)
    assert not scene.dials._unreachable


def test_a_connection_that_is_cut_off_is_told_and_the_app_tried_until_it_answers(scene):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoints = Endpoints("192.0.2.1", 9, *listener.getsockname())
        scene.dials.cut_off(endpoints)
        scene.dials.cut_off(endpoints)
        assert scene.told.hindrances == [Hindrance("cannot-dial", endpoints.port, socket.AF_INET, errno.ETIMEDOUT)]
        scene.run(lambda: not scene.told.hindrances)
        assert not scene.told.hindrances


def test_who_does_not_read_is_not_taken_for_cut_off():
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
        listener.accept()[0],
    ):
        sock.setblocking(False)
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            try:
                sock.send(bytes(1 << 16))
            except BlockingIOError:
                time.sleep(0.05)
            assert not is_unacknowledged(sock)


def test_an_address_that_cannot_be_dialled_from_is_left_alone_for_the_daemons_pause_only(scene):
    place = (80, int(socket.AF_INET))
    scene.dials._record_outcome(app_dials._Pending(place, "192.0.2.9", print), OSError(errno.EADDRNOTAVAIL, "bind"))
    assert scene.told.hindrances
    scene.run(lambda: not scene.told.hindrances)
    assert not scene.told.hindrances


def test_an_address_without_its_zone_says_nothing_about_others(scene):
    place = (80, int(socket.AF_INET6))
    scene.dials._record_outcome(app_dials._Pending(place, "fe80::1", print), OSError(errno.EINVAL, "connect"))
    assert scene.told.hindrances == []
