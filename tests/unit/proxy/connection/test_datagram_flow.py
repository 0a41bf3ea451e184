"""One flow of datagrams: what waits, what is dropped, what is counted, what the mirror is told."""

import contextlib
import socket
from collections import Counter

import pytest

from sidestep.proxy.connection import datagram_flow
from sidestep.proxy.connection.datagram_flow import HELD, Flow
from sidestep.proxy.io.loop import HANG_UP, READ, WRITE, Loop
from sidestep.proxy.io.stream import PlainStream

KEY = ("uid", 53, "192.0.2.1", 9, "192.0.2.2")
CAPSULE = b"\x00\x02\x00a"
"""A datagram "a" (RFC 9297 section 3.5)."""


class Mirror:
    """Notes what came of copies."""

    def __init__(self):
        self.told = []

    def spend(self, seconds):
        pass

    def opened(self, uid):
        self.told.append("opened")

    def succeeded(self, uid):
        self.told.append("succeeded")

    def failed(self, uid):
        self.told.append("failed")


class Owner:
    """What flows share, and the handler's end of the stream."""

    def __init__(self, stack):
        self.loop = Loop(on_crash=lambda owner, error: pytest.fail(f"{owner}: {error}"))
        stack.callback(self.loop.close)
        self.mirror_scheduler = Mirror()
        self.counters = Counter()
        self.held = self.opening = self.cancelled = 0
        self.answers, self.over = [], []
        self.done = None
        near, self.handler = socket.socketpair()
        near.setblocking(False)
        self.handler.settimeout(10)
        for each in (near, self.handler):
            stack.enter_context(each)
        self.stream = PlainStream(near)

    def ask(self, key, done):
        assert key == KEY
        self.done = done
        return self._cancel

    def _cancel(self):
        self.cancelled += 1

    def answer(self, key, payload):
        self.answers.append(payload)

    def ended(self, flow):
        self.over.append(flow)

    def flow(self, *, answers=True):
        flow = Flow(self, KEY, answers=answers)
        flow.begin(self.ask)
        return flow


@pytest.fixture
def owner():
    with contextlib.ExitStack() as stack:
        yield Owner(stack)


def test_datagrams_wait_for_the_stream_and_come_in_order(owner):
    flow = owner.flow()
    for payload in (b"a", b"b"):
        flow.send(payload)
    assert (owner.opening, owner.held) == (1, 8)
    owner.done(owner.stream)
    flow.send(b"c")
    assert owner.handler.recv(100) == CAPSULE + b"\x00\x02\x00b" + b"\x00\x02\x00c"
    assert (owner.opening, owner.held) == (0, 0)


def test_what_finds_no_room_is_dropped_and_counted(owner, monkeypatch):
    flow = owner.flow()
    sent = 0
    while not owner.counters:
        flow.send(bytes(60_000))
        sent += 1
    assert HELD < owner.held < HELD + 2 * 60_000
    assert owner.counters == {"datagrams_dropped": 1}
    monkeypatch.setattr(datagram_flow, "HELD_TOGETHER", owner.held - 1)
    Flow(owner, KEY, answers=True).send(b"x")
    assert owner.counters == {"datagrams_dropped": 2}
    flow.end()
    assert (owner.held, owner.opening, owner.cancelled) == (0, 0, 1)


def test_answers_reach_the_client(owner):
    flow = owner.flow()
    owner.done(owner.stream)
    owner.handler.sendall(CAPSULE + CAPSULE[:2])
    flow._ready(READ)
    owner.handler.sendall(CAPSULE[2:])
    flow._ready(READ)
    assert owner.answers == [b"a", b"a"]


@pytest.mark.parametrize("answers", [True, False])
def test_a_refused_flow_ends(owner, answers):
    flow = owner.flow(answers=answers)
    flow.send(b"x")
    owner.done(None)
    assert owner.over == [flow]
    assert owner.counters == {"datagrams_refused": 1}
    assert (owner.held, owner.opening, owner.cancelled) == (0, 0, 0)
    assert owner.mirror_scheduler.told == ([] if answers else ["failed"])


@pytest.mark.parametrize("said", [b"", b"\xff" * 64])
def test_a_flow_whose_handler_leaves_or_talks_nonsense_ends(owner, said):
    flow = owner.flow()
    owner.done(owner.stream)
    owner.handler.sendall(said)
    owner.handler.close()
    flow._ready(READ | HANG_UP)
    assert owner.over == [flow]
    assert len(owner.loop) == 0


def test_a_full_stream_is_written_when_it_has_room(owner):
    flow = owner.flow()
    owner.done(owner.stream)
    sent = 0
    while not owner.held:
        flow.send(bytes(60_000))
        sent += 1
    received = 0
    while owner.held:
        received += len(owner.handler.recv(1 << 20))
        flow._ready(WRITE)
    flow.end()
    while data := owner.handler.recv(1 << 20):
        received += len(data)
    assert received >= sent * 60_000
    assert not owner.counters


def test_the_mirror_is_told_once_what_came_of_a_flow_of_copies(owner):
    flow = owner.flow(answers=False)
    owner.done(owner.stream)
    for _ in range(2):
        owner.handler.sendall(CAPSULE)
        flow._ready(READ)
    owner.handler.close()
    flow._ready(READ | HANG_UP)
    assert owner.mirror_scheduler.told == ["opened", "succeeded"]
    assert not owner.answers
    assert owner.over == [flow]


def test_ending_twice_changes_no_account(owner):
    flow = owner.flow()
    flow.send(b"x")
    flow.end()
    flow.abandon()
    assert (owner.held, owner.opening, owner.cancelled) == (0, 0, 1)
