"""The legs of a connection, and where their events go."""

import contextlib
import socket
from types import SimpleNamespace

import pytest

from sidestep.engine.leg import Ending, Leg, Role
from sidestep.proxy.connection.connection_legs import FORGET, ConnectionLegs
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.io.loop import HANG_UP, READ, WRITE, Loop
from sidestep.proxy.io.stream import PlainStream


class Owner:
    """Takes the part of a conductor: notes what its legs tell."""

    def __init__(self):
        self.told = []
        self.notify = True
        self.endpoints = Endpoints("192.0.2.1", 1, "192.0.2.2", 80)
        self.host = SimpleNamespace(
            lingering=set(), release_name=lambda endpoints, app: self.told.append(("release_name", app.fileno() >= 0))
        )

    def read(self, io, stream, *, hung_up=False):
        self.told.append(("read", hung_up))

    def hung_up(self, io):
        self.told.append("hung up")

    def apply(self):
        self.told.append("apply")

    def abandon(self):
        self.told.append("abandon")


class Scene:
    """Some legs on a loop."""

    def __init__(self, stack):
        self.stack = stack
        self.loop = Loop(on_crash=lambda owner, error: pytest.fail(f"{owner}: {error}"))
        stack.callback(self.loop.close)
        self.owner = Owner()
        self.legs = ConnectionLegs(self.loop, self.owner)

    def connected(self, role=Role.APP):
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(10)
        for each in (near, far):
            self.stack.enter_context(each)
        leg = Leg(role)
        io = self.legs.of(leg)
        io.attach(PlainStream(near))
        return leg, io, far


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


@pytest.mark.parametrize(
    ("mask", "ended", "told"),
    [
        (READ, False, ("read", False)),
        (READ | HANG_UP, False, ("read", True)),
        (HANG_UP, False, ("read", True)),
        (READ | WRITE, False, ("read", False)),
        (WRITE, False, "apply"),
        (WRITE, True, "apply"),
        (READ, True, "apply"),
        (HANG_UP, True, "hung up"),
        (READ | HANG_UP, True, "hung up"),
    ],
)
def test_an_event_is_told_to_the_conductor(scene, mask, ended, told):
    _, io, _ = scene.connected()
    io.ended = ended
    io.ready(mask)
    assert scene.owner.told == [told]


def test_nothing_is_told_of_a_closed_leg(scene):
    _, io, _ = scene.connected()
    io.close(orderly=True)
    io.ready(READ)
    assert not scene.owner.told


def test_a_lingering_leg_is_closed_at_its_end_and_the_host_knows(scene):
    _, io, far = scene.connected(Role.CLIENT)
    io.end(Ending.CLOSE)
    assert scene.owner.host.lingering == {io}
    assert far.recv(1) == b""
    io.ready(READ)
    assert io.stream is not None
    far.close()
    io.ready(READ | HANG_UP)
    assert (io.stream, scene.owner.host.lingering, scene.owner.told) == (None, set(), [])


@pytest.mark.parametrize(
    ("ending", "finished", "lingers", "is_open"),
    [
        (Ending.FINISH, True, False, True),
        (Ending.CLOSE, True, True, True),
        (Ending.ABORT, False, False, False),
    ],
)
def test_an_ending_is_carried_out(scene, ending, finished, lingers, is_open):
    _, io, _ = scene.connected()
    io.end(ending)
    assert (io.finished, io.lingering is not None, io.stream is not None) == (finished, lingers, is_open)
    io.end(ending)
    assert (io.finished, io.lingering is not None, io.stream is not None) == (finished, lingers, is_open)


@pytest.mark.parametrize("ending", [Ending.FINISH, Ending.CLOSE, Ending.ABORT])
def test_an_ending_gives_up_what_is_under_way(scene, ending):
    io = scene.legs.of(Leg(Role.APP))
    cancelled = []
    io.cancel = lambda: cancelled.append(1)
    io.end(ending)
    assert cancelled == [1]


@pytest.mark.parametrize(
    ("role", "names", "told"),
    [
        (Role.APP, [("192.0.2.2", 9)], [("release_name", True)]),
        (Role.APP, [], []),
        (Role.HANDLER, [("192.0.2.2", 9)], []),
    ],
)
def test_the_name_of_a_connection_to_the_app_is_taken_back_before_it_is_closed(scene, role, names, told):
    _, io, _ = scene.connected(role)
    scene.owner.endpoints.names = names
    io.release(orderly=True)
    io.release(orderly=True)
    assert scene.owner.told == told


def test_a_slow_leg_reads_less_at_a_time(scene):
    _, io, _ = scene.connected()
    before = io.stream.full
    io.slow()
    assert io.stream.full < before
    io.close(orderly=True)
    io.slow()


def test_a_bug_in_a_callback_ends_the_connection(scene):
    scene.connected()[1].abandon()
    assert scene.owner.told == ["abandon"]


def test_bytes_that_wait_are_counted_also_for_a_leg_that_is_being_opened(scene):
    leg, _, _ = scene.connected()
    waiting, over = Leg(Role.HANDLER), Leg(Role.HANDLER)
    for each, size in ((leg, 1), (waiting, 10), (over, 100)):
        scene.legs.of(each)
        each.queued = size
    over.end(Ending.ABORT)
    assert scene.legs.queued == 11


def test_a_leg_has_one_io(scene):
    leg = Leg(Role.APP)
    assert scene.legs.of(leg) is scene.legs.of(leg) is leg.io


def test_unsent_bytes_and_ends_are_seen(scene):
    leg, io, _ = scene.connected()
    assert not scene.legs.has_unsent
    leg.write(b"x")
    assert scene.legs.has_unsent
    leg.out.clear()
    leg.end(Ending.CLOSE)
    assert scene.legs.has_unsent
    io.end(Ending.CLOSE)
    assert not scene.legs.has_unsent


def test_of_many_legs_those_that_are_over_are_forgotten(scene):
    kept = [scene.connected()[1], scene.legs.of(Leg(Role.HANDLER))]
    over = []
    for _ in range(FORGET):
        leg = Leg(Role.HANDLER)
        leg.end(Ending.ABORT)
        over.append(scene.legs.of(leg))
    scene.legs.forget()
    assert list(scene.legs) == kept
    scene.legs.forget()
    assert list(scene.legs) == kept


def test_closing_lets_a_client_linger_that_was_sent_an_end(scene):
    client, io, far = scene.connected(Role.CLIENT)
    app, app_io, _ = scene.connected(Role.APP)
    client.end(Ending.CLOSE)
    app.end(Ending.CLOSE)
    scene.legs.close()
    assert far.recv(1) == b""
    assert io.lingering is not None
    assert app_io.stream is None
    scene.legs.close()
    assert io.lingering is not None
    scene.legs.reset()
    assert io.stream is None
    assert scene.owner.host.lingering == set()
