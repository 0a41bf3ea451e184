"""What a peer said before it broke off is passed on: a server that refuses an upload answers and closes."""

from __future__ import annotations

import pytest

from sidestep.engine.http1.relay import Http1Relay
from sidestep.engine.memory_budget import BACKLOG, Budget
from sidestep.engine.passthrough import WireRelay
from sidestep.policy.route import Route, SteeredPort
from sidestep.proxy.connection.conductor import Conductor
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.io.splice import Pipes
from sidestep.proxy.io.stream import PlainStream, reset
from sidestep.proxy.mirror.scheduler import MirrorScheduler
from tests.unit.proxy.io.test_splice import DEADLINE, tcp_pair

HEAD = b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
ANSWER = b"HTTP/1.1 413 Payload Too Large\r\nContent-Length: 20000\r\n\r\n" + bytes(20000)

UPGRADE = (
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAA\r\n\r\n"
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"


class ConnectionHost:
    """A worker that has only pipes; the loop ends with its connection."""

    def __init__(self, loop):
        self.loop = loop
        self.pipes = Pipes()
        self.mirror_scheduler = MirrorScheduler(loop)
        self.backlog = Budget(BACKLOG)
        self.lingering = set()

    def closed(self, conductor):
        self.loop.stop()


def http1():
    return Http1Relay(SteeredPort(80, Route(())), tls=False)


class Scene:
    """A conductor between a client and an app; `run` ends with its connection."""

    def __init__(self, relay):
        self.client, near = tcp_pair()
        far, self.app = tcp_pair()
        self.crashes = []
        self.loop = Loop(on_crash=lambda owner, error: self.crashes.append(error))
        for sock in (near, far):
            sock.setblocking(False)
        self.conductor = Conductor(
            self.loop,
            relay,
            host=ConnectionHost(self.loop),
            port=None,  # only a dial would need it
            endpoints=Endpoints("a", 1, "b", 2),
            protocol="http1",
        )
        self.conductor.attach(relay.client, PlainStream(near), watched=False)
        self.conductor.attach(relay.app, PlainStream(far), watched=False)

    def begin(self, first):
        self.client.sendall(first)
        self.conductor.begin()
        assert self.app.recv(1000) == first

    def run(self):
        guard = self.loop.later(DEADLINE, self.loop.stop)
        self.loop.run()
        guard.cancel()
        assert self.conductor.is_apart
        assert not self.crashes


@pytest.mark.parametrize("make", [http1, WireRelay])
def test_the_answer_of_an_app_that_resets_during_an_upload_arrives(make):
    scene = Scene(make())
    client, app = scene.client, scene.app
    scene.begin(HEAD)
    client.sendall(bytes(50000))  # ready before the app's answer is, so that it is written to a socket that broke
    app.sendall(ANSWER)
    reset(app)
    scene.run()
    with client, pytest.raises(ConnectionResetError):
        received = bytearray()
        while data := client.recv(65536):
            received += data
            assert ANSWER.startswith(received)
            if len(received) == len(ANSWER):
                client.recv(1)
    scene.loop.close()
    assert bytes(received) == ANSWER


def test_what_was_joined_before_an_error_was_met_arrives_and_the_error_counts():
    relay = WireRelay()
    relay.drain = True  # as an HTTP/2 relay says with several streams open: reads are joined
    scene = Scene(relay)
    scene.begin(HEAD)
    scene.app.sendall(b"the last words")
    reset(scene.app)
    scene.run()
    with scene.client, pytest.raises(ConnectionResetError):
        assert scene.client.recv(100) == b"the last words"
        scene.client.recv(100)
    scene.loop.close()


def test_an_app_that_goes_on_in_http2_and_breaks_off_ends_its_client():
    scene = Scene(http1())
    scene.begin(UPGRADE)
    scene.client.sendall(bytes(50000))
    scene.app.sendall(SWITCHED)
    reset(scene.app)
    scene.run()
    with scene.client, pytest.raises(ConnectionResetError):
        while scene.client.recv(65536):
            pass
    scene.loop.close()
