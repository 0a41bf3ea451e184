"""Endings between real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading

import pytest

from sidestep.proxy.connection.endpoints import Endpoints
from tests.harness.peers import server_context
from tests.unit.proxy.io.test_stream import unread
from tests.unit.proxy.runtime.test_worker import APP, Scene

TLS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@pytest.fixture
def scene():
    with contextlib.ExitStack() as stack:
        yield Scene(stack)


def tls_port(scene):
    fd = os.memfd_create("test")
    os.write(fd, APP.key + APP.chain)
    scene.worker.credentials.add("identity", "identity", fd)
    scene.stack.callback(scene.worker.credentials.keep, set())
    return scene.port(tls="always", identity="identity", skip_verify=True)


@TLS
def test_a_slow_reader_of_a_whole_answer_is_told_that_it_was_whole(scene, version):
    """The end of an answer without a length is a close_notify; a full send buffer may not swallow it."""
    client, sock = socket.socketpair()  # knows exactly when it is full; TCP adds to what it holds
    scene.stack.enter_context(client)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    scene.worker._accepted(tls_port(scene), sock, Endpoints("127.0.0.1", 1, "127.0.0.1", scene.number))
    body = bytes(150_000)
    end_now, read_now, results = threading.Event(), threading.Event(), []

    def serve():
        sock, _ = scene.app.accept()
        context = server_context(APP, minimum=version, maximum=version)
        with context.wrap_socket(sock, server_side=True) as app:
            app.settimeout(10)
            app.recv(1000)
            app.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
            end_now.wait(10)
            with contextlib.suppress(OSError):
                app.unwrap()

    def ask():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        with context.wrap_socket(client, server_hostname="app.test", suppress_ragged_eofs=False) as sock:
            sock.settimeout(10)
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            read_now.wait(10)
            try:
                while data := sock.recv(65536):
                    results.append(data)
                results.append(b"the end")
            except OSError as error:
                results.append(repr(error).encode())

    threads = [threading.Thread(target=function) for function in (serve, ask)]
    for thread in threads:
        thread.start()
    scene.run(lambda: scene.worker._connections.relayed, within=10)
    (conductor,) = scene.worker._connections.relayed
    leg = conductor.relay.client
    sock = leg.io.stream.sock
    scene.run(lambda: unread(sock) > 100_000 and not leg.out, within=10)
    assert unread(sock) > 100_000
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # nothing more fits
    end_now.set()
    scene.run(lambda: leg.ending, within=10)
    assert scene.run(within=0.3) < 0.15  # it waits for room, idly
    read_now.set()
    scene.run(lambda: not any(thread.is_alive() for thread in threads), within=10)
    for thread in threads:
        thread.join(10)
    assert results[-1] == b"the end"
    assert b"".join(results[:-1]).endswith(b"\r\n\r\n" + body)
    scene.run(lambda: not scene.worker._connections.relayed, within=5)
    assert not scene.worker._connections.relayed


class Records:
    """A TLS client that says what stands in a record of its own, and closes its direction by close_notify alone."""

    def __init__(self, sock):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="app.test")
        self._sock = sock
        self._until(self._tls.do_handshake)

    def say_and_end(self, *records):
        for record in records:
            self._tls.write(record)
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._sock.sendall(self._out.read())

    def hear(self):
        with contextlib.suppress(ssl.SSLZeroReturnError):
            return self._until(lambda: self._tls.read(100))
        return b""

    def _until(self, call):
        while True:
            try:
                return call()
            except ssl.SSLWantReadError:
                self._sock.sendall(self._out.read())
                self._in.write(self._sock.recv(65536))
            finally:
                self._sock.sendall(self._out.read())


@TLS
@pytest.mark.parametrize("sizes", [(), (10,), (16384,), (16384, 16384), (16384, 10), (16384,) * 20])
def test_an_end_by_close_notify_is_passed_on_wherever_it_is_met(scene, version, sizes):
    """Nothing comes behind it that an event would tell of: the client waits for its answer."""
    client, sock = socket.socketpair()
    scene.stack.enter_context(client)
    client.settimeout(10)
    sock.setblocking(False)
    port = tls_port(scene)
    scene.worker._accepted(port, sock, Endpoints("127.0.0.1", 1, "127.0.0.1", scene.number))
    results = []

    def serve():
        sock, _ = scene.app.accept()
        context = server_context(APP, minimum=version, maximum=version)
        with context.wrap_socket(sock, server_side=True) as app:
            app.settimeout(10)
            count = 0
            while data := app.recv(65536):
                count += len(data)
            app.sendall(b"%d" % count)
            with contextlib.suppress(OSError):
                app.unwrap()

    def ask():
        asking = Records(client)
        asking.say_and_end(*(b"\x01" * size for size in sizes))
        with contextlib.suppress(OSError):
            results.append(asking.hear())

    threads = [threading.Thread(target=function) for function in (serve, ask)]
    for thread in threads:
        thread.start()
    scene.run(lambda: not any(thread.is_alive() for thread in threads), within=15)
    for thread in threads:
        thread.join(10)
    assert results == [b"%d" % sum(sizes)]
