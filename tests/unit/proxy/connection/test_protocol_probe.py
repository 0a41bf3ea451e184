"""Probing real servers on loopback: what each kind of answer teaches."""

import contextlib
import select
import socket
import ssl
import threading

import pytest

from sidestep.proxy.connection.protocol_probe import ProbeResult, ProtocolProbe
from sidestep.proxy.io.loop import Loop
from tests.harness.authority import Authority
from tests.harness.peers import server_context

AUTHORITY = Authority()
CERTIFICATE = AUTHORITY.issue("app.test")


def probe(port, *, tls, timeout=2.0):
    """Run one probe to its end."""
    crashes = []
    found = []
    loop = Loop(on_crash=lambda owner, error: crashes.append(error))

    def over():
        """Whether it is over, and its connection too."""
        if not found or loop._callbacks:
            loop.later(0.01, over)
        else:
            loop.stop()

    ProtocolProbe(loop, "127.0.0.1", port, tls=tls, server_name=None, timeout=timeout, done=found.append)
    loop.later(0.0, over)
    loop.later(10.0, loop.stop)
    loop.run()
    loop.close()
    assert not crashes
    assert len(found) == 1
    return found[0]


@contextlib.contextmanager
def server(script):
    """A server whose script gets each accepted socket; counts connections."""
    seen = []
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)

        def serve():
            while not stop.is_set():
                try:
                    sock, _ = listener.accept()
                except TimeoutError:
                    continue
                seen.append(sock)
                sock.settimeout(5)
                with sock, contextlib.suppress(OSError):
                    script(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], seen
        finally:
            stop.set()
            thread.join(10)


def tls_script(**options):
    context = server_context(CERTIFICATE, **options)

    def script(sock):
        with context.wrap_socket(sock, server_side=True) as secured:
            secured.recv(1)

    return script


def say(answer, *, read=24):
    def script(sock):
        sock.recv(read)
        sock.sendall(answer)
        sock.recv(100)

    return script


def test_tls_handshake_tells_the_protocol_and_the_certificate():
    with server(tls_script(alpn=("h2", "http/1.1"))) as (port, seen):
        result = probe(port, tls=True)
    assert (result.tls, result.http2, result.alpn) == (True, True, "h2")
    assert ssl.DER_cert_to_PEM_cert(result.certificate).encode() == CERTIFICATE.chain
    assert len(seen) == 1


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_app_sees_its_probe_end_in_order(version):
    ends = []
    context = server_context(CERTIFICATE, minimum=version, maximum=version)

    def script(sock):
        with context.wrap_socket(sock, server_side=True) as secured:
            secured.sendall(b"words that nobody will read")
            ends.append(secured.recv(1))
            poll = select.poll()
            poll.register(secured, 0)
            ends.extend(poll.poll(300))  # a reset would follow the end at once

    with server(script) as (port, _):
        assert probe(port, tls=True).tls
    assert ends == [b""]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_certificate_request_is_tls(version):
    with server(tls_script(alpn=("http/1.1",), clients=AUTHORITY.pem, minimum=version, maximum=version)) as (port, _):
        result = probe(port, tls=True)
    assert result.tls is True
    assert result.asks_certificate


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProbeResult(False)),
        (b"\x15\x03\x03\x00\x02\x02\x28", ProbeResult(True)),
        (b"+PONG\r\n", ProbeResult(False)),
    ],
)
def test_answers_to_a_client_hello(answer, wanted):
    with server(say(answer)) as (port, _):
        assert probe(port, tls=True) == wanted


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", ProbeResult(False, http2=True)),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + bytes(18), ProbeResult(False, http2=True)),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ProbeResult(False, http2=False)),
        (b"-ERR unknown command\r\n", ProbeResult(False, http2=False)),
        (b"\x15\x03\x01\x00\x02\x02\x16", ProbeResult(True)),
        (b"", ProbeResult(False, http2=False)),
    ],
)
def test_answers_to_a_clear_preface(answer, wanted):
    def script(sock):
        sock.recv(1000)
        sock.sendall(answer)

    with server(script) as (port, _):
        assert probe(port, tls=False) == wanted


@pytest.mark.parametrize("tls", [True, False])
def test_a_silent_app_is_unknown_when_the_time_is_over(tls):
    with server(lambda sock: sock.recv(10_000) and sock.recv(10_000)) as (port, _):
        assert probe(port, tls=tls, timeout=0.3) == ProbeResult(None)


@pytest.mark.parametrize("tls", [True, False])
def test_a_refused_dial_is_unknown(tls):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert probe(port, tls=tls) == ProbeResult(None)


def test_a_close_in_mid_handshake_is_unknown():
    with server(lambda sock: sock.recv(10_000)) as (port, _):
        assert probe(port, tls=True) == ProbeResult(None)
