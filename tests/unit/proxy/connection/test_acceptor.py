"""Accepting when it does not work: which errors are of one connection, and what the others cost."""

import contextlib
import errno
import os
import resource
import select
import socket
import threading
import time

import pytest

from sidestep.proxy.connection import acceptor
from sidestep.proxy.connection.acceptor import ONE_CONNECTION, Acceptor
from sidestep.proxy.io.loop import Loop
from tests.harness.waiting import until


class Scene:
    """An acceptor on a real listener."""

    def __init__(self, listener, *, room=lambda: True, port=None, shared=bool):
        self.crashes, self.accepted, self.outcomes, self.retired = [], [], [], False
        self.endpoints = []
        self.loop = Loop(on_crash=lambda owner, error: self.crashes.append(error))
        self.listener = listener
        self.acceptor = Acceptor(
            self.loop,
            listener.dup(),
            port or listener.getsockname()[1],
            accepted=self.take,
            has_room=room,
            outcome=self.outcomes.append,
            is_shared=shared,
        )

    def take(self, sock, endpoints):
        self.accepted.append(sock)
        self.endpoints.append(endpoints)

    def run(self, until=lambda: False, within=5.0):
        """Step the loop; returns the CPU seconds it took."""
        deadline, began = time.monotonic() + within, time.process_time()
        while not until() and time.monotonic() < deadline:
            self.loop.later(0.02, self.loop.stop)
            self.loop.run()
        assert not self.crashes
        return time.process_time() - began


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def scene(listener):
    made = Scene(listener)
    yield made
    made.acceptor.close()
    made.loop.close()
    for sock in made.accepted:
        sock.close()


def client(listener):
    return socket.create_connection(listener.getsockname())


def test_a_listener_that_was_shut_down_is_told_and_costs_nothing(scene):
    scene.listener.shutdown(socket.SHUT_RDWR)
    scene.run(lambda: scene.outcomes)
    assert scene.outcomes[0] == errno.EINVAL
    assert scene.run(within=1.0) < 0.3
    assert set(scene.outcomes) == {errno.EINVAL}
    assert len(scene.outcomes) < 6


def test_want_of_descriptors_is_told_and_over_when_it_is(scene):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with client(scene.listener):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            scene.run(lambda: scene.outcomes)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert scene.outcomes[0] == errno.EMFILE
        scene.run(lambda: scene.accepted)
        assert scene.outcomes[-1] == 0


@pytest.mark.parametrize("room", [True, False])
def test_who_retires_ends_whether_or_not_it_can_accept(listener, room):
    scene = Scene(listener, room=lambda: room)
    retired = []
    with client(listener) as waiting:
        scene.acceptor.retire(lambda: retired.append(1))
        scene.run(lambda: retired, within=10.0)
        assert retired
        assert len(scene.accepted) == room
        listener.close()
        waiting.settimeout(5)
        with contextlib.suppress(ConnectionError):
            if not room:
                assert waiting.recv(1) == b""
    scene.loop.close()
    for sock in scene.accepted:
        sock.close()


class Failing:
    """A listener whose accept fails with an error of the test's."""

    def __init__(self, listener, errors):
        self._listener = listener
        self.errors = errors
        self.tries = 0

    def accept(self):
        self.tries += 1
        if self.errors:
            raise OSError(self.errors.pop(0), "accept")
        return self._listener.accept()

    def __getattr__(self, name):
        return getattr(self._listener, name)


@pytest.mark.parametrize("error", sorted(ONE_CONNECTION))
def test_an_error_of_one_connection_costs_that_connection_only(scene, error):
    failing = scene.acceptor._listener = Failing(scene.acceptor._listener, [error, error])
    with client(scene.listener):
        scene.run(lambda: scene.accepted)
    assert (failing.tries, scene.outcomes) == (4, [])  # twice in vain, once not, and the queue was empty


