"""Flows of datagrams: how long they live, and that what returns begins anew."""

import contextlib
import socket
import time

import pytest

from sidestep.proxy.connection import datagrams
from sidestep.proxy.connection.datagrams import Datagrams
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.stream import PlainStream
from sidestep.snapshots.ports import PortSnapshot

KEY = ("u", 53, "10.0.0.1", 1000, "10.0.0.2")
OTHER = ("u", 53, "10.0.0.9", 1000, "10.0.0.2")


class Scene:
    """Datagrams whose streams are socketpairs; the test holds the other ends, in the order in which they were asked."""

    def __init__(self, stack):
        self.loop = Loop(on_crash=lambda owner, error: pytest.fail(f"{owner}: {error!r}"))
        stack.callback(self.loop.close)
        self.udp = Datagrams(self.loop, self.ask)
        stack.callback(self.udp.close)
        self.stack = stack
        self.handlers = []

    def ask(self, key, done):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(5)
        self.handlers.append(self.stack.enter_context(theirs))
        self.loop.later(0.0, lambda: done(PlainStream(ours)))
        return lambda: None

    def run(self, until=lambda: False, within=5.0):
        deadline = time.monotonic() + within
        while not until() and time.monotonic() < deadline:
            self.loop.later(0.01, self.loop.stop)
            self.loop.run()
        return until()


@pytest.fixture
def scene(monkeypatch):
    monkeypatch.setattr(datagrams, "IDLE", 0.3)
    monkeypatch.setattr(datagrams, "SWEEP", 0.05)
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_a_flow_without_datagrams_ends_and_one_that_returns_begins_anew(scene):
    scene.udp._carry(KEY, b"one", answers=True)
    assert scene.run(lambda: scene.udp.flows == 1)
    assert scene.run(lambda: scene.udp.flows == 0)
    assert scene.handlers[0].recv(100).endswith(b"one")
    assert scene.handlers[0].recv(100) == b""
    scene.udp._carry(KEY, b"two", answers=True)
    scene.run(within=0.05)
    assert len(scene.handlers) == 2
    assert scene.handlers[1].recv(100).endswith(b"two")


def test_a_flow_lives_while_either_side_speaks_and_only_the_silent_one_ends(scene):
    scene.udp._carry(OTHER, b"once", answers=True)
    scene.udp._carry(KEY, b"x", answers=True)
    scene.run(within=0.05)
    deadline = time.monotonic() + 4 * datagrams.IDLE
    turn = 0
    while time.monotonic() < deadline:
        turn += 1
        if turn % 2:
            scene.udp._carry(KEY, b"question", answers=True)
        else:
            scene.handlers[1].sendall(b"\x00\x02\x00a")  # a capsule with a datagram (RFC 9297)
        scene.run(within=0.1)
    assert [flow.key for flow in scene.udp._flows.values()] == [KEY]
    assert len(scene.handlers) == 2
    assert scene.handlers[0].recv(100).endswith(b"once")
    assert scene.handlers[0].recv(100) == b""


def test_the_end_of_its_rule_ends_a_flow_at_once(scene):
    scene.udp.configure({53: PortSnapshot(53, "udp", "never", "never", (), global_uid="u")})
    scene.udp._carry(KEY, b"x", answers=True)
    scene.run(within=0.05)
    assert scene.udp.flows == 1
    scene.udp.configure({53: PortSnapshot(53, "udp", "never", "never", (), global_uid="another")})
    assert scene.udp.flows == 0
