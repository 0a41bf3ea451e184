"""Connecting to the app through a host that dials for real."""

from __future__ import annotations

import socket
from functools import partial

import pytest

from sidestep.model.errors import PeerError
from sidestep.proxy.connection.app_connection import begin_dial, dial_app
from sidestep.proxy.connection.dial import Dial
from sidestep.proxy.connection.endpoints import Endpoints
from tests.unit.proxy.looping import stepped


class Host:
    """Dials, and takes note of what it is told."""

    def __init__(self, loop):
        self.loop = loop
        self.told = []

    def dial_app(self, endpoints, done):
        return Dial(self.loop, endpoints.host, endpoints.port, done).cancel

    def no_app(self, port, host):
        self.told.append((port, host))


def endpoints(host, port):
    return Endpoints("192.0.2.1", 9, host, port)


def test_the_app_is_connected():
    with stepped() as scene, socket.create_server(("127.0.0.1", 0)) as app:
        host = Host(scene.loop)
        sock = scene.finish(dial_app(host, "the port", endpoints(*app.getsockname())))
        assert sock.getpeername() == app.getsockname()
        sock.close()
        assert not host.told


def test_a_refusal_is_told_and_raised():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with stepped() as scene:
        host = Host(scene.loop)
        with pytest.raises(PeerError):
            scene.finish(dial_app(host, "the port", endpoints(*address)))
        assert host.told == [("the port", "127.0.0.1")]


def test_another_failure_is_raised_only():
    with stepped() as scene:
        host = Host(scene.loop)
        with pytest.raises(PeerError):
            scene.finish(dial_app(host, "the port", endpoints("192.0.2.9", 80)))
        assert not host.told


def test_a_dial_can_be_cancelled():
    with stepped() as scene, socket.create_server(("127.0.0.1", 0)) as app:
        results = []
        begin_dial(Host(scene.loop), "the port", endpoints(*app.getsockname()), partial(_note, results))()
        scene.run(within=0.1)
        assert not results


def _note(results, *result):
    results.append(result)
