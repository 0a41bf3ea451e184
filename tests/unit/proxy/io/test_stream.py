"""TLS streams over real sockets: an end of one direction leaves the other whole."""

import contextlib
import fcntl
import os
import select
import socket
import ssl
import struct
import termios

import pytest

from sidestep.proxy.io.stream import TlsStream
from sidestep.proxy.tls.credentials import Credentials
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.authority import Authority
from tests.harness.tls_peers import VERSIONS
from tests.harness.waiting import until

AUTHORITY = Authority()
APP = AUTHORITY.issue("app.test")


@pytest.fixture(params=list(VERSIONS))
def ends(request):
    """A client and a server stream, shaken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    with streams(one, other, VERSIONS[request.param]) as shaken:
        yield shaken


@contextlib.contextmanager
def streams(one, other, version):
    """TLS between two connected sockets: a client's end and a server's."""
    for sock in (one, other):
        sock.setblocking(False)
    store = Credentials(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    store.add("identity", "identity", memfd(APP.key + APP.chain))
    store.add("trust", "trust", memfd(AUTHORITY.pem))
    port = PortSnapshot(443, "tcp", "always", "probe", (), identity="identity", upstream_trust="trust")
    context = store.downstream(port, None)
    context.minimum_version = context.maximum_version = version
    client = store.upstream(port).wrap(one, alpn=(), server_name="app.test", verified_name="app.test")
    served = TlsStream(other, context, server_side=True)
    until(lambda: not (client.handshake() + served.handshake()), within=5, what="the handshake")
    assert client.read() is None  # what is left of the handshake: session tickets
    yield client, served
    client.close()
    served.close()
    store.keep(set())


def memfd(data):
    fd = os.memfd_create("test")
    os.write(fd, data)
    return fd


def unread(sock):
    """Bytes written that the peer's kernel has not acknowledged (tcp(7), SIOCOUTQ)."""
    return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]


def next_read(stream):
    found = []

    def read():
        data = stream.read()
        if data is not None:
            found.append(data)
        return data is not None

    until(read, within=5, what="bytes or an end")
    return found[0]


def test_bytes_that_are_there_when_we_finish_are_not_lost(ends):
    client, served = ends
    served.write(b"answer")
    select.select([client.sock], [], [], 5)
    client.finish(notify=True)
    assert next_read(client) == b"answer"
    assert next_read(served) == b""
    assert not served.ragged
    served.write(b"more")
    assert next_read(client) == b"more"


def test_the_peer_s_close_notify_after_ours_is_an_orderly_end(ends):
    client, served = ends
    client.finish(notify=True)
    assert next_read(served) == b""
    served.write(b"answer")
    served.finish(notify=True)
    assert next_read(client) == b"answer"
    assert next_read(client) == b""
    assert next_read(client) == b""
    assert not client.ragged
    assert not served.ragged


def test_an_end_without_close_notify_is_ragged(ends):
    client, served = ends
    served.finish(notify=False)
    assert next_read(client) == b""
    assert client.ragged
    assert next_read(client) == b""


def test_finishing_leaves_the_descriptor_as_it_was(ends):
    client, _ = ends
    before = (client.sock.getsockname(), client.sock.getpeername(), client.sock.get_inheritable())
    client.finish(notify=True)
    assert (client.sock.getsockname(), client.sock.getpeername(), client.sock.get_inheritable()) == before


@pytest.mark.parametrize("version", list(VERSIONS))
def test_a_full_socket_does_not_swallow_close_notify(version):
    # Sockets of this kind know exactly when they are full; TCP adds to what it holds.
    with streams(*socket.socketpair(), VERSIONS[version]) as (client, served):
        said = bytes(10_000)
        assert served.write(said) == len(said)
        served.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        assert not served.finish(notify=True)
        assert not served.finish(notify=True)
        assert next_read(client) == said
        until(lambda: served.finish(notify=True), within=5, what="room")
        assert next_read(client) == b""
        assert not client.ragged
