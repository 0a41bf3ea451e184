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


@pytest.mark.parametrize("make", [http1, WireRelay])
def test_the_answer_of_an_app_that_resets_during_an_upload_arrives(make):
    client, near = tcp_pair()
    far, app = tcp_pair()
    crashes = []
    loop = Loop(on_crash=lambda owner, error: crashes.append(error))
    for sock in (near, far):
        sock.setblocking(False)
    relay = make()
    port = None  # only a dial would need it
    conductor = Conductor(
        loop, relay, host=ConnectionHost(loop), port=port, endpoints=Endpoints("a", 1, "b", 2), protocol="http1"
    )
    conductor.attach(relay.client, PlainStream(near), watched=False)
    conductor.attach(relay.app, PlainStream(far), watched=False)
    client.sendall(HEAD)
    conductor.begin()
    assert app.recv(1000) == HEAD
    client.sendall(bytes(50000))  # ready before the app's answer is, so that it is written to a socket that broke
    app.sendall(ANSWER)
    reset(app)
    guard = loop.later(DEADLINE, loop.stop)
    loop.run()
    assert guard.call is not None
    assert not crashes
    with client, pytest.raises(ConnectionResetError):
        received = bytearray()
        while data := client.recv(65536):
            received += data
            assert ANSWER.startswith(received)
            if len(received) == len(ANSWER):
                client.recv(1)
    loop.close()
    assert bytes(received) == ANSWER
