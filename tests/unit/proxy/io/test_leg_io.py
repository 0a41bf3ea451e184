"""The stream of one leg on a real loop, between real sockets: its states, one after the other."""

import contextlib
import socket

import pytest

from sidestep.engine.leg import Leg, Role
from sidestep.proxy.io.leg_io import LINGER, MERGE, LegIO
from sidestep.proxy.io.loop import READ, WRITE, Loop
from sidestep.proxy.io.stream import PlainStream
from tests.unit.proxy.io.test_splice import tcp_pair


class Recorded(LegIO):
    """Notes its events."""

    __slots__ = ("events",)

    def __init__(self, loop, leg):
        super().__init__(loop, leg)
        self.events = []

    def ready(self, mask):
        self.events.append(mask)


class Scene:
    """A leg whose peer is at hand."""

    def __init__(self, stack):
        self.loop = Loop(on_crash=lambda owner, error: pytest.fail(f"{owner}: {error}"))
        stack.callback(self.loop.close)
        self.peer, self.sock = tcp_pair()
        self.sock.setblocking(False)
        self.peer.settimeout(10)
        for each in (self.peer, self.sock):
            stack.enter_context(each)
        self.io = Recorded(self.loop, Leg(Role.APP))

    def attach(self):
        self.io.attach(PlainStream(self.sock))
        return self.io

    def turn(self, seconds=0.0):
        self.loop.later(seconds, self.loop.stop)
        self.loop.run()


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_a_leg_waits_without_a_stream(scene):
    io = scene.io
    assert (io.stream, io.mask, io.leg.open, io.lingering, io.cancel) == (None, 0, False, None, None)
    io.watch(READ)
    io.finish(notify=True)
    assert not io.discard(notify=True)
    assert (io.mask, io.finished, len(scene.loop)) == (0, False, 0)


def test_an_attached_stream_is_registered_for_reading(scene):
    io = scene.attach()
    assert (io.mask, io.leg.open, len(scene.loop)) == (READ, True, 1)
    scene.peer.sendall(b"x")
    scene.turn(0.05)
    assert set(io.events) == {READ}


def test_a_stream_that_is_watched_already_changes_its_callback(scene):
    others = []
    scene.loop.add(scene.sock.fileno(), others.append, 0)
    scene.io.attach(PlainStream(scene.sock), watched=True)
    scene.peer.sendall(b"x")
    scene.turn(0.05)
    assert scene.io.events
    assert not others


@pytest.mark.parametrize("chunks", [1, 2, MERGE, MERGE + 1, 3 * MERGE + 5])
def test_everything_queued_is_written_in_order(scene, chunks):
    io = scene.attach()
    said = [b"%d," % index for index in range(chunks)]
    io.leg.out[:] = said
    io.leg.queued = len(b"".join(said))
    assert io.write(io.stream)
    assert (io.leg.out, io.leg.queued) == ([], 0)
    io.close(orderly=True)
    assert b"".join(iter(lambda: scene.peer.recv(65536), b"")) == b"".join(said)


def test_what_a_full_socket_does_not_take_stays_queued(scene):
    io = scene.attach()
    said = [bytes([index]) * 100_000 for index in range(100)]
    io.leg.out[:] = said
    io.leg.queued = 10_000_000
    assert not io.write(io.stream)
    assert 0 < io.leg.queued < 10_000_000
    assert len(b"".join(io.leg.out)) == io.leg.queued
    received = bytearray()
    while io.leg.out:
        received += scene.peer.recv(1 << 20)
        io.write(io.stream)
    assert io.leg.queued == 0
    io.close(orderly=True)
    while data := scene.peer.recv(1 << 20):
        received += data
    assert received == b"".join(said)


def test_a_write_to_a_broken_stream_raises(scene):
    io = scene.attach()
    scene.peer.close()
    io.leg.out[:] = [b"x" * 65536] * 1000
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        for _ in range(1000):
            io.write(io.stream)
            scene.turn(0.001)


def test_a_finished_leg_has_sent_its_end_and_is_still_read(scene):
    io = scene.attach()
    io.finish(notify=True)
    io.finish(notify=True)
    assert io.finished
    assert scene.peer.recv(1) == b""
    scene.peer.sendall(b"late")
    scene.turn(0.05)
    assert io.stream.read() == b"late"


def test_a_lingering_leg_discards_until_the_peer_ends(scene):
    io = scene.attach()
    io.finish(notify=True)
    given_up = []
    io.linger(lambda: given_up.append(1))
    assert io.mask == READ
    scene.peer.sendall(b"x" * 1000)
    scene.turn(0.05)
    assert not io.discard(notify=True)
    scene.peer.close()
    scene.turn(0.05)
    assert io.discard(notify=True)
    io.close(orderly=True)
    scene.turn()
    assert (given_up, io.stream, io.lingering, len(scene.loop)) == ([], None, None, 0)


def test_a_lingering_leg_that_could_not_finish_does_so_when_there_is_room(scene):
    io = scene.attach()
    io.linger(lambda: None)
    assert io.mask == READ | WRITE
    assert not io.discard(notify=True)
    assert (io.finished, io.mask) == (True, READ)


def test_lingering_has_a_deadline(scene):
    io = scene.attach()
    io.linger(lambda: io.close(orderly=True))
    assert 0 < io.lingering.when - scene.loop.now <= LINGER + 60
    io.lingering.call()
    assert io.stream is None


def test_a_broken_lingering_leg_has_ended(scene):
    io = scene.attach()
    io.linger(lambda: None)
    scene.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    scene.peer.close()
    scene.turn(0.05)
    assert io.discard(notify=True)


@pytest.mark.parametrize("orderly", [True, False])
def test_the_peer_of_a_closed_leg_sees_an_end_or_a_reset(scene, orderly):
    io = scene.attach()
    io.close(orderly=orderly)
    io.close(orderly=orderly)
    assert (io.stream, io.leg.open, len(scene.loop)) == (None, False, 0)
    if orderly:
        assert scene.peer.recv(1) == b""
    else:
        with pytest.raises(ConnectionResetError):
            scene.peer.recv(1)


def test_closing_a_leg_that_waits_cancels_what_is_under_way_once(scene):
    cancelled = []
    scene.io.cancel = lambda: cancelled.append(1)
    scene.io.close(orderly=True)
    scene.io.close(orderly=True)
    assert cancelled == [1]
