"""Connecting a leg: each way ends with one call, or none once it was cancelled."""

import errno
import socket

import pytest

from sidestep.engine.leg import Leg, Role
from sidestep.proxy.connection.endpoints import RAW, ConnectionInfo, Endpoints
from sidestep.proxy.connection.leg_opening import open_app, open_handler
from sidestep.proxy.io.leg_io import LegIO
from sidestep.proxy.io.stream import PlainStream

ENDPOINTS = Endpoints("192.0.2.1", 9, "192.0.2.2", 80)


class Host:
    """Keeps what it was asked."""

    def __init__(self):
        self.done = None
        self.refused = []
        self.cancelled = 0
        self.info = None

    def dial_app(self, endpoints, done):
        assert endpoints is ENDPOINTS
        self.done = done
        return self._cancel

    def open_stream(self, info, leg, done):
        self.info, self.done = info, done
        return self._cancel

    def _cancel(self):
        self.cancelled += 1

    def no_app(self, port, host):
        self.refused.append((port, host))


class Tls:
    """A handshake that ends when it is told to."""

    def __init__(self):
        self.sock = self.done = None
        self.cancelled = 0

    def __call__(self, sock, done):
        self.sock, self.done = sock, done
        return self._cancel

    def _cancel(self):
        self.cancelled += 1


@pytest.fixture
def sock():
    one, other = socket.socketpair()
    with one, other:
        yield one


class Scene:
    """A leg that is being opened."""

    def __init__(self):
        self.host, self.opened = Host(), []
        self.io = LegIO(None, Leg(Role.APP))

    def done(self, io, stream):
        assert io is self.io
        self.opened.append(stream)

    def app(self, tls=None):
        open_app(self.io, self.host, "port", ENDPOINTS, tls=tls, done=self.done)

    def handler(self, tls=None):
        open_handler(self.io, self.host, ConnectionInfo(ENDPOINTS), tls=tls, done=self.done)


def test_a_plain_dial(sock):
    scene = Scene()
    scene.app()
    assert scene.io.cancel is not None
    scene.host.done(sock, None)
    assert scene.io.cancel is None
    assert isinstance(scene.opened[0], PlainStream)
    assert scene.opened[0].sock is sock


@pytest.mark.parametrize(("error", "refused"), [(errno.ECONNREFUSED, 1), (errno.ETIMEDOUT, 0)])
def test_a_failed_dial_is_a_refusal_and_one_that_the_app_refused_is_told(error, refused):
    scene = Scene()
    scene.app()
    scene.host.done(None, OSError(error, "no"))
    assert scene.opened == [None]
    assert scene.host.refused == [("port", "192.0.2.2")] * refused


@pytest.mark.parametrize("way", ["app", "handler"])
def test_with_tls_the_leg_is_open_after_the_handshake(sock, way):
    scene, tls = Scene(), Tls()
    getattr(scene, way)(tls)
    scene.host.done(*((sock, None) if way == "app" else (PlainStream(sock),)))
    assert not scene.opened
    assert tls.sock is sock
    scene.io.give_up_waiting()
    assert (tls.cancelled, scene.host.cancelled) == (1, 0)
    tls.done("secure")
    assert scene.opened == ["secure"]
    assert scene.io.cancel is None


def test_a_handler_that_is_refused():
    scene = Scene()
    scene.handler()
    scene.host.done(None)
    assert scene.opened == [None]
    assert scene.host.info == ConnectionInfo(ENDPOINTS, tls=False, server_name="", protocol=RAW)


@pytest.mark.parametrize("way", ["app", "handler"])
def test_what_is_under_way_can_be_cancelled_once(way):
    scene = Scene()
    getattr(scene, way)()
    scene.io.give_up_waiting()
    scene.io.give_up_waiting()
    assert scene.host.cancelled == 1
