"""The listeners of a proxy: which of them accepts, what becomes of the others, what the daemon is told."""

import contextlib
import errno
import socket

import pytest

from sidestep.proxy.io.loop import Loop
from sidestep.proxy.runtime.listeners import CANNOT_ACCEPT, Listeners
from sidestep.snapshots.hindrance import Hindrance
from tests.unit.proxy.looping import run_until

DEADLINE = 20.0


class Readiness:
    """Keeps what it is told."""

    def __init__(self):
        self.told = []

    def exhausted(self, error):
        self.told.append(("exhausted", error))

    def hinder(self, hindrance):
        self.told.append(("hinder", hindrance))

    def clear(self, hindrance):
        self.told.append(("clear", hindrance))


class Scene:
    """Listeners on a real loop."""

    def __init__(self, stack):
        self.stack = stack
        self.loop = Loop(on_crash=lambda owner, error: pytest.fail(f"{owner}: {error}"))
        stack.callback(self.loop.close)
        self.readiness = Readiness()
        self.retired = 0
        self.accepted = []
        self.listeners = Listeners(self.loop, self.readiness, has_room=lambda: True, retired=self._retired)
        stack.callback(self._close)

    def _retired(self):
        self.retired += 1

    def _close(self):
        self.listeners.unlisten_all()
        self.listeners.close_retired()
        for sock in self.accepted:
            sock.close()

    def listen(self, port=0):
        """A listener on a new port, or one more on a port."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        self.stack.callback(sock.close)
        kept = sock.dup()
        self.stack.callback(kept.close)
        self.listeners.listen(sock.getsockname()[1], sock, lambda sock, endpoints: self.accepted.append(sock))
        return kept

    def connect(self, port):
        self.stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE))

    def until(self, condition):
        run_until(self.loop, condition, DEADLINE)


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_connections_are_accepted_and_the_daemon_is_told_nothing(scene):
    port = scene.listen().getsockname()[1]
    scene.connect(port)
    scene.until(lambda: len(scene.accepted) == 1)
    assert not scene.readiness.told


def test_a_listener_that_is_retired_accepts_who_waits_and_is_closed(scene):
    port = scene.listen().getsockname()[1]
    scene.connect(port)
    scene.listeners.unlisten(port)
    scene.listeners.unlisten(port)
    assert scene.listeners.are_retiring
    assert scene.readiness.told == [("clear", Hindrance(CANNOT_ACCEPT, port))]
    scene.until(lambda: scene.retired == 1)
    assert len(scene.accepted) == 1
    assert not scene.listeners.are_retiring


def test_who_leaves_others_accepts_nothing_more_and_resets_nobody(scene):
    """What waits is theirs, as whatever comes next: the port stays steered."""
    kept = scene.listen()
    port = kept.getsockname()[1]
    scene.connect(port)
    scene.listeners.leave()
    assert not scene.listeners.are_retiring
    scene.connect(port)
    scene.loop.later(0.05, scene.loop.stop)
    scene.loop.run()
    assert scene.accepted == []
    for _ in range(2):
        sock, _ = kept.accept()
        scene.accepted.append(sock)
        sock.sendall(b"served")


def test_a_second_listener_of_a_port_retires_the_first(scene):
    port = scene.listen().getsockname()[1]
    scene.listen(port)
    assert scene.listeners.are_retiring
    scene.until(lambda: scene.retired == 1)
    assert not scene.listeners.are_retiring
    scene.listeners.unlisten_all()
    assert scene.listeners.are_retiring
    scene.listeners.close_retired()


def test_the_daemon_is_told_of_a_listener_that_does_not_listen_any_more_while_it_is_the_port_s(scene):
    kept = scene.listen()
    port = kept.getsockname()[1]
    kept.shutdown(socket.SHUT_RDWR)
    scene.until(lambda: scene.readiness.told)
    assert scene.readiness.told == [("hinder", Hindrance(CANNOT_ACCEPT, port, error=errno.EINVAL))]
    scene.listeners.unlisten(port)
    assert scene.readiness.told[-1] == ("clear", Hindrance(CANNOT_ACCEPT, port))
    told = len(scene.readiness.told)
    scene.until(lambda: scene.retired == 1)
    assert len(scene.readiness.told) == told
