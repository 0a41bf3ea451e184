"""When an app is probed, and what the daemon is told of it."""

import contextlib
import socket
import threading

import pytest

from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.connection.live_ports import LivePort
from sidestep.proxy.connection.protocol_probe import UNKNOWN, ProbeResult
from sidestep.proxy.control.messages import MAX_CERTIFICATE
from sidestep.proxy.io.loop import Loop
from sidestep.proxy.runtime.app_probes import AppProbes
from sidestep.snapshots.ports import PortSnapshot
from tests.unit.proxy.looping import run_until

DEADLINE = 20.0


class Link:
    """Keeps what the daemon is told."""

    def __init__(self):
        self.told = []

    def next_seq(self):
        return 1

    def advise(self, message):
        self.told.append(message)
        return True


class Scene:
    """A port whose app answers HTTP/1.1 in clear."""

    def __init__(self, stack):
        self.loop = Loop(on_crash=lambda owner, error: pytest.fail(f"{owner}: {error}"))
        stack.callback(self.loop.close)
        self.link = Link()
        self.probes = AppProbes(self.loop, self.link)
        self.app = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.endpoints = Endpoints("192.0.2.1", 9, *self.app.getsockname())
        self.asked = 0
        thread = threading.Thread(target=self._serve, daemon=True)
        thread.start()
        stack.callback(thread.join, DEADLINE)
        stack.callback(self.app.shutdown, socket.SHUT_RDWR)

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.app.accept()
                self.asked += 1
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(DEADLINE)
                    sock.recv(65536)
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    def port(self, tls="probe", http2="probe"):
        return LivePort(PortSnapshot(number=80, transport="tcp", tls=tls, http2=http2, rules=()))

    def until(self, condition):
        run_until(self.loop, condition, DEADLINE)


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def test_an_app_is_probed_once_and_the_daemon_is_told(scene):
    port = scene.port()
    for _ in range(3):
        scene.probes.observe(port, scene.endpoints, tls=False)
    probe = port.probe
    assert probe is not None
    scene.until(lambda: port.probe is None)
    assert port.probe_result.definite
    told = [(message.port, message.tls, message.http2) for message in scene.link.told]
    assert told == [(80, "no", "no")]
    scene.probes.observe(port, scene.endpoints, tls=False)
    assert port.probe is None


def test_what_is_stated_is_not_probed(scene):
    port = scene.port(tls="never", http2="never")
    scene.probes.observe(port, scene.endpoints, tls=False)
    assert port.probe is None
    assert not scene.link.told


def test_a_connection_that_contradicts_takes_the_result_back(scene):
    port = scene.port()
    scene.probes._probed(port, ProbeResult(tls=False, http2=False))
    scene.probes.observe(port, scene.endpoints, tls=True)
    assert port.probe_result == UNKNOWN
    assert [message.tls for message in scene.link.told] == ["no", "unknown"]
    scene.probes._probed(port, UNKNOWN)
    assert len(scene.link.told) == 2


@pytest.mark.parametrize(("size", "told"), [(100, 100), (MAX_CERTIFICATE, MAX_CERTIFICATE), (MAX_CERTIFICATE + 1, 0)])
def test_a_certificate_that_is_too_large_is_left_out(scene, size, told):
    scene.probes._probed(scene.port(), ProbeResult(tls=True, certificate=bytes(size)))
    assert [len(message.certificate) for message in scene.link.told] == [told]
