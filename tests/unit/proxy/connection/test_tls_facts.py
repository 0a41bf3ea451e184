"""What is told of a client's TLS with its requests, of real handshakes."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading

import msgspec
import pytest

from sidestep.protocols import ja4
from sidestep.protocols.client_hello import parse
from sidestep.proxy.connection.endpoints import Endpoints
from sidestep.proxy.control import messages
from sidestep.snapshots.ports import RuleSnapshot
from tests.harness.peers import server_context
from tests.unit.proxy.connection.test_conductor import tls_port
from tests.unit.proxy.runtime.test_worker import APP, Scene

REQUEST = b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FLOWS = RuleSnapshot("flows", "shop/flows", "wiretap", (), divert_probes=False, heads_only=True)


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


class Client:
    """A client over memory, whose first flight is kept."""

    def __init__(self, sock):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="app.test")
        self._sock = sock
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        self.hello = self._out.read()
        sock.sendall(self.hello)

    def shake(self):
        self._until(self._tls.do_handshake)

    def ask(self):
        self._tls.write(REQUEST)
        return self._until(lambda: self._tls.read(1000))

    def _until(self, call):
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                self._sock.sendall(self._out.read())
                self._in.write(self._sock.recv(65536))
            finally:
                self._sock.sendall(self._out.read())


def told(scene):
    """The lines that the daemon has been told."""
    found = []
    while (received := scene.daemon.receive()) is not None:
        found += received[0].requests if isinstance(received[0], messages.Requests) else ()
    return found


@pytest.mark.parametrize("early", [True, False])
def test_fingerprints_are_those_of_the_hello_if_somebody_was_shown_the_port_when_it_came(scene, early):
    near, sock = socket.socketpair()
    scene.stack.enter_context(near)
    near.settimeout(10)
    sock.setblocking(False)
    port = tls_port(scene)
    shown = msgspec.structs.replace(port.snapshot, rules=(FLOWS,))
    if early:
        port.replace(shown)
    scene.worker._accepted(port, sock, Endpoints("127.0.0.1", 1, "127.0.0.1", scene.number))
    client = Client(near)

    def serve():
        with scene.app.accept()[0] as accepted, server_context(APP).wrap_socket(accepted, server_side=True) as app:
            app.settimeout(10)
            app.recv(1000)
            app.sendall(ANSWER)

    def run(call):
        thread = threading.Thread(target=call)
        thread.start()
        scene.run(lambda: not thread.is_alive(), within=15)
        thread.join(10)

    server = threading.Thread(target=serve)
    server.start()
    run(client.shake)
    scene.run(lambda: scene.worker._connections.relayed, within=10)
    if not early:
        port.replace(shown)
    run(client.ask)
    lines = []
    scene.run(lambda: lines.extend(told(scene)) or lines, within=10)
    server.join(10)
    facts = lines[0].tls_facts
    assert (facts.version, facts.server_name) == ("TLSv1.3", "app.test")
    offered = parse(client.hello)
    assert (facts.ja3, facts.ja4) == ((ja4.ja3(offered), ja4.ja4(offered)) if early else ("", ""))
