"""TLS streams over real sockets: an end of one direction leaves the other whole."""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import termios

import pytest

from sidestep.proxy.io import error_queue
from sidestep.proxy.io.stream import TlsStream, reset
from sidestep.proxy.tls.credentials import Credentials
from sidestep.snapshots.ports import PortSnapshot
from tests.harness.authority import Authority
from tests.harness.tls_peers import VERSIONS
from tests.harness.waiting import until

AUTHORITY = Authority()
APP = AUTHORITY.issue("app.test")


@pytest.fixture(params=list(VERSIONS))
def version(request):
    return VERSIONS[request.param]


@pytest.fixture
def ends(version):
    """A client and a server stream, shaken."""
    one, other = connection()
    with streams(one, other, version) as shaken:
        yield shaken


@pytest.fixture
def others(version):
    """Another connection, between the same two."""
    one, other = connection()
    with streams(one, other, version) as shaken:
        yield shaken


def connection():
    """Two TCP sockets that are connected to each other."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        other, _ = server.accept()
    return one, other


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


def test_an_end_without_close_notify_after_ours_is_ragged(ends):
    """No alert can be sent about it any more, which OpenSSL 3.5 reports as an error of its own."""
    client, served = ends
    client.finish(notify=False)
    served.write(b"answer")
    served.finish(notify=False)
    assert [next_read(client), next_read(client), next_read(client)] == [b"answer", b"", b""]
    assert client.ragged


def write_to_a_closed_peer(client, served):
    reset(served.sock)
    select.select([client.sock], [], [], 5)
    with pytest.raises(OSError, match=r"."):
        client.write(b"text")


def read_a_reset(client, served):
    reset(served.sock)
    select.select([client.sock], [], [], 5)
    with contextlib.suppress(OSError):  # some versions of Python report it as an end
        client.read()


def read_an_end_that_cannot_be_answered(client, served):
    client.finish(notify=False)
    served.sock.close()
    next_read(client)


def say_farewell_to_a_closed_peer(client, served):
    reset(served.sock)
    select.select([client.sock], [], [], 5)
    client.finish(notify=True)


@pytest.mark.parametrize(
    "breaks",
    [
        write_to_a_closed_peer,
        read_a_reset,
        read_an_end_that_cannot_be_answered,
        say_farewell_to_a_closed_peer,
    ],
)
def test_a_connection_that_breaks_does_not_break_others(ends, others, breaks):
    breaks(*ends)
    client, served = others
    assert [client.read(), served.read()] == [None, None]
    client.write(b"question")
    assert next_read(served) == b"question"


def test_a_handshake_that_breaks_does_not_break_others(others, version):
    one, other = connection()
    reset(other)
    select.select([one], [], [], 5)
    one.setblocking(False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    with contextlib.closing(TlsStream(one, context, server_side=False, server_name="app.test")) as stream:
        with pytest.raises(OSError, match=r"."):
            stream.handshake()
        assert [each.read() for each in others] == [None, None]


class LeavesErrors:
    """Stands for a connection object of a Python that raises an OSError and leaves the queue of errors as it is."""

    def do_handshake(self, *_):
        openssl = error_queue._openssl
        for library, reason in ((20, 1), (2, errno.EPIPE)):  # ERR_LIB_SSL, ERR_LIB_SYS
            openssl.ERR_new()
            openssl.ERR_set_error(library, reason, None)
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    read = write = shutdown = do_handshake


@pytest.mark.parametrize(
    "call",
    [TlsStream.handshake, TlsStream.read, lambda each: each.write(b"text"), lambda each: each.finish(notify=True)],
    ids=["handshake", "read", "write", "finish"],
)
def test_a_failure_leaves_no_errors_in_the_queue(ends, call):
    client, _ = ends
    kept, client.state = client.state, LeavesErrors()
    client._read, client._write = client.state.read, client.state.write
    with contextlib.suppress(BrokenPipeError):
        call(client)
    client.state = kept
    assert error_queue.take_first() == 0


def test_the_first_error_of_the_queue_is_taken():
    with pytest.raises(BrokenPipeError):
        LeavesErrors().read()
    assert error_queue.take_first() == 20 << 23 | 1
    assert error_queue.take_first() == 0


def test_the_code_of_an_end_without_close_notify_is_openssl_s():
    reason = error_queue._openssl.ERR_reason_error_string
    reason.restype = ctypes.c_char_p
    assert reason(error_queue.UNEXPECTED_EOF) == b"unexpected eof while reading"


def test_a_full_socket_does_not_swallow_close_notify(version):
    # Sockets of this kind know exactly when they are full; TCP adds to what it holds.
    with streams(*socket.socketpair(), version) as (client, served):
        said = bytes(10_000)
        assert served.write(said) == len(said)
        served.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        assert not served.finish(notify=True)
        assert not served.finish(notify=True)
        assert next_read(client) == said
        until(lambda: served.finish(notify=True), within=5, what="room")
        assert next_read(client) == b""
        assert not client.ragged