@pytest.mark.parametrize("error", sorted({errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ECONNABORTED}))
def test_what_goes_on_failing_is_told_and_tried_ever_more_rarely(scene, error):
    failing = scene.acceptor._listener = Failing(scene.acceptor._listener, [error] * 100_000)
    with client(scene.listener):
        scene.run(within=1.0)
        assert set(scene.outcomes) == {error}
        assert len(scene.outcomes) <= 5
        assert failing.tries <= 5 * acceptor.BURST
        failing.errors.clear()
        scene.run(lambda: scene.accepted)
        assert scene.outcomes[-1] == 0


def test_who_connected_to_whom_is_told_with_a_socket_that_does_not_block(listener):
    scene = Scene(listener)
    with client(listener) as sock:
        scene.run(lambda: scene.accepted)
        (accepted,), (endpoints,) = scene.accepted, scene.endpoints
        assert (endpoints.client, endpoints.client_port) == sock.getsockname()
        assert (endpoints.host, endpoints.port) == listener.getsockname()
        assert not accepted.getblocking()
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        accepted.close()
    scene.acceptor.close()
    scene.loop.close()


def test_an_ipv6_listener_tells_ipv4_addresses_as_such():
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        scene = Scene(listener)
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
            scene.run(lambda: scene.accepted)
            (endpoints,) = scene.endpoints
            assert (endpoints.client, endpoints.host) == ("127.0.0.1", "127.0.0.1")
        scene.accepted[0].close()
        scene.acceptor.close()
        scene.loop.close()


def test_a_connection_that_was_made_to_another_port_is_closed(listener):
    """Whoever is inside the pod can reach the listener past the steered port."""
    scene = Scene(listener, port=1)
    with client(listener) as sock:
        sock.settimeout(5)
        scene.run(within=0.2)
        assert sock.recv(1) == b""
    assert not scene.accepted
    scene.acceptor.close()
    scene.loop.close()


def test_without_room_nothing_is_accepted_until_there_is(listener):
    room = []
    scene = Scene(listener, room=lambda: bool(room))
    with client(listener):
        assert scene.run(within=0.3) < 0.15
        assert not scene.accepted
        room.append(True)
        scene.run(lambda: scene.accepted)
        assert scene.accepted
    assert not scene.outcomes
    scene.accepted[0].close()
    scene.acceptor.close()
    scene.loop.close()


def test_a_burst_leaves_other_descriptors_their_turn(listener, monkeypatch):
    monkeypatch.setattr(acceptor, "BURST", 2)
    scene = Scene(listener)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(client(listener))
        assert not scene.acceptor.accept()
        assert len(scene.accepted) == 2
        scene.run(lambda: len(scene.accepted) == 5)
        assert len(scene.accepted) == 5
        for sock in scene.accepted:
            stack.enter_context(sock)
    scene.acceptor.close()
    scene.loop.close()


def test_processes_that_share_a_queue_take_turns_and_one_is_woken(listener):
    """Stands for two processes by two loops: each connection wakes one, and the next one another."""
    with contextlib.ExitStack() as stack:
        scenes = [Scene(listener, shared=lambda: True) for _ in range(2)]
        for each in scenes:
            stack.callback(each.loop.close)
            stack.callback(each.acceptor.close)
        woken = [threading.Thread(target=each.run, args=(lambda: len(taken()) == 12,)) for each in scenes]

        def taken():
            return [sock for each in scenes for sock in each.accepted]

        for thread in woken:
            thread.start()
        for number in range(12):
            stack.enter_context(client(listener))
            until(lambda number=number: len(taken()) > number, within=5, what="an accept")
        for thread in woken:
            thread.join()
        counts = sorted(len(each.accepted) for each in scenes)
        for sock in taken():
            sock.close()
    assert counts[0] > 0, counts


def test_what_woke_another_is_accepted_when_it_is_looked_for(listener):
    """By `accept`, which a worker calls regularly: the process that was woken may have ended."""
    scene = Scene(listener, shared=lambda: True)
    with contextlib.closing(scene.loop), client(listener), contextlib.closing(scene.acceptor):
        until(lambda: select.select([listener], [], [], 0)[0], within=5, what="a connection in the queue")
        assert scene.acceptor.accept()
        assert len(scene.accepted) == 1
        scene.accepted[0].close()
