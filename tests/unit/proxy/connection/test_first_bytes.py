"""Waiting for first bytes on real sockets: which events come, when the waiting ends, and that nothing is consumed."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time

import pytest

from sidestep.engine.classification import AskApp, Event, Wait
from sidestep.model.errors import PeerError
from sidestep.proxy.connection.dial import Dial
from sidestep.proxy.connection.first_bytes import DecryptedBytes, PeekedBytes
from sidestep.proxy.io.loop import READ
from sidestep.proxy.io.stream import TlsStream, reset
from tests.harness.authority import Authority
from tests.harness.peers import server_context
from tests.unit.proxy.looping import Running, stepped

LONG = 30.0
SHORT = 0.2
APP = Authority().issue("app.test")


class Scene:
    """A client, the proxy's end of its connection, and an app that listens."""

    def __init__(self, stack):
        self.stepped = stack.enter_context(stepped())
        self.loop = self.stepped.loop
        self.app = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.stack = stack
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.client = stack.enter_context(socket.create_connection(server.getsockname()))
            self.near, _ = server.accept()
        stack.enter_context(self.near)
        self.near.setblocking(False)
        self.first = PeekedBytes(self.loop, self.near, self.dial)
        stack.callback(lambda: self.loop.remove(self.near.fileno()))
        stack.callback(self.first.close)

    def dial(self, done):
        return Dial(self.loop, *self.app.getsockname(), done).cancel

    def say(self, data):
        self.client.sendall(data)
        select.select([self.near], [], [], 5)

    def begin(self, verdict, have=0):
        return Running(self.first.next(verdict, have))

    def event(self, verdict, have=0):
        return self.stepped.finish(self.first.next(verdict, have))

    def accept(self):
        self.stepped.run(lambda: select.select([self.app], [], [], 0)[0])
        sock, _ = self.app.accept()
        return self.stack.enter_context(sock)


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_bytes_that_are_there_are_seen_at_once_and_not_consumed(scene):
    scene.say(b"GET /")
    running = scene.begin(Wait(1, LONG))
    assert (running.over, running.result) == (True, (Event.DATA, b"GET /"))
    assert scene.near.recv(100) == b"GET /"


def test_bytes_that_come_are_seen(scene):
    running = scene.begin(Wait(1, LONG))
    assert not running.over
    scene.say(b"GET /")
    assert scene.stepped.run(lambda: running.over)
    assert running.result == (Event.DATA, b"GET /")


def test_an_end_without_a_byte_is_seen(scene):
    scene.client.shutdown(socket.SHUT_WR)
    assert scene.event(Wait(1, LONG)) == (Event.EOF, b"")


def test_silence_ends_at_the_deadline_and_then_at_the_second(scene):
    began = time.monotonic()
    assert scene.event(Wait(1, SHORT)) == (Event.SILENT, b"")
    assert scene.event(Wait(1, SHORT)) == (Event.STILL_SILENT, b"")
    assert time.monotonic() - began >= 0.9 * 2 * SHORT  # clocks are read at different moments


def test_a_client_that_is_gone_raises(scene):
    running = scene.begin(Wait(1, LONG))
    reset(scene.client)
    assert scene.stepped.run(lambda: running.over)
    assert isinstance(running.error, PeerError)


def test_only_as_many_bytes_as_were_asked_for_wake(scene):
    scene.say(b"\x16\x03\x01")
    assert scene.event(Wait(1, LONG)) == (Event.DATA, b"\x16\x03\x01")
    running = scene.begin(Wait(4, LONG), 3)
    scene.say(b"abc")
    began = time.process_time()
    assert not scene.stepped.run(lambda: running.over, within=0.3)
    assert time.process_time() - began < 0.15  # it does not spin
    scene.say(b"d")
    assert scene.stepped.run(lambda: running.over)
    assert running.result == (Event.DATA, b"\x16\x03\x01abcd")
    scene.first.close()
    assert scene.near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_a_client_that_drips_gains_no_time(scene):
    """The deadline of the first message is set once."""
    scene.say(b"G")
    event, data = scene.event(Wait(1, LONG))
    began = time.monotonic()
    while event is Event.DATA:
        scene.loop.later(0.05, lambda: scene.client.sendall(b"E"))
        event, data = scene.event(Wait(1, 0.5), len(data))
        assert time.monotonic() - began < 5
    assert event is Event.INCOMPLETE
    assert time.monotonic() - began >= 0.45


def test_an_end_within_the_first_message_is_seen_once(scene):
    scene.say(b"GE")
    scene.event(Wait(1, LONG))
    running = scene.begin(Wait(1, LONG), 2)
    scene.client.shutdown(socket.SHUT_WR)
    assert scene.stepped.run(lambda: running.over)
    assert running.result[0] is Event.INCOMPLETE


def test_an_app_that_speaks_first_is_seen_and_its_bytes_are_left_to_the_relay(scene):
    running = scene.begin(AskApp(LONG))
    app = scene.accept()
    app.sendall(b"220 ready\r\n")
    assert scene.stepped.run(lambda: running.over)
    assert running.result[0] is Event.SERVER_FIRST
    assert scene.first.greeted
    ours = scene.first.take_app()
    assert ours.recv(100) == b"220 ready\r\n"
    ours.close()


def test_an_app_that_ends_first_is_seen_and_has_not_greeted(scene):
    running = scene.begin(AskApp(LONG))
    scene.accept().shutdown(socket.SHUT_WR)
    assert scene.stepped.run(lambda: running.over)
    assert running.result[0] is Event.SERVER_FIRST
    assert not scene.first.greeted


def test_a_client_that_speaks_in_the_same_moment_counts(scene):
    running = scene.begin(AskApp(LONG))
    app = scene.accept()
    scene.stepped.run(lambda: scene.first._app is not None)
    scene.say(b"GET /")
    app.sendall(b"220 ready\r\n")
    assert scene.stepped.run(lambda: running.over)
    assert running.result == (Event.DATA, b"GET /")
    assert not scene.first.greeted


def test_both_silent_ends_at_the_deadline(scene):
    running = scene.begin(AskApp(SHORT))
    app = scene.accept()
    assert scene.stepped.run(lambda: running.over)
    assert running.result[0] is Event.STILL_SILENT
    scene.first.close()
    app.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        assert app.recv(1) == b""  # nobody took the connection to the app: it is closed


def test_an_app_that_cannot_be_reached_raises(scene):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    scene.first._dial = lambda done: Dial(scene.loop, *address, done).cancel
    with pytest.raises(PeerError):
        scene.event(AskApp(LONG))


def test_a_dial_under_way_is_given_up_when_the_client_speaks(scene):
    cancelled = []
    scene.first._dial = lambda done: lambda: cancelled.append(True)
    running = scene.begin(AskApp(LONG))
    scene.say(b"GET /")
    assert scene.stepped.run(lambda: running.over)
    assert scene.first.take_app() is None
    assert cancelled == [True]


def test_an_error_of_ours_in_a_callback_ends_the_wait(scene):
    running = scene.begin(Wait(1, LONG))
    scene.first.abandon()
    assert isinstance(running.error, PeerError)
    scene.first.abandon()  # it is over


# --- inside TLS -------------------------------------------------------------------------------------------------------


def tls_pair(stack):
    """Two ends of one connection: a test's, blocking, and the proxy's."""
    ours, theirs = socket.socketpair()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    ours.setblocking(False)
    theirs.setblocking(False)
    near = TlsStream(ours, server_context(APP, alpn=()), server_side=True)
    far = TlsStream(theirs, client, server_side=False)
    while any([near.handshake(), far.handshake()]):
        pass
    while far.read() is not None:
        pass
    for stream in (near, far):
        stack.callback(stream.close)
    return near, far


class Inside:
    """Both connections of the proxy, open; `client` and `app` are the peers."""

    def __init__(self, stack):
        self.stepped = stack.enter_context(stepped())
        near, self.client = tls_pair(stack)
        app, self.app = tls_pair(stack)
        self.stepped.loop.add(near.fd, lambda mask: None, READ)
        self.early = app
        self.first = DecryptedBytes(self.stepped.loop, near, app)
        stack.callback(lambda: self.stepped.loop.remove(near.fd))
        stack.callback(self.first.close)

    def event(self, wait):
        return self.stepped.finish(self.first.next(wait))


@pytest.fixture
def inside():
    with contextlib.ExitStack() as stack:
        yield Inside(stack)


def test_inside_tls_bytes_are_kept_for_the_relay(inside):
    inside.client.write(b"GE")
    assert inside.event(Wait(1, LONG)) == (Event.DATA, b"GE")
    running = Running(inside.first.next(Wait(1, LONG)))
    inside.client.write(b"T /")
    assert inside.stepped.run(lambda: running.over)
    assert running.result == (Event.DATA, b"GET /")
    assert inside.first.data == b"GET /"


def test_inside_tls_silence_ends_at_the_deadline(inside):
    began = time.monotonic()
    assert inside.event(Wait(1, SHORT)) == (Event.SILENT, b"")
    assert time.monotonic() - began >= 0.9 * SHORT


def test_inside_tls_a_client_that_drips_gains_no_time(inside):
    inside.client.write(b"G")
    event, _ = inside.event(Wait(1, LONG))
    began = time.monotonic()
    while event is Event.DATA:
        inside.stepped.loop.later(0.05, lambda: inside.client.write(b"E"))
        event, _ = inside.event(Wait(1, 0.5))
        assert time.monotonic() - began < 5
    assert event is Event.INCOMPLETE
    assert time.monotonic() - began >= 0.45


def test_inside_tls_an_end_is_seen(inside):
    inside.client.write(b"GE")
    inside.event(Wait(1, LONG))
    inside.client.finish(notify=True)
    assert inside.event(Wait(1, LONG)) == (Event.EOF, b"GE")


def test_inside_tls_an_app_that_speaks_first_is_seen_and_its_bytes_are_kept(inside):
    inside.app.write(b"+PONG\r\n")
    assert inside.event(Wait(1, LONG)) == (Event.SERVER_FIRST, b"")
    assert inside.early.take_early() == b"+PONG\r\n"


def test_inside_tls_bytes_that_came_with_the_handshake_of_the_app_are_seen(inside):
    inside.early.early = b"+PONG\r\n"
    assert inside.event(Wait(1, LONG)) == (Event.SERVER_FIRST, b"")


@pytest.mark.parametrize("who", ["client", "app"])
def test_inside_tls_a_peer_that_is_gone_raises(inside, who):
    running = Running(inside.first.next(Wait(1, LONG)))
    getattr(inside, who).sock.send(b"no TLS record")
    assert inside.stepped.run(lambda: running.over)
    assert isinstance(running.error, PeerError)
